"""Kvasir-SEG: real polyps with boxes and masks, without sizes, histology and site.

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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64

from fsg_jax._files import check_file, parse_json, read_json
from fsg_jax.data.extras import import_extra
from fsg_jax.endoscopy.index.csv_rows import plain_id, read_rows
from fsg_jax.endoscopy.index.schema import Table, from_rows, natural_key
from fsg_jax.endoscopy.readers import layout
from fsg_jax.endoscopy.readers.boxes import CORNERS, Box, parse_pixels
from fsg_jax.endoscopy.readers.layout import Chunk, Frame, Part
from fsg_jax.endoscopy.readers.lesion_labels import PolypLabels
from fsg_jax.endoscopy.readers.reports import Event, Note, Reason, RefusedError
from fsg_jax.endoscopy.readers.sizes import PolypSizes, Size
from fsg_jax.endoscopy.readers.verify import MAX_BYTES as MAX_IMAGE
from fsg_jax.endoscopy.readers.verify import Verify, check_frame

CSV_FILE = "index.csv"
JSON_FILES = ("kavsir_bboxes.json", "kvasir_bboxes.json")
"""As distributed, and as one would spell it."""

MAX_BYTES = 4 << 20
"""Of the file of boxes."""

MAX_BOXES = 1000
"""Of a frame."""

FRAMES_PER_CHUNK = 128
MASK_TOLERANCE = 0.05
"""The share of the frame by which an edge of the boxes may be off that of the mask without a note."""

_COLUMNS = ("file", "kvasir_id", "orig_w", "orig_h", "boxes")
_NO_SIZE = Size(None, False)


class Entry(NamedTuple):
    """One frame: its boxes' corners as written, in pixels of a frame of `width` x `height`."""

    kvasir_id: str
    image: str
    width: int
    height: int
    boxes: tuple[tuple[str, ...], ...]


def open_kvasir(root: Path, *, name: str = "kvasir_seg", verify: Verify = "decode") -> "Kvasir":
    """Opens the dataset under `root`, ready to be indexed: one row a box.

    Polyps are ``ID_1``, ``ID_2`` and so on in the order of the boxes; video, patient and frame are ``ID``. A frame of
    another size than its boxes were drawn in is taken to be resized: boxes are scaled, outwards to whole pixels. A
    frame without a mask that can be used is kept, and noted.

    Args:
      root: the folder that holds the file of boxes.
      name: the dataset's name in the index.
      verify: what is done with the image of every frame, see `check_frame`; its header is read in any case.

    Raises:
      FileNotFoundError: the folder or its file of boxes is missing.
      ValueError: the file of boxes cannot be read, or two images have one name but for the suffix.
    """
    root = layout.check_root(Path(root))
    found = [file for file in (root / CSV_FILE, *(root / name for name in JSON_FILES)) if file.exists()]
    if not found:
        raise FileNotFoundError(f"{root}: expected {CSV_FILE}, or {JSON_FILES[0]} with images/ and masks/")
    check_file(found[0], MAX_BYTES)
    entries, events = _read_csv(found[0]) if found[0].name == CSV_FILE else _read_json(found[0])
    entries.sort(key=lambda entry: natural_key(entry.kvasir_id))
    tables = PolypSizes(), PolypLabels()
    return Kvasir(name, root, verify, *tables, {}, layout.is_synthetic(root), events, tuple(entries))


def read_kvasir(root: str | os.PathLike) -> tuple[Table, list[Event]]:
    """Returns the rows of an index of Kvasir-SEG, and what was dropped or noted; errors as in `open_kvasir`."""
    kvasir = open_kvasir(Path(root))
    parts = [kvasir.read(chunk) for chunk in kvasir.chunks()]
    events = [event for part in parts for event in part.events]
    return from_rows(row for part in parts for row in part.rows), kvasir.events + events


