"""Tables of polyp sizing, as text cells: estimates with their intervals, the data and the folds."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments.config import flatten
from experiments.report.polyp_metrics import UNITS, Estimates, Predictor, Unit, difference, estimates
from experiments.report.text_table import NOT_AVAILABLE, Table, text
from fsg_jax.endoscopy.sizing import ClassScheme, Interval


class Column(NamedTuple):
    """How a metric is shown: title, format and factor."""

    title: str
    form: str = "{:.1f}"
    factor: float = 100


_COLUMNS = {
    "mae": Column("MAE, mm", "{:.2f}", 1),
    "rmse": Column("RMSE, mm", "{:.2f}", 1),
    "bias": Column("bias, mm", "{:+.2f}", 1),
    "within_1mm": Column("< 1 mm, %"),
    "within_2mm": Column("< 2 mm, %"),
    "percentage_error": Column("signed error, %", "{:+.1f}", 1),
    "absolute_percentage_error": Column("absolute error, %", "{:.1f}", 1),
    "pearson": Column("Pearson", "{:.2f}", 1),
    "spearman": Column("Spearman", "{:.2f}", 1),
    "f1_weighted": Column("F1 weighted"),
    "f1_macro": Column("F1 macro"),
    "balanced_accuracy": Column("balanced accuracy"),
    "accuracy": Column("accuracy"),
    "specificity": Column("specificity"),
    "precision_weighted": Column("precision weighted"),
    "legacy_specificity": Column("precision macro (“specificity”)"),
}
_ERRORS = ("mae", "rmse", "bias", "within_1mm", "within_2mm")
_RELATIVE = ("percentage_error", "absolute_percentage_error", "pearson", "spearman")
_SCORES = ("f1_weighted", "f1_macro", "balanced_accuracy", "accuracy", "specificity")
_MORE = ("precision_weighted", "legacy_specificity")


def metric_tables(
    predictors: Iterable[Predictor], unit: Unit, scheme: ClassScheme | None, resamples: int
) -> tuple[Table, Table]:
    """Two tables with one row per predictor.

    Of classes: averages in %, and precision and the sensitivity of every class in %. Without a scheme: errors in mm,
    and relative errors (with correlations per polyp).
    """
    found = [(predictor, estimates(predictor, unit, scheme, resamples)) for predictor in predictors]
    if scheme is None:
        return _table(found, _ERRORS, unit), _table(found, _RELATIVE, unit)
    by_class = [f"sensitivity_{name}" for name in scheme.classes]
    return _table(found, _SCORES, unit), _table(found, (*by_class, *_MORE), unit)


def differences(
    pairs: Iterable[tuple[Predictor, Predictor]], scheme: ClassScheme | None, resamples: int
) -> tuple[Table, dict[str, Interval]]:
    """MAE in mm, or scores per polyp in points, minus those of a control on the same frames.

    Also returns the intervals of the MAE or of the macro F1 per polyp by the names of both.
    """
    shown: list[tuple[Unit, str, Column]]
    if scheme is None:
        main, shown = "mae", [(unit, "mae", Column(f"MAE per {unit}, mm", "{:+.2f}", 1)) for unit in UNITS]
    else:
        main, shown = "f1_macro", [("polyp", n, Column(f"{_COLUMNS[n].title}, points", "{:+.1f}")) for n in _SCORES[:3]]
    rows, intervals = [], {}
    for one, other in pairs:
        found = {unit: difference(one, other, unit, scheme, resamples) for unit in {unit for unit, *_ in shown}}
        rows.append((one.name, other.name, *(cell(found[unit].get(name), column) for unit, name, column in shown)))
        if main in found["polyp"]:
            intervals[f"{one.name}\nagainst {other.name}"] = found["polyp"][main]
    return Table(("", "compared with", *(column.title for *_, column in shown)), rows), intervals


def cell(found: Interval | None, column: Column) -> str:
    """The value and, where there is one, its interval: "1.70 [1.51, 1.95]"."""
    if found is None or not np.isfinite(found.value):
        return NOT_AVAILABLE
    value, low, high = (column.form.format(column.factor * end + 0.0) for end in found)
    return f"{value} [{low}, {high}]" if np.isfinite([found.low, found.high]).all() else value


def scheme_title(scheme: ClassScheme) -> str:
    """Its name and classes."""
    return f"{scheme.name}: {', '.join(map(words, scheme.classes))}"


def words(name: str) -> str:
    """A class name for reading: "from_10mm" as "from 10 mm", which does not break before the unit."""
    return name.replace("_", " ").replace("mm", "\u00a0mm")


def key_table(columns: tuple[str, str], tree: Mapping[str, Any], leave_out: str = "", numeric: bool = False) -> Table:
    """The leaves of a nested mapping but those of one key, by their keys in words."""
    leaves = flatten({name: value for name, value in tree.items() if name != leave_out})
    rows = [(key.replace("_", " ").replace(".", ": "), text(value)) for key, value in leaves.items()]
    return Table(columns, rows, numeric)


def fold_table(split: Mapping[str, Any]) -> Table:
    """Polyps and frames of every size group in every fold."""
    counts = split.get("counts") or []
    groups = list(dict.fromkeys(str(row["size_group"]) for row in counts))
    found = {(row["fold"], str(row["size_group"])): f"{row['polyps']:,} ({row['frames']:,})" for row in counts}
    folds = sorted({row["fold"] for row in counts})
    rows = [(str(fold), *(found.get((fold, group), "0 (0)") for group in groups)) for fold in folds]
    return Table(("fold", *(f"{group}: polyps (frames)" for group in groups)), rows)


def _table(found: list[tuple[Predictor, Estimates]], names: Iterable[str], unit: Unit) -> Table:
    """The columns of the metrics that all have."""
    names = [name for name in names if all(name in each for _, each in found)]
    columns = [_COLUMNS.get(name) or Column(words(name)) for name in names]
    rows = []
    for predictor, each in found:
        polyp = predictor.data["polyp"]
        count = len(polyp) if unit == "frame" else len(np.unique(polyp))
        rows.append((predictor.name, f"{count:,}", *(cell(each[n], c) for n, c in zip(names, columns, strict=True))))
    return Table(("", f"{unit}s", *(column.title for column in columns)), rows)
