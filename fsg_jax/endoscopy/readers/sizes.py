"""Tables that come with a dataset: the sizes of its polyps, and the patients of its videos."""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from fsg_jax.endoscopy.index.csv_rows import NO_VALUE, plain_id, read_rows
from fsg_jax.endoscopy.readers.reports import Event, Reason, RefusedError

MAX_MM = 200.0
_SIZE = re.compile(
    r"(?P<more>>=|>|\u2265)?\s*(?P<mm>\d+(\.\d+)?|\.\d+)\s*(mm)?\s*(?P<open>[-+~\u2013])?", re.ASCII | re.I
)
_RANGE = re.compile(r"\d\s*(mm)?\s*(-|~|to|\u2013|\u2014)\s*\d", re.I)


class Size(NamedTuple):
    """Size in mm, None where a dataset has no sizes; `censored`: that or larger."""

    mm: float | None
    censored: bool


def parse_size(text: str) -> Size:
    """Reads a size written as ``6``, ``6mm`` or ``6.5 mm``; ``15mm-``, ``15+``, ``>15`` and ``>=15`` are censored.

    Raises:
      RefusedError: there is none (``NO_SIZE``), or it cannot be read (``SIZE_TEXT``): a range such as ``8-9mm``, an
        upper bound, another unit, other text, or not in (0, 200] mm.
    """
    plain = unicodedata.normalize("NFKC", text).strip()
    if plain.lower() in NO_VALUE:
        raise RefusedError(Reason.NO_SIZE, f"the size is {text!r}")
    match = _SIZE.fullmatch(plain)
    if match is None:
        kind = "a range" if _RANGE.search(plain) else "not a size"
        raise RefusedError(Reason.SIZE_TEXT, f"{text!r} is {kind}; expected such as 6, 6.5mm, 15mm- or >=15")
    millimetres = float(match["mm"])
    if not 0 < millimetres <= MAX_MM:
        raise RefusedError(Reason.SIZE_TEXT, f"{text!r} is not in (0, {MAX_MM:g}] mm")
    return Size(millimetres, bool(match["more"] or match["open"]))


@dataclass(frozen=True)
class PolypSizes:
    """The size of every polyp of a dataset, or why it is refused, and what was odd about the table."""

    polyps: dict[str, Size | RefusedError] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    table: str = "the table of sizes"

    def size(self, polyp_id: str) -> Size:
        """The size of one polyp.

        Raises:
          RefusedError: it is not in the table, or has no size there that can be used.
        """
        found = self.polyps.get(polyp_id)
        if isinstance(found, Size):
            return found
        raise found or RefusedError(Reason.UNKNOWN_POLYP, f"{polyp_id!r} is not in {self.table}")


def read_sizes(path: Path, id_column: str, size_column: str, parse_id: Callable[[str], str] = plain_id) -> PolypSizes:
    """Reads a table of sizes.

    Of two rows for one polyp the first is kept; where their sizes differ the polyp is refused.

    Args:
      path: a CSV.
      id_column: its column of polyp ids.
      size_column: its column of sizes, read by `parse_size`.
      parse_id: makes the polyp id of an index from the text; its ValueError drops the row.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a column is missing, or the file is no CSV.
    """
    table = PolypSizes(table=path.name)
    texts: dict[str, list[str]] = {}
    for line, row in read_rows(path, (id_column, size_column)):
        item, text = f"line {line}", row[size_column]
        try:
            if not (polyp := parse_id(row[id_column])):
                raise ValueError("the polyp has no id")
        except ValueError as error:
            table.events.append(Event(path.name, item, Reason.MALFORMED_LINE, str(error)))
            continue
        if polyp in texts:
            detail = f"{polyp!r} again, with size {text!r}"
            table.events.append(Event(path.name, item, Reason.DUPLICATE_POLYP, detail))
        texts.setdefault(polyp, []).append(text)
    for polyp, (first, *rest) in texts.items():
        try:
            if others := [text for text in rest if _meaning(text) != _meaning(first)]:
                detail = f"{polyp!r} has sizes {first!r} and {others[-1]!r} in {path.name}"
                raise RefusedError(Reason.CONFLICTING_SIZES, detail)
            table.polyps[polyp] = parse_size(first)
        except RefusedError as error:
            table.polyps[polyp] = error
    return table


def _meaning(text: str) -> Size | str:
    """The size, in which ``6`` and ``6.0`` are one, or the text if it is none."""
    try:
        return parse_size(text)
    except RefusedError:
        return text


def read_patients(path: Path) -> dict[str, str]:
    """Reads the patient of each video from a CSV with columns ``video_id`` and ``patient_id``.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a column is missing, a cell is empty, or a video has two patients.
    """
    patients: dict[str, str] = {}
    for line, row in read_rows(path, ("video_id", "patient_id")):
        video, patient = plain_id(row["video_id"]), plain_id(row["patient_id"])
        if not video or not patient:
            raise ValueError(f"{path}, line {line}: expected a video_id and a patient_id, found {row}")
        if patients.setdefault(video, patient) != patient:
            found = f"{patients[video]!r} and {patient!r}"
            raise ValueError(f"{path}, line {line}: expected one patient of video {video!r}, found {found}")
    return patients