@dataclass(frozen=True)
class Kvasir(layout.Layout):
    """Kvasir-SEG on disk: its frames in natural order of their ids."""

    entries: tuple[Entry, ...]

    def chunks(self) -> Iterator[Chunk]:
        """The frames in chunks."""
        for start in range(0, len(self.entries), FRAMES_PER_CHUNK):
            some = self.entries[start : start + FRAMES_PER_CHUNK]
            yield Chunk(f"frames.{start:06d}", "", some, layout.fingerprint(some))

    def read(self, chunk: Chunk) -> Part:
        """Reads the boxes, images and masks of the chunk."""
        part = Part()
        for entry in chunk.files:
            with part.dropping(entry.image, entry.kvasir_id):
                self._read_entry(entry, part)
        return part

    def _read_entry(self, entry: Entry, part: Part) -> None:
        part.counts["frames with boxes" if entry.boxes else "frames without lesion"] += 1
        if not entry.boxes:
            raise RefusedError(Note.NO_ANNOTATION, "no boxes")
        path = PurePosixPath(entry.image)
        if len(path.parts) < 2 or path.is_absolute() or ".." in path.parts:
            raise RefusedError(Reason.FRAME_PATH, f"{entry.image!r} is not below {self.root}")
        part.counts["images"] += 1
        shape = check_frame(self.root / entry.image, self.verify)
        boxes: dict[str, Box] = {}
        for number, corners in enumerate(entry.boxes, start=1):
            polyp = f"{entry.kvasir_id}_{number}"
            with part.dropping(entry.image, polyp):
                boxes[polyp] = part.fit_box(corners, (entry.width, entry.height), entry.image, polyp)
        if boxes:
            mask = self._mask(entry, shape, list(boxes.values()), part)
            frame = Frame(entry.kvasir_id, entry.kvasir_id, entry.image, *shape, mask)
            part.rows += [self.row(frame, polyp, _scale(box, entry, shape), _NO_SIZE) for polyp, box in boxes.items()]

    def _mask(self, entry: Entry, shape: tuple[int, int], boxes: list[Box], part: Part) -> str | None:
        """The mask in the folder masks beside that of the image, as JPEG or PNG; None if there is none to use.

        Notes that, and a mask that is not where the boxes are.
        """
        image = PurePosixPath(entry.image)
        named = image.parent.parent / "masks" / image.name
        found = (path for path in (named, named.with_suffix(".png")) if (self.root / path).is_file())
        mask = str(next(found, named))
        with part.dropping(mask, entry.kvasir_id):
            extent = _mask_extent(self.root / mask, shape)
            if (off := float(np.abs(_extent(entry, boxes) - extent).max())) > MASK_TOLERANCE:
                detail = f"an edge is off by {off:.1%} of the frame"
                part.events.append(Event(entry.image, entry.kvasir_id, Note.BOX_AND_MASK, detail))
            return mask
        return None


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
        raise RefusedError(Note.NO_MASK, "no such file")
    try:
        check_file(path, MAX_IMAGE)
        with pillow.open(path) as image:
            found = image.size  # before the pixels are read: that of the frame is bounded
            foreground = np.asarray(image.convert("L")) > 127 if found == shape else None
    except Exception as error:  # a damaged image can raise nearly anything
        raise RefusedError(Note.NO_MASK, f"{type(error).__name__}: {error}") from error
    if foreground is None:
        raise RefusedError(Note.NO_MASK, f"{found[0]}x{found[1]}; the frame has {shape[0]}x{shape[1]}")
    y, x = np.nonzero(foreground)
    if not len(x):
        raise RefusedError(Note.NO_MASK, "no pixel is foreground")
    return np.array([x.min(), y.min(), x.max() + 1, y.max() + 1]) / (*shape, *shape)


def _read_csv(file: Path) -> tuple[list[Entry], list[Event]]:
    entries: dict[str, Entry] = {}
    events: list[Event] = []
    for line, row in read_rows(file, _COLUMNS):
        name = plain_id(row["kvasir_id"])
        try:
            if not name or name in entries:
                raise ValueError(f"kvasir_id {row['kvasir_id'][:40]!r} is none or in an earlier line too")
            boxes = [dict(zip(CORNERS, box, strict=True)) for box in parse_json(row["boxes"], "boxes")]
            entries[name] = _entry(name, row["file"], row["orig_w"], row["orig_h"], boxes)
        except (ValueError, TypeError) as error:
            events.append(Event(file.name, f"line {line}", Reason.MALFORMED_LINE, f"{error}"))
    return list(entries.values()), events


def _read_json(file: Path) -> tuple[list[Entry], list[Event]]:
    listed = read_json(file)
    images: dict[str, str] = {}
    for image in layout.list_names(file.parent / "images"):
        if images.setdefault(Path(image).stem, image) != image:
            raise ValueError(f"{file.parent}/images: expected one image a frame, found {Path(image).stem}.* twice")
    events = [Event(f"images/{images[name]}", name, Note.NO_ANNOTATION, "") for name in images if name not in listed]
    entries = []
    for name, found in listed.items():
        image = f"images/{images.get(name, name + '.jpg')}"
        try:
            entries.append(_entry(name, image, found["width"], found["height"], found["bbox"]))
        except (KeyError, ValueError, TypeError) as error:
            events.append(Event(file.name, name, Reason.MALFORMED_LINE, f"{type(error).__name__}: {error}"))
    return entries, events


def _entry(name: str, image: str, width: Any, height: Any, boxes: Any) -> Entry:
    if not plain_id(name) or not isinstance(boxes, list) or len(boxes) > MAX_BOXES:
        raise ValueError(f"no id, or no list of at most {MAX_BOXES} boxes")
    sides = parse_pixels(str(width), "the width"), parse_pixels(str(height), "the height")
    corners = [[str(box.get(name, "")) if isinstance(box, Mapping) else "" for name in CORNERS] for box in boxes]
    return Entry(name, image, *sides, tuple(map(tuple, corners)))
