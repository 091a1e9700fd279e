"""From a row of the index to an example: frame, box, depth map and size."""

import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
from jaxtyping import Float32

from fsg_jax.endoscopy.frames.decode import FrameError as FrameError
from fsg_jax.endoscopy.frames.decode import Placement, place_box, place_frame, read_grey, read_rgb
from fsg_jax.endoscopy.frames.depth_maps import DEPTH_INFO, DEPTH_MAX, depth_path, read_depth, read_depth_info
from fsg_jax.endoscopy.index.schema import Table

_REMEDY = "index again if the files have changed"


class FrameSource:
    """The examples of an index, read from the frames on disk; a random-access source for Grain.

    ``source[row]`` is a dict:
      frame: uint8 (size, size, 3), the whole frame, RGB, resized with a triangle filter as wide as the reduction.
      box: float32 (4,), xmin, ymin, xmax, ymax in pixels of that frame: edges of a half-open range.
      depth: float32 (size, size), only with ``depth_root``; larger is nearer, and the scale is arbitrary: maps whose
        ``depth.json`` says that larger is farther are turned round.
      size_mm: float32, NaN where the index has none.
      row: int64, the row of the table.

    EXIF orientation is not applied: boxes are in stored pixels. The object holds arrays, no table; it can be pickled
    and read from several threads.

    Args:
      table: an index, see `fsg_jax.endoscopy.index.schema`; rows keep their order.
      roots: the folder of every dataset in it.
      size: height and width of an example in pixels, 1 or more.
      keep_aspect: centre the frame in black and keep its aspect ratio, rounded to whole pixels; False stretches it, as
        the paper does.
      depth_root: the folder of depth maps, see `fsg_jax.endoscopy.frames.depth_maps`; None reads none.

    Raises:
      ValueError: ``size`` below 1, or a dataset without a folder. Reading: `FrameError` for a file that is missing,
        damaged or of another size than the index says.
    """

    def __init__(
        self,
        table: Table,
        roots: Mapping[str, Path],
        size: int,
        *,
        keep_aspect: bool = False,
        depth_root: Path | None = None,
    ) -> None:
        if size < 1:
            raise ValueError(f"size is {size}; expected 1 pixel or more")
        self.size, self.keep_aspect, self.depth_root = int(size), keep_aspect, depth_root
        self.datasets = sorted(set(table.column("dataset").to_pylist()))
        if missing := [name for name in self.datasets if name not in roots]:
            raise ValueError(f"roots: expected the folder of every dataset, found none for {missing}")
        self.roots = {name: Path(roots[name]) for name in self.datasets}
        self.farther = depth_root is not None and _larger_is_farther(depth_root)
        self.columns = _columns(table, self.datasets)

    def __len__(self) -> int:
        return len(self.columns["dataset"])

    def __getitem__(self, row: SupportsIndex) -> dict[str, Any]:
        index = self._index(row)
        shape, placement = self._shape(index), self._placement(index)
        example: dict[str, Any] = {
            "frame": read_rgb(self.frame_path(index), shape, placement, _REMEDY),
            "box": place_box(self.columns["box"][index], shape, placement),
        }
        if (path := self.depth_path(index)) is not None:
            depth = read_depth(path, placement)
            example["depth"] = np.float32(DEPTH_MAX) - depth if self.farther else depth
        return example | {"size_mm": self.columns["size_mm"][index], "row": np.int64(index)}

    def frame_path(self, row: SupportsIndex) -> Path:
        """The file of the frame."""
        index = self._index(row)
        return self.roots[self._dataset(index)] / self._text("image_path", index)

    def depth_path(self, row: SupportsIndex) -> Path | None:
        """The file of the frame's depth map; None without a depth root."""
        if self.depth_root is None:
            return None
        index = self._index(row)
        return depth_path(self.depth_root, self._dataset(index), self._text("image_path", index))

    def load_mask(self, row: SupportsIndex) -> Float32[np.ndarray, "size size"]:
        """The segmentation of a row where the index names one, 0 to 1, resized like the frame. Examples hold none.

        Raises:
          FrameError: the index names none, or the file is missing, damaged or not of the frame's size.
        """
        index = self._index(row)
        name = self._text("mask_path", index)
        if not name:
            raise FrameError(f"{self.frame_path(index)}: the index has no mask_path for row {index}; expected one")
        path = self.roots[self._dataset(index)] / name
        mask = read_grey(path, self._shape(index), self._placement(index), _REMEDY)
        return mask.astype(np.float32) / np.float32(255)

    def _index(self, row: SupportsIndex) -> int:
        index = operator.index(row)
        if not 0 <= index < len(self):
            raise IndexError(f"row is {index}; expected 0 to {len(self) - 1}")
        return index

    def _dataset(self, index: int) -> str:
        return self.datasets[self.columns["dataset"][index]]

    def _text(self, column: str, index: int) -> str:
        return bytes(self.columns[column][index]).decode()

    def _shape(self, index: int) -> tuple[int, int]:
        width, height = self.columns["shape"][index].tolist()
        return width, height

    def _placement(self, index: int) -> Placement:
        return place_frame(*self._shape(index), self.size, keep_aspect=self.keep_aspect)


def _larger_is_farther(depth_root: Path) -> bool:
    return (depth_root / DEPTH_INFO).exists() and read_depth_info(depth_root).larger_is == "farther"


def _columns(table: Table, datasets: list[str]) -> dict[str, np.ndarray]:
    """What an example needs of the table, as arrays; text as UTF-8 of fixed width."""

    def text(name: str) -> np.ndarray:
        return np.array([(value or "").encode() for value in table.column(name).to_pylist()], np.bytes_)

    def stack(*names: str) -> np.ndarray:
        return np.stack([table.column(name).to_numpy() for name in names], axis=-1).astype(np.int32)

    codes = {name: code for code, name in enumerate(datasets)}
    return {
        "dataset": np.array([codes[name] for name in table.column("dataset").to_pylist()], np.int16),
        "image_path": text("image_path"),
        "mask_path": text("mask_path"),
        "shape": stack("width", "height"),
        "box": stack("xmin", "ymin", "xmax", "ymax"),
        "size_mm": table.column("size_mm").to_numpy().astype(np.float32),
    }
