"""Folds as CSV files: our own, and reading columns of others'."""

import csv
import os
from collections.abc import Sequence
from pathlib import Path

from fsg_jax.data.extras import import_extra
from fsg_jax.endoscopy.index.folds import Folds, PolypKey
from fsg_jax.endoscopy.index.schema import Table

COLUMNS = ("dataset", "polyp_id", "fold", "num_folds", "group")
"""Of a file of folds, in this order; the last two have one value each, and `read_folds` can do without them."""


def write_folds(folds: Folds, path: str | os.PathLike) -> None:
    """Writes a CSV with the columns of `COLUMNS`, polyps in natural order; the file is written whole or not at all."""
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows((*row.values(), folds.num_folds, folds.group) for row in folds.table().to_pylist())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_folds(path: str | os.PathLike, *, num_folds: int | None = None, group: str | None = None) -> Folds:
    """Folds from a CSV with the columns dataset, polyp_id and fold.

    Args:
      path: the file.
      num_folds: the number of folds; None takes the file's, or else its largest fold and one.
      group: ``"patient"``, ``"video"`` or ``"polyp"``: what must be in one role; None takes the file's, or else
        ``"polyp"``.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file lacks columns or rows, holds a value that is no fold, or a polyp twice.
    """
    table = read_text_columns(path, COLUMNS[:3], optional=COLUMNS[3:])
    numbers = integers(table, "fold", path)
    keys = list(zip(table.column("dataset").to_pylist(), table.column("polyp_id").to_pylist(), strict=True))
    if not keys:
        raise ValueError(f"{path}: no folds in it; expected a row for every polyp")
    fold_of: dict[PolypKey, int] = {}
    for line, (key, fold) in enumerate(zip(keys, numbers, strict=True), start=2):
        if key in fold_of:
            raise ValueError(
                f"{path}, line {line}: {' '.join(key)} is in an earlier line too; expected each polyp once"
            )
        fold_of[key] = fold
    if num_folds is None:
        num_folds = int(_single(table, "num_folds", path) or max(numbers) + 1)
    try:
        return Folds(num_folds, group or _single(table, "group", path) or "polyp", fold_of)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_text_columns(path: str | os.PathLike, names: Sequence[str], optional: Sequence[str] = ()) -> Table:
    """Columns of a CSV file with a header, as text without the spaces around it.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is no CSV or lacks one of `names`.
    """
    pa, arrow_csv = import_extra("pyarrow", "endoscopy"), import_extra("pyarrow.csv", "endoscopy")
    pc = import_extra("pyarrow.compute", "endoscopy")
    wanted = [*names, *optional]
    convert = arrow_csv.ConvertOptions(column_types=dict.fromkeys(wanted, pa.string()))
    try:
        table = arrow_csv.read_csv(path, convert_options=convert)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: not a CSV file that can be read: {error}") from error
    if missing := [name for name in names if name not in table.column_names]:
        raise ValueError(f"{path}: lacks the columns {missing}; expected {list(names)}, found {table.column_names}")
    there = [name for name in wanted if name in table.column_names]
    return pa.table({name: pc.utf8_trim_whitespace(table.column(name)) for name in there})


def integers(table: Table, name: str, path: str | os.PathLike) -> list[int]:
    """A text column as integers, ``"3"`` or ``"3.0"``.

    Raises:
      ValueError: a value is none; the message has its line.
    """
    values = table.column(name).to_pylist()
    for line, text in enumerate(values, start=2):
        if not _is_integer(text):
            raise ValueError(f"{path}, line {line}: {name} is {text!r}; expected an integer, 0 or more")
    return [int(float(text)) for text in values]


def _is_integer(text: str) -> bool:
    whole, _, rest = text.partition(".")
    return whole.isascii() and whole.isdecimal() and not rest.strip("0")


def _single(table: Table, name: str, path: str | os.PathLike) -> str | None:
    if name not in table.column_names:
        return None
    values = table.column(name).unique().to_pylist()
    if len(values) != 1:
        raise ValueError(f"{path}: the column {name} has the values {values[:5]}; expected one in all rows")
    return str(values[0])
