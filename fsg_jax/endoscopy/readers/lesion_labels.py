"""Histology and site of polyps, from tables in which they are spelled in many ways.

REAL-Colon describes six classes of ``histology_class``, which are our `HISTOLOGIES`, and does not list the values of
``site``. Users of the dataset report ``caecum`` beside ``cecum``, ``trasnverse`` beside ``transverse``, and ``sigma``.
The published file was not at hand: what it has besides is counted and reported by its spelling, not guessed.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fsg_jax.endoscopy.index.csv_rows import NO_VALUE, plain_id, read_rows
from fsg_jax.endoscopy.index.label_codes import LABELS
from fsg_jax.endoscopy.readers.reports import Event, Note

_SPELLINGS: dict[str, dict[str, tuple[str, ...]]] = {
    "histology": {
        "AD": (
            *("adenoma", "adenomatous polyp", "tubular adenoma", "tubulovillous adenoma", "villous adenoma"),
            *("low grade adenoma", "high grade adenoma"),
        ),
        "HP": ("hyperplastic", "hyperplastic polyp"),
        "SSL": ("sessile serrated lesion", "sessile serrated adenoma", "sessile serrated polyp", "ssa", "ssp", "ssa p"),
        "TSA": ("traditional serrated adenoma",),
        "NO POLYP": ("nopolyp", "not polyp", "not a polyp"),
    },
    "site": {
        "cecum": ("caecum", "coecum"),
        "ascending": ("ascendens",),
        "hepatic flexure": ("hepatic", "right flexure", "right colic flexure"),
        "transverse": ("trasnverse", "transversum"),
        "splenic flexure": ("splenic", "left flexure", "left colic flexure"),
        "descending": ("descendens",),
        "sigmoid": ("sigma", "sigmoideum"),
    },
}
_GAPS = re.compile(r"[\s_/\-\u2010-\u2014]+")


def _key(text: str) -> str:
    """A spelling without what does not matter: case, hyphens and the like, and the word colon."""
    words = _GAPS.sub(" ", unicodedata.normalize("NFKC", text).casefold()).split()
    return " ".join(word for word in words if word != "colon")


_VALUES = {
    name: {_key(text): value for value in values for text in (value, *_SPELLINGS[name].get(value, ()))}
    for name, values in LABELS.items()
}


def parse_label(name: str, text: str) -> str | None:
    """The value of ``LABELS[name]`` that the text spells, None where it says that there is none.

    Upper and lower case, hyphens, underscores, slashes and the word ``colon`` do not matter, so that ``Ascending
    Colon`` is ``ascending``. Adenomas of any kind and grade but the serrated ones are ``AD``.

    Args:
      name: ``histology`` or ``site``.
      text: such as ``Caecum``; ``""``, ``NA`` and the like are no value, but ``NO POLYP`` is one.

    Raises:
      ValueError: it is no spelling that is known.
    """
    if text.strip().casefold() in NO_VALUE:
        return None
    if (key := _key(text)) not in _VALUES[name]:
        raise ValueError(f"{name}: expected one of {', '.join(LABELS[name])}, or nothing, found {text[:60]!r}")
    return _VALUES[name][key]


@dataclass(frozen=True)
class PolypLabels:
    """Histology and site of the polyps of a dataset as far as they are known, and what was odd about the table."""

    polyps: dict[str, dict[str, str | None]] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)

    def of(self, polyp_id: str) -> dict[str, str | None]:
        """The value of every name in `LABELS`, None where it is not known."""
        return dict.fromkeys(LABELS) | self.polyps.get(polyp_id, {})


def read_published_labels(path: Path, id_column: str, columns: Mapping[str, str]) -> PolypLabels:
    """Reads the labels in a table that comes with a dataset; whatever is wrong with one leaves it unknown and is noted.

    Noted are another spelling than ours, an unknown one, a label that is missing, a column that is, and two rows that
    give a polyp different labels. Rows without an id are passed over: `read_sizes` reports them.

    Args:
      path: a CSV.
      id_column: its column of polyp ids.
      columns: its column of each name in `LABELS`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: there is no column of ids, or the file is no CSV.
    """
    found = PolypLabels()
    absent: set[str] = set()
    conflicts: set[tuple[str, str]] = set()
    for line, row in read_rows(path, (id_column,), tuple(columns.values())):
        if not (polyp := plain_id(row[id_column])):
            continue
        absent |= {name for name in columns if columns[name] not in row}
        given = {name: row[column] for name, column in columns.items() if column in row}
        labels = {name: _note_label(path, line, polyp, name, text, found.events) for name, text in given.items()}
        for name, value in labels.items():
            if value != found.polyps.setdefault(polyp, labels)[name] and (polyp, name) not in conflicts:
                conflicts.add((polyp, name))
                detail = f"{polyp!r} has {name} {found.polyps[polyp][name]!r} and {value!r}"
                found.events.append(Event(path.name, f"line {line}", Note.LABEL_CONFLICT, detail))
    for polyp, name in conflicts:
        found.polyps[polyp][name] = None
    found.events[:0] = [Event(path.name, columns[name], Note.LABEL_COLUMN, "") for name in LABELS if name in absent]
    return found


def _note_label(path: Path, line: int, polyp: str, name: str, text: str, events: list[Event]) -> str | None:
    """The value that the text spells, None for an unknown one; says what is odd about it in `events`."""
    note, detail, value = None, "", None
    try:
        value = parse_label(name, text)
        if value is None:
            note, detail = Note.LABEL_MISSING, f"{polyp!r} has no {name}"
        elif value != text:
            note, detail = Note.LABEL_SPELLING, f"{polyp!r}: {name} {text!r} is {value!r}"
    except ValueError as error:
        note, detail = Note.LABEL_UNKNOWN, f"{polyp!r}: {error}"
    if note is not None:
        events.append(Event(path.name, f"line {line}", note, detail))
    return value


def read_own_labels(
    path: Path, id_column: str, parse_id: Callable[[str], str], polyp_ids: Iterable[str]
) -> PolypLabels:
    """Reads the labels in a table that the user wrote, where what is wrong is an error.

    Noted are another spelling than ours, a label that is missing, and polyps that only the table or only the dataset
    has.

    Args:
      path: a CSV with columns `id_column`, ``histology`` and ``site``; a cell may be empty.
      id_column: its column of polyp ids.
      parse_id: makes the polyp id of an index from the text, or raises ValueError.
      polyp_ids: the polyps of the dataset.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a column is missing, the file is no CSV, an id or a label cannot be read, two rows give a polyp
        different labels, or the table has none of the polyps.
    """
    found, lines = PolypLabels(), dict[str, int]()
    for line, row in read_rows(path, (id_column, *LABELS), exact=True):
        try:
            polyp = parse_id(row[id_column])
            for name in LABELS:
                parse_label(name, row[name])
        except ValueError as error:
            raise ValueError(f"{path}, line {line}: {error}") from error
        labels = {name: _note_label(path, line, polyp, name, row[name], found.events) for name in LABELS}
        if found.polyps.setdefault(polyp, labels) != labels:
            rows = f"{found.polyps[polyp]} in line {lines[polyp]} and {labels} in line {line}"
            raise ValueError(f"{path}: expected one histology and site of {id_column} {polyp}, found {rows}")
        lines.setdefault(polyp, line)
    known = list(polyp_ids)
    if not found.polyps.keys() & set(known):
        raise ValueError(f"{path}: expected some of {id_column} {known[:3]} ..., found {list(found.polyps)[:3]} ...")
    others = [polyp for polyp in found.polyps if polyp not in set(known)]
    found.events.extend(Event(path.name, f"line {lines[polyp]}", Note.LABEL_UNUSED, repr(polyp)) for polyp in others)
    unlisted = (polyp for polyp in known if polyp not in found.polyps)
    found.events.extend(Event(path.name, polyp, Note.LABEL_UNLISTED, "") for polyp in unlisted)
    return found
