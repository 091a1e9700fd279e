"""Rows of CSV files in UTF-8, by the names of their columns."""

import csv
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from fsg_jax._files import check_file, replacing

MAX_BYTES = 64 << 20
"""Of a table; a larger one is refused."""

MAX_LINE = 1 << 20
"""Characters of a line."""

_INTEGRAL = re.compile(r"(\d+)\.0+", re.ASCII)
_MAX_ID = 255
NO_VALUE = frozenset({"", "-", "na", "n/a", "nan", "none", "null", "unknown"})
"""What tables write where they have no value, in lower case."""


def read_rows(
    path: Path, columns: Sequence[str], optional: Sequence[str] = (), *, exact: bool = False
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields the line number and the named cells of every row, without the spaces around them.

    Rows without text, which spreadsheets leave below a table, are passed over.

    Args:
      path: the file; its first line holds the names of the columns.
      columns: columns that the file must have; where a row is shorter its cell is ``""``.
      optional: columns that are left out of the rows if the file lacks them.
      exact: refuse rows that have fewer cells than the header, or more empty ones.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a column is missing or there twice, the file is no CSV in UTF-8 or too large, or a row has more cells
        than the header or, if `exact`, fewer.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; expected a CSV with columns {', '.join(columns)}")
    check_file(path, MAX_BYTES)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(_lines(path, file), strict=True)
            header = [name.strip() for name in next(reader, ())]
            if missing := [name for name in columns if name not in header]:
                raise ValueError(f"{path}: expected columns {missing}, found {header[:50]}")
            if twice := [name for name, times in Counter(header).items() if name and times > 1]:
                raise ValueError(f"{path}: expected every column once, found {twice[0]!r} twice")
            places = {name: header.index(name) for name in (*columns, *optional) if name in header}
            for row in reader:
                if not any(cells := [cell.strip() for cell in row]):
                    continue
                if (exact and len(cells) != len(header)) or any(cells[len(header) :]):
                    found = "more" if len(cells) > len(header) else "fewer"
                    raise ValueError(f"{path}, line {reader.line_num}: expected {len(header)} cells, found {found}")
                yield reader.line_num, {name: cells[i] if i < len(cells) else "" for name, i in places.items()}
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected a CSV in UTF-8, found {error}") from error


def _lines(path: Path, file: IO[str]) -> Iterator[str]:
    """The lines of a table, never more than one in memory.

    Raises:
      ValueError: a line is too long, or has a NUL.
    """
    while line := file.readline(MAX_LINE + 1):
        if len(line) > MAX_LINE:
            raise ValueError(f"{path}: expected lines of at most {MAX_LINE} characters, found a longer one")
        if "\0" in line:
            raise ValueError(f"{path}: expected a CSV in UTF-8, found a NUL in {line[:40]!r}")
        yield line


def plain_id(text: str) -> str:
    """An id or whole number as it was before pandas or Excel wrote it, ``6`` for ``6.0``; ``""`` if there is none.

    None is also ``nan`` and its like, and one of more than 255 characters, which names no file.
    """
    match = _INTEGRAL.fullmatch(text)
    return "" if len(text) > _MAX_ID or text.lower() in NO_VALUE else match[1] if match else text


@contextmanager
def writing_rows(path: Path, header: Sequence[str]) -> Iterator[Any]:
    """Gives a `csv.writer` below the header; the file is there when the block ends, whole or not at all."""
    with replacing(path) as new, new.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        yield writer
