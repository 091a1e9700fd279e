"""Per-frame predictions of the test polyps, read from the files that the records name and pooled over folds."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.report.results_file import Record, RecordsError
from fsg_jax._files import check_file
from fsg_jax.data.extras import import_extra
from fsg_jax.endoscopy.sizing import SCHEMES, ClassScheme

BASELINES = {"baseline_mean_mm": "mean size", "baseline_box_area_mm": "box area"}
"""Columns with the predictions, in mm, of baselines fitted to the training polyps of the fold; and their names."""

_TEXT = ("dataset", "polyp_id", "frame_id")


@dataclass(frozen=True)
class Predictions:
    """Rows are frames of test polyps, per seed.

    `columns` are ``seed``, ``polyp`` ("dataset/polyp_id"), ``frame``, ``size_mm``, the `outputs` of the network, and
    baselines by name. `scheme` has the classes of a classifier and is None for sizes.
    """

    columns: dict[str, np.ndarray]
    scheme: ClassScheme | None

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]

    @property
    def outputs(self) -> tuple[str, ...]:
        """The columns that the network predicts: sizes in mm or the probabilities of the classes."""
        return ("predicted_mm",) if self.scheme is None else self.scheme.columns

    @property
    def baselines(self) -> list[str]:
        """The baselines that are there."""
        return [name for name in BASELINES.values() if name in self.columns]

    def take(self, rows: np.ndarray) -> "Predictions":
        """Some of the rows."""
        return Predictions({name: values[rows] for name, values in self.columns.items()}, self.scheme)

    def keys(self) -> list[tuple[int, str, str, int]]:
        """Seed, polyp, frame, and a number that tells several boxes of one polyp in a frame apart."""
        seen: Counter[tuple[int, str, str]] = Counter()
        keys = []
        for key in zip(*(self[name].tolist() for name in ("seed", "polyp", "frame")), strict=True):
            keys.append((*key, seen[key]))
            seen[key] += 1
        return keys


def pool(directory: Path, records: Iterable[Record]) -> Predictions:
    """The predictions of all runs of one arm, fold after fold; a baseline only if all runs have it.

    Raises:
        FileNotFoundError: A file that a record names is missing.
        RecordsError: A file is no table of predictions, has values that are not finite, two folds test one
            polyp, or the runs have different tasks.
    """
    parts = []
    tested: dict[tuple[int, str], int] = {}
    for record in records:
        path, fold, seed = directory / record["predictions"], record["fold"], record["seed"]
        parts.append(_read(path, seed))
        for polyp in np.unique(parts[-1]["polyp"]).tolist():
            if (other := tested.setdefault((seed, polyp), fold)) != fold:
                raise RecordsError(
                    f"{path}: expected {polyp!r} in one fold, found it in fold {fold} and in fold {other}"
                )
    shared = [name for name in parts[0].columns if all(name in part.columns for part in parts)]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in shared}
    return Predictions(columns, one_task(parts, directory))


def one_task(predictions: Iterable[Predictions], where: Path) -> ClassScheme | None:
    """The scheme that all have; RecordsError where they differ."""
    schemes = {each.scheme for each in predictions}
    if len(schemes) > 1:
        names = sorted("regression" if scheme is None else scheme.name for scheme in schemes)
        raise RecordsError(f"{where}: expected one task, found {', '.join(names)}")
    return schemes.pop()


def align(one: Predictions, other: Predictions) -> tuple[Predictions, Predictions]:
    """The rows that both have, in the same order."""
    rows = {key: row for row, key in enumerate(other.keys())}
    pairs = [(row, rows[key]) for row, key in enumerate(one.keys()) if key in rows]
    left, right = np.array(pairs, int).reshape(-1, 2).T
    return one.take(left), other.take(right)


def _read(path: Path, seed: int) -> Predictions:
    try:
        return _parse(path, seed)
    except RecordsError:
        raise
    except (import_extra("pyarrow", "endoscopy").ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise RecordsError(f"{path}: expected a table of predictions, found {error}") from error


def _parse(path: Path, seed: int) -> Predictions:
    table = read_table(path)
    if len(set(table.column_names)) < table.num_columns:
        raise RecordsError(f"{path}: expected each column once, found {table.column_names}")
    scheme = _scheme(table)
    outputs = ("predicted_mm",) if scheme is None else scheme.columns
    if missing := [name for name in (*_TEXT, "size_mm", *outputs) if name not in table.column_names]:
        raise RecordsError(f"{path}: expected the columns {missing}, found only {table.column_names}")
    if not table.num_rows:
        raise RecordsError(f"{path}: expected predictions, found no rows")
    dataset, polyp, frame = (np.array(table.column(name).to_pylist(), dtype=str) for name in _TEXT)
    columns = {"seed": np.full(table.num_rows, seed), "polyp": np.char.add(np.char.add(dataset, "/"), polyp)}
    columns["frame"] = frame
    for name in ("size_mm", *outputs, *BASELINES):
        if name in table.column_names:
            values = columns[BASELINES.get(name, name)] = numbers(table, name)
            if bad := int((~np.isfinite(values)).sum()):
                raise RecordsError(f"{path}, {name}: expected finite values, found {bad} of {len(values)} that are not")
    return Predictions(columns, scheme)


def _scheme(table: Any) -> ClassScheme | None:
    """The classes whose probabilities the table has; None for a regression, where they are missing or empty."""
    for scheme in SCHEMES.values():
        if set(scheme.columns) <= set(table.column_names):
            return None if np.isnan(numbers(table, scheme.columns[0])).all() else scheme
    return None


def read_table(path: Path) -> Any:
    """The table of a file of predictions, Parquet or CSV.

    Raises:
        FileNotFoundError: There is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected the predictions of a run, found no such file")
    check_file(path)
    if path.suffix == ".csv":
        csv = import_extra("pyarrow.csv", "endoscopy")
        text = dict.fromkeys(_TEXT, import_extra("pyarrow", "endoscopy").string())
        return csv.read_csv(path, convert_options=csv.ConvertOptions(column_types=text))
    with import_extra("pyarrow.parquet", "endoscopy").ParquetFile(path, page_checksum_verification=True) as file:
        return file.read()


def numbers(table: Any, name: str) -> np.ndarray:
    """A column with NaN for what is missing."""
    kind = table.schema.field(name).type
    if "string" in str(kind) or "bool" in str(kind):  # which NumPy would read as numbers
        raise ValueError(f"column {name} of {kind}")
    return np.asarray(table.column(name).to_numpy(), dtype=float)
