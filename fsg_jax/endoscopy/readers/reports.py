"""What is not in an index and why, what is remarkable about the rest, and the CSV files that tell it."""

import re
from collections import Counter
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from fsg_jax.endoscopy.index.csv_rows import writing_rows

DROPPED, NOTED = "dropped.csv", "notes.csv"


class Reason(StrEnum):
    """Why a file, a line or a box was dropped."""

    FILE_NAME = "unexpected file name"
    EMPTY_FILE = "zero-byte file"
    UNREADABLE_FILE = "unreadable file"
    LARGE_FILE = "annotation file too large"
    DOCTYPE = "DOCTYPE in XML"
    BROKEN_XML = "broken XML"
    NO_FRAME_SIZE = "size element missing"
    FRAME_SIZE = "size element not a positive whole number"
    MALFORMED_LINE = "malformed line"

    COORDINATE = "coordinate not a number"
    SWAPPED = "swapped corners"
    EMPTY_BOX = "empty box"
    OUTSIDE = "box outside the frame"
    NOT_POLYP = "box of a non-polyp"
    DUPLICATE_BOX = "duplicate box of one polyp in one frame"

    NO_ID = "object without unique_id"
    OTHER_VIDEO = "unique_id of another video"
    UNKNOWN_POLYP = "polyp not in the table of sizes"
    NO_SIZE = "polyp without size"
    SIZE_TEXT = "size text that cannot be read"
    DUPLICATE_POLYP = "duplicate polyp in the table of sizes"
    CONFLICTING_SIZES = "polyp with conflicting sizes"

    MISSING_FRAME = "missing frame image"
    EMPTY_FRAME = "zero-byte frame image"
    TRUNCATED_FRAME = "truncated frame image"
    UNREADABLE_FRAME = "unreadable frame image"
    OTHER_FRAME_SIZE = "frame image of another size than annotated"
    NOT_RGB = "frame image not RGB"
    FRAME_PATH = "frame path outside the root"


class Note(StrEnum):
    """What is remarkable where nothing was dropped."""

    CLIPPED = "box clipped to the frame"
    ROUNDED = "coordinates rounded to whole pixels"
    NO_ANNOTATION = "frame without an annotation"
    NO_FRAME = "annotation without a lesion whose frame is missing"
    NO_FOLDER = "video without a folder of annotations"
    FRAME_COUNT = "number of frames differs from video_info.csv"
    NO_BOX = "polyp without a box in the index"
    NO_MASK = "frame without a usable mask"
    LABEL_SPELLING = "histology or site in another spelling"
    LABEL_UNKNOWN = "histology or site that is not known, left out"
    LABEL_MISSING = "polyp without a histology or site"
    LABEL_COLUMN = "table without a column of histology or site"
    LABEL_CONFLICT = "polyp with conflicting histology or site, left out"
    LABEL_UNUSED = "labels of a polyp that the dataset lacks"
    LABEL_UNLISTED = "polyp that the table of labels lacks"
    BOX_AND_MASK = "boxes and mask differ by more than 5 % of the frame"


class Event(NamedTuple):
    """One thing dropped or noted: its file (relative to the root), the polyp or line where there is one, and why."""

    file: str
    item: str
    reason: str
    detail: str


class RefusedError(ValueError):
    """Something cannot be used, for `reason`."""

    def __init__(self, reason: Reason | Note, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def event(self, file: str, item: str = "") -> Event:
        """The row of the report."""
        return Event(file, item, self.reason, self.detail)


def harmless(cell: str) -> str:
    """The cell with an apostrophe before it if a spreadsheet would take it for a formula; a number is left as it is.

    A carriage return, which would end the row, becomes ``\\r``.
    """
    cell = cell.replace("\r", "\\r")
    if not cell.startswith(("=", "+", "-", "@", "\t", "\n")) or re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", cell):
        return cell
    return f"'{cell}"


def write_reports(events: Iterable[Event], out: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Writes a row for every event to `DROPPED`, or to `NOTED` if it is a `Note`; returns the counts by reason.

    These files are for people and are never read back: their cells are `harmless`.
    """
    dropped: Counter[str] = Counter()
    noted: Counter[str] = Counter()
    known_notes = frozenset(Note)
    with writing_rows(out / DROPPED, Event._fields) as drops, writing_rows(out / NOTED, Event._fields) as notes:
        for event in events:
            writer, counts = (notes, noted) if event.reason in known_notes else (drops, dropped)
            writer.writerow(map(harmless, event))
            counts[str(event.reason)] += 1
    return dict(dropped.most_common()), dict(noted.most_common())
