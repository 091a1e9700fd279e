"""The size of a polyp from the text of a table."""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from fsg_jax.endoscopy.readers.csv_files import read_rows
from fsg_jax.endoscopy.readers.reasons import Event, Reason, RefusedError

MAX_MM = 200.0
_SIZE = re.compile(
    r"(?P<more>>=|>|\u2265)?\s*(?P<mm>\d+(\.\d+)?|\.\d+)\s*(mm)?\s*(?P<open>[-+~\u2013])?", re.ASCII | re.I
)
_RANGE = re.compile(r"\d\s*(mm)?\s*(-|~|to|\u2013|\u2014)\s*\d", re.I)
_EMPTY = frozenset({"", "-", "na", "n/a", "nan", "none", "null", "unknown"})


class Size(NamedTuple):
    """Size in mm; `censored`: that or larger."""

    mm: float
    censored: bool


def parse_size(text: str) -> Size:
    """The size written as ``6``, ``6mm`` or ``6.5 mm``; ``15mm-``, ``15+``, ``>15`` and ``>=15`` are censored.

    Raises:
      RefusedError: there is none (``NO_SIZE``), or it cannot be read (``SIZE_TEXT``): a range such as ``8-9mm``, an
        upper bound, another unit, other text, or not in (0, 200] mm.
    """
    plain = unicodedata.normalize("NFKC", text).strip()
    if plain.lower() in _EMPTY:
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
    """The polyps of a dataset by id: those with a size, those refused, and what was odd about the table."""

    sizes: dict[str, Size] = field(default_factory=dict)
    refused: dict[str, RefusedError] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    table: str = "the table of sizes"

    def size(self, polyp_id: str) -> Size:
        """The size of one polyp.

        Raises:
          RefusedError: it is not in the table, or has no size there that can be used.
        """
        if (size := self.sizes.get(polyp_id)) is not None:
            return size
        raise self.refused.get(polyp_id) or RefusedError(Reason.UNKNOWN_POLYP, f"{polyp_id!r} is not in {self.table}")


def read_sizes(path: Path, id_column: str, size_column: str, parse_id: Callable[[str], str] = str) -> PolypSizes:
    """The table of sizes. Of two rows for one polyp the first is kept; where their sizes differ the polyp is refused.

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
    texts: dict[str, str] = {}
    for line, row in read_rows(path, (id_column, size_column)):
        try:
            _add(table, texts, parse_id(row[id_column]), row[size_column])
        except RefusedError as error:
            table.events.append(error.event(path.name, f"line {line}"))
        except ValueError as error:
            table.events.append(Event(path.name, f"line {line}", Reason.MALFORMED_LINE, str(error)))
    return table


def _add(table: PolypSizes, texts: dict[str, str], polyp_id: str, text: str) -> None:
    if not polyp_id:
        raise ValueError("the polyp has no id")
    if polyp_id not in texts:
        texts[polyp_id] = text
        try:
            table.sizes[polyp_id] = parse_size(text)
        except RefusedError as error:
            table.refused[polyp_id] = error
        return
    if texts[polyp_id] != text:
        table.sizes.pop(polyp_id, None)
        detail = f"{polyp_id!r} has sizes {texts[polyp_id]!r} and {text!r} in {table.table}"
        table.refused[polyp_id] = RefusedError(Reason.CONFLICTING_SIZES, detail)
    raise RefusedError(Reason.DUPLICATE_POLYP, f"{polyp_id!r} again, with size {text!r}")
