"""Depth maps: 16-bit greyscale PNG files beside the frames, made by a depth-estimation model or the phantom."""

import dataclasses
import json
import os
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Float32

from fsg_jax.data.extras import import_extra
from fsg_jax.endoscopy.frames.decode import FrameError, Placement, open_image, resize_map
from fsg_jax.endoscopy.index.schema import Table

DEPTH_INFO = "depth.json"
DEPTH_MAX = 65535
_REMEDY = "expected a 16-bit greyscale PNG; make it again with the depth command"
_MODES = ("I;16", "I;16B", "I", "L")
_SHOWN = 3


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
    """``<depth_root>/<dataset>/<image_path>`` with the suffix ``.png``.

    Raises:
      ValueError: ``image_path`` is absolute or leaves the dataset's folder.
    """
    relative = PurePosixPath(image_path)
    if relative.is_absolute() or ".." in relative.parts:
        raise ValueError(f"image_path is {image_path!r}; expected a path inside the folder of dataset {dataset!r}")
    return depth_root / dataset / relative.with_suffix(".png")


def read_depth(path: Path, placement: Placement) -> Float32[np.ndarray, "size size"]:
    """The map at ``path``, any resolution, resized with the geometry of its frame; values 0 to 65535.

    Where the frame keeps its aspect, the map's edge values fill the padding: its range stays that of the frame.

    Raises:
      FrameError: missing, damaged or not greyscale.
    """
    with open_image(path, _REMEDY) as image:
        if image.mode not in _MODES:
            raise FrameError(f"{path}: found pixels of mode {image.mode}; {_REMEDY}")
        values = np.asarray(image).astype(np.float32)
    return resize_map(values, placement)


def write_depth(path: Path, depth: Float[np.ndarray, "rows columns"]) -> None:
    """Writes ``depth``, min-max scaled to 0..65535, as a 16-bit PNG, whole or not at all.

    ``round(65535 (depth - min) / (max - min))``; a constant map becomes zeros.

    Raises:
      ValueError: a value is not finite.
    """
    pillow = import_extra("PIL.Image", "endoscopy")
    depth = np.asarray(depth, np.float64)
    if not np.isfinite(depth).all():
        raise ValueError(f"{path}: the depth map has values that are not finite; expected finite ones")
    low, high = depth.min(), depth.max()
    scaled = np.rint((depth - low) * (65535 / (high - low) if high > low else 0.0)).astype(np.uint16)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        pillow.fromarray(scaled).save(temporary, format="PNG", compress_level=1)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def missing_depth(table: Table, depth_root: Path) -> list[Path]:
    """The maps that frames of ``table`` lack, each once, in the order of the rows. No file is opened."""
    names: dict[Path, set[str]] = {}
    missing: dict[Path, None] = {}
    for dataset, image_path in zip(*(table.column(n).to_pylist() for n in ("dataset", "image_path")), strict=True):
        path = depth_path(depth_root, dataset, image_path)
        if path.parent not in names:
            names[path.parent] = set(os.listdir(path.parent)) if path.parent.is_dir() else set()
        if path.name not in names[path.parent]:
            missing[path] = None
    return list(missing)


def check_depth(table: Table, depth_root: Path) -> DepthInfo:
    """The `DepthInfo` of ``depth_root``, after a look at whether every frame of ``table`` has its map.

    Raises:
      FileNotFoundError: maps are missing (how many, and the first), or there is no depth.json.
      ValueError: depth.json is damaged.
    """
    info = read_depth_info(depth_root)
    if missing := missing_depth(table, depth_root):
        first = ", ".join(str(path) for path in missing[:_SHOWN])
        raise FileNotFoundError(
            f"{depth_root}: {len(missing)} depth maps are missing, the first: {first}; make them with the depth command"
        )
    return info


def read_depth_info(depth_root: Path) -> DepthInfo:
    """What depth.json of ``depth_root`` says; keys it does not know are ignored.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is damaged, or lacks ``model`` or ``larger_is``.
    """
    path = depth_root / DEPTH_INFO
    if not path.exists():
        raise FileNotFoundError(f'{path}: no such file; expected {{"model": ..., "larger_is": "nearer" or "farther"}}')
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
        known = {f.name: values[f.name] for f in dataclasses.fields(DepthInfo) if f.name in values}
        if known["larger_is"] not in ("nearer", "farther"):
            raise ValueError(f"larger_is is {known['larger_is']!r}")
        return DepthInfo(**known)
    except (ValueError, TypeError, KeyError) as error:
        message = f'{path}: {error}; expected an object with "model", and "larger_is" that is "nearer" or "farther"'
        raise ValueError(message) from error


def write_depth_info(depth_root: Path, info: DepthInfo) -> None:
    """Writes depth.json, whole or not at all."""
    depth_root.mkdir(parents=True, exist_ok=True)
    temporary = depth_root / f"{DEPTH_INFO}.{os.getpid()}.tmp"
    temporary.write_text(json.dumps(dataclasses.asdict(info), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(depth_root / DEPTH_INFO)
