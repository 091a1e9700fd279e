"""Kvasir-SEG: real polyps with boxes and masks, without sizes.

As distributed, or resized:

    ROOT/images/{ID}.jpg   ROOT/masks/{ID}.jpg   ROOT/kavsir_bboxes.json
    ROOT/{...}/images/{name}.jpg   ROOT/{...}/masks/{name}.jpg   ROOT/index.csv: file, kvasir_id, orig_w, orig_h, boxes

There are no patients, so near-duplicate frames may lie on both sides of any split, such as that into the folders train,
validation and test of the resized copy. Boxes and masks are not always of one extent: where an edge differs by more
than 5 % of the frame, the frame is kept and noted.

Source: Jha et al. 2020, "Kvasir-SEG: A Segmented Polyp Dataset", MMM.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Float64

from fsg_jax.data.extras import import_extra
from fsg_jax.endoscopy.index.schema import Table, from_rows, natural_key
from fsg_jax.endoscopy.readers.boxes import Box, fit_box
from fsg_jax.endoscopy.readers.kvasir_boxes import Entry, read_entries
from fsg_jax.endoscopy.readers.layout import Chunk, Frame, Layout, Part, check_root, fingerprint, is_synthetic
from fsg_jax.endoscopy.readers.reasons import Event, Reason, RefusedError
from fsg_jax.endoscopy.readers.sizes import PolypSizes
from fsg_jax.endoscopy.readers.verify import Verify, check_frame

FRAMES_PER_CHUNK = 128
MASK_TOLERANCE = 0.05
"""The share of the frame by which an edge of the boxes may be off that of the mask without a note."""


def open_kvasir(root: Path, *, name: str = "kvasir_seg", verify: Verify = "decode") -> "Kvasir":
    """The dataset under `root`, ready to be indexed: one row a box.

    Polyps are ``ID_1``, ``ID_2`` and so on in the order of the boxes; video, patient and frame are ``ID``. A frame of
    another size than its boxes were drawn in is taken to be resized: boxes are scaled, outwards to whole pixels. A
    frame without a mask that can be used is kept, and noted.

    Args:
      root: the folder that holds the file of boxes.
      name: the dataset's name in the index.
      verify: what is done with the image of every frame, see `check_frame`; its header is read in any case.

    Raises:
      FileNotFoundError: the folder or its file of boxes is missing.
      ValueError: the file of boxes cannot be read.
    """
    root = check_root(Path(root))
    entries, events = read_entries(root)
    entries.sort(key=lambda entry: natural_key(entry.kvasir_id))
    return Kvasir(name, root, verify, PolypSizes(events=events), {}, is_synthetic(root), tuple(entries))


def read_kvasir(root: str | os.PathLike) -> tuple[Table, list[Event]]:
    """The rows of an index of Kvasir-SEG, and what was dropped or noted; arguments and errors as `open_kvasir`."""
    layout = open_kvasir(Path(root))
    parts = [layout.read(chunk) for chunk in layout.chunks()]
    events = [event for part in parts for event in part.events]
    return from_rows(row for part in parts for row in part.rows), layout.events() + events


@dataclass(frozen=True)
class Kvasir(Layout):
    """Kvasir-SEG on disk: its frames in natural order of their ids."""

    entries: tuple[Entry, ...]

    def count_files(self) -> int:
        """Number of annotated frames."""
        return len(self.entries)

    def chunks(self) -> Iterator[Chunk]:
        """The frames in chunks."""
        for start in range(0, len(self.entries), FRAMES_PER_CHUNK):
            some = self.entries[start : start + FRAMES_PER_CHUNK]
            yield Chunk(f"frames.{start:06d}", str(start), tuple(entry.image for entry in some), fingerprint(some))

    def read(self, chunk: Chunk) -> Part:
        """Reads the boxes, images and masks of the chunk."""
        part, start = Part(), int(chunk.group)
        for entry in self.entries[start : start + len(chunk.files)]:
            try:
                self._read_entry(entry, part)
            except RefusedError as error:
                part.events.append(error.event(entry.image, entry.kvasir_id))
        part.counts["files"] += len(chunk.files)
        return part

    def _read_entry(self, entry: Entry, part: Part) -> None:
        part.counts["frames with boxes" if entry.boxes else "frames without lesion"] += 1
        if not entry.boxes:
            raise RefusedError(Reason.NO_ANNOTATION, "no boxes")
        if not _is_below(entry.image):
            raise RefusedError(Reason.FRAME_PATH, f"{entry.image!r} is not below {self.root}")
        part.counts["images"] += 1
        shape = check_frame(self.root / entry.image, self.verify)
        if boxes := _boxes(entry, part):
            mask = self._mask(entry, shape, list(boxes.values()), part)
            frame = Frame(entry.kvasir_id, entry.kvasir_id, entry.image, *shape)
            part.rows += [self._row(frame, polyp, _scale(box, entry, shape), mask) for polyp, box in boxes.items()]

    def _row(self, frame: Frame, polyp: str, box: Box, mask: str | None) -> dict[str, Any]:
        ids = {"dataset": self.name, "patient_id": frame.video_id, "polyp_id": polyp, "mask_path": mask}
        others = {"size_mm": None, "size_censored": False, "synthetic": self.synthetic}
        return {**frame._asdict(), **box._asdict(), **ids, **others}

    def _mask(self, entry: Entry, shape: tuple[int, int], boxes: list[Box], part: Part) -> str | None:
        """The path of the mask, None if there is none to use; notes that, and a mask that is not where boxes are."""
        path = self._mask_path(PurePosixPath(entry.image))
        try:
            extent = _mask_extent(self.root / path, shape)
        except RefusedError as error:
            part.events.append(error.event(path, entry.kvasir_id))
            return None
        if (off := float(np.abs(_extent(entry, boxes) - extent).max())) > MASK_TOLERANCE:
            detail = f"an edge is off by {off:.1%} of the frame"
            part.events.append(Event(entry.image, entry.kvasir_id, Reason.BOX_AND_MASK, detail))
        return path

    def _mask_path(self, image: PurePosixPath) -> str:
        """The file in the folder masks beside that of the image, as JPEG or PNG."""
        named = image.parent.parent / "masks" / image.name
        found = (path for path in (named, named.with_suffix(".png")) if (self.root / path).is_file())
        return str(next(found, named))


def _is_below(path: str) -> bool:
    """Whether the path stays in the root and names a file in a folder."""
    pure = PurePosixPath(path)
    return len(pure.parts) > 1 and not pure.is_absolute() and ".." not in pure.parts


def _boxes(entry: Entry, part: Part) -> dict[str, Box]:
    """By polyp, the boxes that can be used, in the pixels that they were drawn in."""
    boxes: dict[str, Box] = {}
    for number, corners in enumerate(entry.boxes, start=1):
        polyp = f"{entry.kvasir_id}_{number}"
        try:
            fitted = fit_box(corners, entry.width, entry.height)
        except RefusedError as error:
            part.events.append(error.event(entry.image, polyp))
            continue
        part.note_box(fitted, entry.image, polyp)
        boxes[polyp] = fitted.box
    return boxes


def _scale(box: Box, entry: Entry, shape: tuple[int, int]) -> Box:
    """The pixels of a frame of `shape` (width, height) that the box touches."""
    xmin, xmax = box.xmin * shape[0] // entry.width, math.ceil(box.xmax * shape[0] / entry.width)
    ymin, ymax = box.ymin * shape[1] // entry.height, math.ceil(box.ymax * shape[1] / entry.height)
    return Box(xmin, ymin, min(xmax, shape[0]), min(ymax, shape[1]))


def _extent(entry: Entry, boxes: list[Box]) -> Float64[np.ndarray, "4"]:
    """Left, top, right and bottom edge of all boxes together, in [0, 1] of the frame."""
    corners = np.array(boxes) / (entry.width, entry.height, entry.width, entry.height)
    return np.concatenate([corners[:, :2].min(axis=0), corners[:, 2:].max(axis=0)])


def _mask_extent(path: Path, shape: tuple[int, int]) -> Float64[np.ndarray, "4"]:
    """As `_extent`, of the foreground of a mask of `shape` (width, height)."""
    pillow = import_extra("PIL.Image", "endoscopy")
    if not path.is_file():
        raise RefusedError(Reason.NO_MASK, "no such file")
    try:
        with pillow.open(path) as image:
            found, foreground = image.size, np.asarray(image.convert("L")) > 127
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise RefusedError(Reason.NO_MASK, f"{type(error).__name__}: {error}") from error
    if found != shape:
        raise RefusedError(Reason.NO_MASK, f"{found[0]}x{found[1]}; the frame has {shape[0]}x{shape[1]}")
    y, x = np.nonzero(foreground)
    if not len(x):
        raise RefusedError(Reason.NO_MASK, "no pixel is foreground")
    return np.array([x.min(), y.min(), x.max() + 1, y.max() + 1]) / (*shape, *shape)
