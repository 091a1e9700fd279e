"""A box as written by an annotator, made a half-open pixel range inside its frame."""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from fsg_jax.endoscopy.index.csv_rows import plain_id
from fsg_jax.endoscopy.readers.reports import Note, Reason, RefusedError

CORNERS = ("xmin", "ymin", "xmax", "ymax")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


class Box(NamedTuple):
    """``xmin <= x < xmax``, ``ymin <= y < ymax``, in pixels."""

    xmin: int
    ymin: int
    xmax: int
    ymax: int


def fit_box(corners: Sequence[str], width: int, height: int) -> tuple[Box, list[Note]]:
    """Returns the box rounded to whole pixels (halves up) and clipped to the frame, and notes on which of these it was.

    Args:
      corners: xmin, ymin, xmax, ymax as written; max is exclusive.
      width: of the frame, in pixels.
      height: likewise.

    Raises:
      RefusedError: a coordinate is no finite number, the corners are swapped, the box is empty (also once rounded) or
        has no pixel in the frame.
    """
    values = [_number(name, text) for name, text in zip(CORNERS, corners, strict=True)]
    if values[0] > values[2] or values[1] > values[3]:
        raise RefusedError(Reason.SWAPPED, _describe(corners))
    whole = Box(*(math.floor(value + 0.5) for value in values))
    if whole.xmin == whole.xmax or whole.ymin == whole.ymax:
        raise RefusedError(Reason.EMPTY_BOX, _describe(corners))
    box = Box(max(whole.xmin, 0), max(whole.ymin, 0), min(whole.xmax, width), min(whole.ymax, height))
    if box.xmin >= box.xmax or box.ymin >= box.ymax:
        raise RefusedError(Reason.OUTSIDE, f"{_describe(corners)} in a frame of {width}x{height}")
    changes = {Note.ROUNDED: list(whole) != values, Note.CLIPPED: box != whole}
    return box, [note for note, changed in changes.items() if changed]


def parse_pixels(text: str, name: str) -> int:
    """Reads a side of a frame: a whole number from 1 to 99,999, also written as ``64.0``.

    Raises:
      RefusedError: `text` is another; the message calls it `name`.
    """
    text = text.strip()
    if not text.isdigit():
        text = plain_id(text) or text
    if not (text.isascii() and text.isdigit() and len(text) < 6 and int(text) > 0):
        raise RefusedError(Reason.FRAME_SIZE, f"{name} is {text[:40]!r}")
    return int(text)


def _number(name: str, text: str) -> float:
    text = text.strip()
    value = float(text) if _NUMBER.fullmatch(text) else math.nan
    if not math.isfinite(value):
        raise RefusedError(Reason.COORDINATE, f"{name} is {text[:40]!r}" if text else f"{name} is missing or empty")
    return value


def _describe(corners: Sequence[str]) -> str:
    return ", ".join(f"{name}={text.strip()}" for name, text in zip(CORNERS, corners, strict=True))
