"""The lines of a SUN annotation file."""

import re
from typing import NamedTuple

from fsg_jax.endoscopy.readers.reasons import Reason, RefusedError

_COMMA = re.compile(r"\s*,\s*")
_CLASSES = {"0": 0, "1": 1}


class SunBox(NamedTuple):
    """One box: its line, from 1; xmin, ymin, xmax, ymax as written; and its class, 0 a polyp, 1 none."""

    line: int
    corners: tuple[str, str, str, str]
    class_id: int


def parse_lines(data: bytes) -> tuple[dict[str, list[SunBox]], list[tuple[int, RefusedError]]]:
    """The boxes of each file name in the order of the lines, and the lines or boxes that are malformed.

    A line is ``FILENAME xmin,ymin,xmax,ymax,class`` with any number of boxes; a name may come on several lines. Blank
    lines are passed over.
    """
    boxes: dict[str, list[SunBox]] = {}
    malformed: list[tuple[int, RefusedError]] = []
    for number, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").splitlines(), start=1):
        try:
            name, texts = _split(raw)
        except RefusedError as error:
            malformed.append((number, error))
            continue
        for text in texts:
            try:
                boxes.setdefault(name, []).append(_box(number, text))
            except RefusedError as error:
                malformed.append((number, error))
    return boxes, malformed


def _split(raw: bytes) -> tuple[str, list[str]]:
    """File name and boxes of one line; no boxes if it is blank."""
    try:
        tokens = _COMMA.sub(",", raw.decode()).split()
    except UnicodeDecodeError as error:
        raise RefusedError(Reason.MALFORMED_LINE, f"not UTF-8: {raw[:60]!r}") from error
    if not tokens:
        return "", []
    if len(tokens) == 1 or "," in tokens[0]:
        raise RefusedError(Reason.MALFORMED_LINE, f"expected a file name and boxes, found {' '.join(tokens)[:80]!r}")
    if "/" in tokens[0] or "\\" in tokens[0]:
        raise RefusedError(Reason.MALFORMED_LINE, f"expected a file name without folders, found {tokens[0][:80]!r}")
    return tokens[0], tokens[1:]


def _box(line: int, text: str) -> SunBox:
    parts = text.split(",")
    if len(parts) != 5 or parts[4] not in _CLASSES:
        expected = "expected xmin,ymin,xmax,ymax,class with class 0 or 1"
        raise RefusedError(Reason.MALFORMED_LINE, f"{expected}, found {text[:80]!r}")
    return SunBox(line, (parts[0], parts[1], parts[2], parts[3]), _CLASSES[parts[4]])
