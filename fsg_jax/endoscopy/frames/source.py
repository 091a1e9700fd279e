"""From a row of the index to an example: frame, box, depth map, size and labels."""

import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
from jaxtyping import Float32

from fsg_jax._checks import check_integer
from fsg_jax.endoscopy.frames.decode import FrameError, Placement, place_box, place_frame, read_image
from fsg_jax.endoscopy.frames.depth_maps import DEPTH_INFO, DEPTH_MAX, depth_path, read_depth, read_depth_info
from fsg_jax.endoscopy.index.label_codes import LABELS, label_codes
from fsg_jax.endoscopy.index.schema import Table

_REMEDY = "index again if the files have changed"


def check_row(row: SupportsIndex, length: int) -> int:
    """Returns ``row`` as an int; IndexError unless it is from 0 to ``length`` - 1."""
    index = operator.index(row)
    if not 0 <= index < length:
        raise IndexError(f"row: expected 0 to {length - 1}, found {index}")
    return index


class FrameSource:
    """The examples of an index, read from the frames on disk; a random-access source for Grain.

    ``source[row]`` is a dict:
      frame: uint8 (size, size, 3), the whole frame, RGB, resized with a triangle filter as wide as the reduction.
      box: float32 (4,), xmin, ymin, xmax, ymax in pixels of that frame: edges of a half-open range.
      depth: float32 (size, size), only with ``depth_root``; larger is nearer, and the scale is arbitrary: maps whose
        ``depth.json`` says that larger is farther are turned round.
      size_mm: float32, NaN where the index has none.
      histology, site: int32, the places in `HISTOLOGIES` and `SITES`, -1 where the index has none. The rows that
        `fsg_jax.data.pad_batch` adds have 0, as in all else: only ``valid`` tells them from labels.
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
      ValueError: ``size`` is below 1, or a dataset has no folder.
      FrameError: when a row is read: a file is missing, damaged or of another size than the index says.
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
        check_integer("size", size, 1)
        self.size, self.keep_aspect, self.depth_root = int(size), keep_aspect, depth_root
        datasets, codes = np.unique(table.column("dataset").to_pylist(), return_inverse=True)
        self.datasets: list[str] = datasets.tolist()
        if missing := [name for name in self.datasets if name not in roots]:
            raise ValueError(f"roots: expected the folder of every dataset, found none for {missing}")
        self.roots = {name: Path(roots[name]) for name in self.datasets}
        self.farther = False
        if depth_root is not None and (depth_root / DEPTH_INFO).exists():
            self.farther = read_depth_info(depth_root).larger_is == "farther"
        self.columns = {"dataset": codes.astype(np.int16)} | _columns(table)

    def __len__(self) -> int:
        return len(self.columns["dataset"])

    def __getitem__(self, row: SupportsIndex) -> dict[str, Any]:
        index = check_row(row, len(self))
        shape, placement = self._geometry(index)
        example: dict[str, Any] = {
            "frame": read_image(self.frame_path(index), shape, placement, _REMEDY),
            "box": place_box(self.columns["box"][index], shape, placement),
        }
        if (path := self.depth_path(index)) is not None:
            depth = read_depth(path, placement)
            example["depth"] = np.float32(DEPTH_MAX) - depth if self.farther else depth
        example |= {name: self.columns[name][index] for name in ("size_mm", *LABELS)}
        return example | {"row": np.int64(index)}

    def frame_path(self, row: SupportsIndex) -> Path:
        """Returns the file of the frame."""
        dataset, name = self._names(row, "image_path")
        return self.roots[dataset] / name

    def depth_path(self, row: SupportsIndex) -> Path | None:
        """Returns the file of the frame's depth map; None without a depth root."""
        return None if self.depth_root is None else depth_path(self.depth_root, *self._names(row, "image_path"))

    def load_mask(self, row: SupportsIndex) -> Float32[np.ndarray, "size size"]:
        """Reads the segmentation of a row, 0 to 1, resized like the frame. Examples hold none.

        Raises:
          FrameError: the index names no segmentation, or the file is missing, damaged or not of the frame's size.
        """
        dataset, name = self._names(row, "mask_path")
        if not name:
            raise FrameError(f"{self.frame_path(row)}: expected a mask_path in the index, found none for row {row}")
        mask = read_image(self.roots[dataset] / name, *self._geometry(row), _REMEDY, "L")
        return mask.astype(np.float32) / np.float32(255)

    def _names(self, row: SupportsIndex, column: str) -> tuple[str, str]:
        """Returns the dataset of a row and the text in one of its columns."""
        index = check_row(row, len(self))
        return self.datasets[self.columns["dataset"][index]], bytes(self.columns[column][index]).decode()

    def _geometry(self, row: SupportsIndex) -> tuple[tuple[int, int], Placement]:
        """Returns width and height of a row's frame, and where it lies in the example."""
        width, height = self.columns["shape"][row].tolist()
        return (width, height), place_frame(width, height, self.size, keep_aspect=self.keep_aspect)


def _columns(table: Table) -> dict[str, np.ndarray]:
    """Returns what an example needs of the table, as arrays; text is UTF-8 of fixed width."""

    def text(name: str) -> np.ndarray:
        return np.array([(value or "").encode() for value in table.column(name).to_pylist()], np.bytes_)

    def stack(*names: str) -> np.ndarray:
        return np.stack([table.column(name).to_numpy() for name in names], axis=-1).astype(np.int32)

    return {
        "image_path": text("image_path"),
        "mask_path": text("mask_path"),
        "shape": stack("width", "height"),
        "box": stack("xmin", "ymin", "xmax", "ymax"),
        "size_mm": table.column("size_mm").to_numpy().astype(np.float32),
        **{name: label_codes(table, name) for name in LABELS},
    }
