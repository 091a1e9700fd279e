"""Depth maps: 16-bit greyscale PNG files beside the frames, made by a depth-estimation model or the phantom."""

import dataclasses
import os
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from jaxtyping import Float, Float32

from fsg_jax._files import read_json, replacing, write_json
from fsg_jax.data.extras import import_extra
from fsg_jax.endoscopy.frames.decode import FrameError, Placement, fit_image, open_image
from fsg_jax.endoscopy.index.schema import Table

DEPTH_INFO = "depth.json"
DEPTH_MAX = 65535
_REMEDY = "make it with the depth command"
_PIXELS = 2**26
_MODES = ("I;16", "I;16B", "I", "L")
_INFO = 'expected {"model": ..., "larger_is": "nearer" or "farther"}'


@dataclasses.dataclass(frozen=True)
class DepthInfo:
    """What the maps of a depth root are.

    Attributes:
      model: what made them: a model's name or folder, or a renderer.
      larger_is: what a larger value means, ``"nearer"`` (inverse depth, as MiDaS) or ``"farther"`` (distance).
      synthetic: some of them belong to made-up frames.
      revision: of the model, where known.
    """

    model: str
    larger_is: Literal["nearer", "farther"]
    synthetic: bool = False
    revision: str | None = None


def depth_path(depth_root: Path, dataset: str, image_path: str) -> Path:
    """Returns ``<depth_root>/<dataset>/<image_path>`` with the suffix ``.png``.

    Raises:
      ValueError: ``image_path`` is absolute or leaves the dataset's folder.
    """
    relative = PurePosixPath(image_path)
    if relative.is_absolute() or ".." in relative.parts:
        raise ValueError(f"image_path: expected a path inside the folder of dataset {dataset!r}, found {image_path!r}")
    return depth_root / dataset / relative.with_suffix(".png")


def read_depth(path: Path, placement: Placement) -> Float32[np.ndarray, "size size"]:
    """Reads the map at ``path``, of any resolution, and resizes it with the geometry of its frame; values 0 to 65535.

    Where the frame keeps its aspect, the map's edge values fill the padding: its range stays that of the frame.

    Raises:
      FrameError: the file is missing, damaged or not greyscale.
    """
    with open_image(path, _REMEDY) as image:
        if image.width * image.height > _PIXELS:
            raise FrameError(f"{path}: expected at most {_PIXELS} pixels, found {image.width}x{image.height}")
        if image.mode not in _MODES:
            raise FrameError(f"{path}: expected a 16-bit greyscale PNG, found pixels of mode {image.mode}; {_REMEDY}")
        values = import_extra("PIL.Image", "endoscopy").fromarray(np.asarray(image).astype(np.float32))
        return fit_image(values, placement, around="edge")


def write_depth(path: Path, depth: Float[np.ndarray, "rows columns"]) -> None:
    """Writes ``depth``, min-max scaled to 0..65535, as a 16-bit PNG, whole or not at all.

    ``round(65535 (depth - min) / (max - min))``; a constant map becomes zeros.

    Raises:
      ValueError: a value is not finite.
    """
    depth = np.asarray(depth, np.float64)
    if not np.isfinite(depth).all():
        raise ValueError(f"{path}: expected a finite depth map, found values that are not finite")
    low, high = depth.min(), depth.max()
    scaled = np.rint((depth - low) * (DEPTH_MAX / (high - low) if high > low else 0.0)).astype(np.uint16)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        image = import_extra("PIL.Image", "endoscopy").fromarray(scaled)
        image.save(temporary, format="PNG", compress_level=1)


def missing_depth(table: Table, depth_root: Path) -> list[Path]:
    """Lists the maps that frames of ``table`` lack, each once, in the order of the rows. No file is opened."""
    present = cache(lambda folder: set(os.listdir(folder)) if folder.is_dir() else set())
    frames = zip(table.column("dataset").to_pylist(), table.column("image_path").to_pylist(), strict=True)
    paths = dict.fromkeys(depth_path(depth_root, dataset, image_path) for dataset, image_path in frames)
    return [path for path in paths if path.name not in present(path.parent)]


def check_depth(table: Table, depth_root: Path) -> DepthInfo:
    """Returns the `DepthInfo` of ``depth_root`` if every frame of ``table`` has its map.

    Raises:
      FileNotFoundError: maps are missing (how many, and the first), or there is no depth.json.
      ValueError: depth.json is damaged.
    """
    info = read_depth_info(depth_root)
    if missing := missing_depth(table, depth_root):
        first = ", ".join(map(str, missing[:3]))
        raise FileNotFoundError(
            f"{depth_root}: {len(missing)} depth maps are missing, the first: {first}; make them with the depth command"
        )
    return info


def read_depth_info(depth_root: Path) -> DepthInfo:
    """Reads depth.json of ``depth_root``; keys that are not of `DepthInfo` are ignored.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is damaged, or lacks ``model`` or ``larger_is``.
    """
    path = depth_root / DEPTH_INFO
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; {_INFO}")
    values = read_json(path)
    known = {f.name: values[f.name] for f in dataclasses.fields(DepthInfo) if f.name in values}
    right = isinstance(known.get("model"), str) and known.get("larger_is") in ("nearer", "farther")
    right &= isinstance(known.get("synthetic", False), bool) and isinstance(known.get("revision") or "", str)
    if not right:
        raise ValueError(f"{path}: {_INFO}, found {str(values)[:200]}")
    return DepthInfo(**known)


def write_depth_info(depth_root: Path, info: DepthInfo) -> None:
    """Writes depth.json, whole or not at all."""
    depth_root.mkdir(parents=True, exist_ok=True)
    write_json(depth_root / DEPTH_INFO, dataclasses.asdict(info))
