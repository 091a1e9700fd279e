"""The boxes of Kvasir-SEG: the JSON that is distributed, or a CSV beside resized frames."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fsg_jax.endoscopy.readers.csv_files import read_rows
from fsg_jax.endoscopy.readers.layout import list_names
from fsg_jax.endoscopy.readers.reasons import Event, Reason

CSV_FILE = "index.csv"
JSON_FILES = ("kavsir_bboxes.json", "kvasir_bboxes.json")
"""As distributed, and as one would spell it."""

_COLUMNS = ("file", "kvasir_id", "orig_w", "orig_h", "boxes")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


class Entry(NamedTuple):
    """One frame: its boxes' corners as written, in pixels of a frame of `width` x `height`."""

    kvasir_id: str
    image: str
    width: int
    height: int
    boxes: tuple[tuple[str, ...], ...]


def read_entries(root: Path) -> tuple[list[Entry], list[Event]]:
    """The frames by their file of boxes, and what was dropped of it.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it lacks a column, or is no JSON object.
    """
    if (file := root / CSV_FILE).is_file():
        return _read_csv(file)
    for name in JSON_FILES:
        if (file := root / name).is_file():
            return _read_json(file)
    raise FileNotFoundError(f"{root}: found no boxes; expected {CSV_FILE}, or {JSON_FILES[0]} with images/ and masks/")


def _read_csv(file: Path) -> tuple[list[Entry], list[Event]]:
    entries: dict[str, Entry] = {}
    events: list[Event] = []
    for line, row in read_rows(file, _COLUMNS):
        name = row["kvasir_id"]
        try:
            if not name or name in entries:
                raise ValueError(f"kvasir_id {name!r} is empty or in an earlier line too")
            boxes = [dict(zip(_CORNERS, box, strict=True)) for box in json.loads(row["boxes"])]
            entries[name] = _entry(name, row["file"], row["orig_w"], row["orig_h"], boxes)
        except (ValueError, TypeError, RecursionError) as error:
            events.append(Event(file.name, f"line {line}", Reason.MALFORMED_LINE, f"{error}"))
    return list(entries.values()), events


def _read_json(file: Path) -> tuple[list[Entry], list[Event]]:
    try:
        listed: dict[str, Any] = dict(json.loads(file.read_bytes()))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{file}: not a JSON object of boxes by frame: {error}") from error
    images = {Path(name).stem: name for name in list_names(file.parent / "images")}
    events = [Event(f"images/{images[name]}", name, Reason.NO_ANNOTATION, "") for name in images.keys() - listed.keys()]
    entries = []
    for name, found in listed.items():
        image = f"images/{images.get(name, name + '.jpg')}"
        try:
            entries.append(_entry(name, image, found["width"], found["height"], found["bbox"]))
        except (KeyError, ValueError, TypeError, OverflowError) as error:
            events.append(Event(file.name, name, Reason.MALFORMED_LINE, f"{type(error).__name__}: {error}"))
    return entries, events


def _entry(name: str, image: str, width: Any, height: Any, boxes: Any) -> Entry:
    sides = int(width), int(height)
    if min(sides) < 1:
        raise ValueError(f"the frame has {sides[0]}x{sides[1]} pixels")
    return Entry(name, image, *sides, tuple(_corners(box) for box in boxes))


def _corners(box: Any) -> tuple[str, ...]:
    """The corners as text, ``""`` where there is none."""
    return tuple(str(box.get(name, "")) if isinstance(box, Mapping) else "" for name in _CORNERS)
