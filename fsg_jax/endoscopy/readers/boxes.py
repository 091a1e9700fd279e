"""A box as written by an annotator, made a half-open pixel range inside its frame."""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from fsg_jax.endoscopy.readers.reasons import Reason, RefusedError

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_NAMES = ("xmin", "ymin", "xmax", "ymax")


class Box(NamedTuple):
    """``xmin <= x < xmax``, ``ymin <= y < ymax``, in pixels."""

    xmin: int
    ymin: int
    xmax: int
    ymax: int


class FittedBox(NamedTuple):
    """A box inside its frame, and what was done to it."""

    box: Box
    rounded: bool
    clipped: bool


def fit_box(corners: Sequence[str], width: int, height: int) -> FittedBox:
    """The box rounded to whole pixels (halves up) and clipped to the frame.

    Args:
      corners: xmin, ymin, xmax, ymax as written; max is exclusive.
      width: of the frame, in pixels.
      height: likewise.

    Raises:
      RefusedError: a coordinate is no finite number, the corners are swapped, the box is empty (also once rounded) or
        has no pixel in the frame.
    """
    xmin, ymin, xmax, ymax = values = [_number(name, text) for name, text in zip(_NAMES, corners, strict=True)]
    if xmin > xmax or ymin > ymax:
        raise RefusedError(Reason.SWAPPED, _describe(corners))
    whole = Box(*(math.floor(value + 0.5) for value in values))
    if whole.xmin == whole.xmax or whole.ymin == whole.ymax:
        raise RefusedError(Reason.EMPTY_BOX, _describe(corners))
    x, y = (max(whole.xmin, 0), min(whole.xmax, width)), (max(whole.ymin, 0), min(whole.ymax, height))
    if x[0] >= x[1] or y[0] >= y[1]:
        raise RefusedError(Reason.OUTSIDE, f"{_describe(corners)} in a frame of {width}x{height}")
    box = Box(x[0], y[0], x[1], y[1])
    return FittedBox(box, rounded=list(whole) != values, clipped=box != whole)


def parse_pixels(text: str, name: str) -> int:
    """A side of a frame: a whole number from 1 to 99,999.

    Raises:
      RefusedError: `text` is another; the message calls it `name`.
    """
    text = text.strip()
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
    return ", ".join(f"{name}={text.strip()}" for name, text in zip(_NAMES, corners, strict=True))
