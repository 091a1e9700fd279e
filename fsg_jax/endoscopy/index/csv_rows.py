"""Rows of CSV files in UTF-8, by the names of their columns."""

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fsg_jax._files import replacing


def read_rows(
    path: Path, columns: Sequence[str], optional: Sequence[str] = (), *, exact: bool = False
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields the line number and the named cells of every row, without the spaces around them.

    Args:
      path: the file; its first line holds the names of the columns.
      columns: columns that the file must have; where a row is shorter its cell is ``""``.
      optional: columns that are left out of the rows if the file lacks them.
      exact: refuse rows that have more or fewer cells than the header.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a column is missing, the file is no CSV in UTF-8, or, if `exact`, a row has another number of cells.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a CSV with columns {', '.join(columns)}")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            reader.fieldnames = header = [name.strip() for name in reader.fieldnames or ()]
            if missing := [name for name in columns if name not in header]:
                raise ValueError(f"{path}: expected columns {missing}, found {header}")
            wanted = [name for name in (*columns, *optional) if name in header]
            for row in reader:
                if exact and (None in row or None in row.values()):
                    found = "more" if None in row else "fewer"
                    raise ValueError(f"{path}, line {reader.line_num}: expected {len(header)} cells, found {found}")
                yield reader.line_num, {name: (row[name] or "").strip() for name in wanted}
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected a CSV in UTF-8, found {error}") from error


@contextmanager
def writing_rows(path: Path, header: Sequence[str]) -> Iterator[Any]:
    """Gives a `csv.writer` below the header; the file is there when the block ends, whole or not at all."""
    with replacing(path) as new, new.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        yield writer
