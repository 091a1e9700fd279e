"""Per-frame predictions of the test polyps, read from the files that the records name and pooled over folds."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments.report.records import Record, RecordsError
from fsg_jax.data.extras import import_extra
from fsg_jax.endoscopy.sizing import SCHEMES, ClassScheme

BASELINES = {"baseline_mean_mm": "mean size", "baseline_box_area_mm": "box area"}
"""Columns with the predictions, in mm, of baselines fitted to the training polyps of the fold; and their names."""

_TEXT = ("dataset", "polyp_id", "frame_id")


@dataclass(frozen=True)
class Predictions:
    """Rows are frames of test polyps, per seed. `polyp` is "dataset/polyp_id".

    A regression has `predicted_mm`; a classification has `scheme` and `probabilities` (rows, K).
    """

    seed: np.ndarray
    polyp: np.ndarray
    frame: np.ndarray
    size_mm: np.ndarray
    predicted_mm: np.ndarray | None
    probabilities: np.ndarray | None
    scheme: ClassScheme | None
    baselines: dict[str, np.ndarray]

    def take(self, rows: np.ndarray) -> "Predictions":
        """Some of the rows."""
        names = ("seed", "polyp", "frame", "size_mm", "predicted_mm", "probabilities")
        arrays: dict[str, Any] = {name: getattr(self, name) for name in names}
        taken: dict[str, Any] = {name: None if values is None else values[rows] for name, values in arrays.items()}
        return replace(self, **taken, baselines={name: values[rows] for name, values in self.baselines.items()})

    def keys(self) -> list[tuple[int, str, str, int]]:
        """Seed, polyp, frame, and a number that tells several boxes of one polyp in a frame apart."""
        seen: Counter[tuple[int, str, str]] = Counter()
        keys = []
        for key in zip(self.seed.tolist(), self.polyp.tolist(), self.frame.tolist(), strict=True):
            keys.append((*key, seen[key]))
            seen[key] += 1
        return keys


def pool(directory: Path, records: Iterable[Record]) -> Predictions:
    """The predictions of all runs of one arm, fold after fold.

    Raises:
        FileNotFoundError: A file that a record names is missing.
        RecordsError: A file is no table of predictions, has values that are not finite, or two folds test one polyp.
    """
    parts = [(record, _read(directory / record["predictions"], record["seed"])) for record in records]
    tested: dict[tuple[int, str], int] = {}
    for record, part in parts:
        for polyp in np.unique(part.polyp).tolist():
            if tested.setdefault((record["seed"], polyp), record["fold"]) != record["fold"]:
                raise RecordsError(
                    f"{directory / record['predictions']}: polyp {polyp!r} is tested in fold {record['fold']} and in "
                    f"fold {tested[record['seed'], polyp]}; expected one"
                )
    return _concatenate([part for _, part in parts], directory)


def align(one: Predictions, other: Predictions) -> tuple[Predictions, Predictions]:
    """The rows that both have, in the same order."""
    rows = {key: row for row, key in enumerate(other.keys())}
    pairs = [(row, rows[key]) for row, key in enumerate(one.keys()) if key in rows]
    left, right = np.array(pairs, int).reshape(-1, 2).T
    return one.take(left), other.take(right)


def _read(path: Path, seed: int) -> Predictions:
    table = _table(path)
    missing = [name for name in (*_TEXT, "size_mm") if name not in table.column_names]
    if missing:
        raise RecordsError(f"{path}: columns {missing} are missing; found {table.column_names}")
    if not table.num_rows:
        raise RecordsError(f"{path}: found no predictions")
    dataset, polyp, frame = (np.array(table.column(name).to_pylist(), dtype=str) for name in _TEXT)
    scheme = _scheme(table, path)
    return Predictions(
        seed=np.full(table.num_rows, seed),
        polyp=np.char.add(np.char.add(dataset, "/"), polyp),
        frame=frame,
        size_mm=_numbers(table, "size_mm", path),
        predicted_mm=_numbers(table, "predicted_mm", path) if scheme is None else None,
        probabilities=None if scheme is None else np.stack([_numbers(table, c, path) for c in scheme.columns], 1),
        scheme=scheme,
        baselines={name: _numbers(table, c, path) for c, name in BASELINES.items() if c in table.column_names},
    )


def _scheme(table: Any, path: Path) -> ClassScheme | None:
    """The classes whose probabilities the table has; None for a regression, where they are missing or empty."""
    for scheme in SCHEMES.values():
        if set(scheme.columns) <= set(table.column_names):
            empty = np.isnan(_numbers(table, scheme.columns[0], path, finite=False)).all()
            return None if empty else scheme
    return None


def _table(path: Path) -> Any:
    pa = import_extra("pyarrow", "endoscopy")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected the predictions of a run")
    try:
        if path.suffix == ".csv":
            text = {name: pa.string() for name in _TEXT}
            csv = import_extra("pyarrow.csv", "endoscopy")
            return csv.read_csv(path, convert_options=csv.ConvertOptions(column_types=text))
        return import_extra("pyarrow.parquet", "endoscopy").read_table(path)
    except pa.ArrowInvalid as error:
        raise RecordsError(f"{path}: not a table of predictions ({error})") from error


def _numbers(table: Any, name: str, path: Path, *, finite: bool = True) -> np.ndarray:
    if name not in table.column_names:
        raise RecordsError(f"{path}: column {name!r} is missing; found {table.column_names}")
    column = table.column(name).to_pylist()
    values = np.array([np.nan if value is None else value for value in column], dtype=float)
    if finite and not np.isfinite(values).all():
        count = int((~np.isfinite(values)).sum())
        raise RecordsError(f"{path}: {count} of {len(values)} values of {name!r} are not finite")
    return values


def _concatenate(parts: list[Predictions], directory: Path) -> Predictions:
    schemes = {part.scheme for part in parts}
    if len(schemes) > 1:
        names = sorted("regression" if scheme is None else scheme.name for scheme in schemes)
        raise RecordsError(f"{directory}: the runs of one arm have different tasks: {', '.join(names)}")
    shared = [name for name in parts[0].baselines if all(name in part.baselines for part in parts)]
    return Predictions(
        seed=np.concatenate([part.seed for part in parts]),
        polyp=np.concatenate([part.polyp for part in parts]),
        frame=np.concatenate([part.frame for part in parts]),
        size_mm=np.concatenate([part.size_mm for part in parts]),
        predicted_mm=_join([part.predicted_mm for part in parts]),
        probabilities=_join([part.probabilities for part in parts]),
        scheme=parts[0].scheme,
        baselines={name: np.concatenate([part.baselines[name] for part in parts]) for name in shared},
    )


def _join(arrays: list[np.ndarray | None]) -> np.ndarray | None:
    found = [array for array in arrays if array is not None]
    return np.concatenate(found) if found else None
