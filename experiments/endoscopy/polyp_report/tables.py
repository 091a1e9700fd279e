"""Tables of the polyp report, as text cells: estimates with their intervals."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from experiments.endoscopy.polyp_report.evaluation import (
    UNITS,
    Bootstrap,
    Estimates,
    Predictor,
    Unit,
    class_difference,
    class_estimates,
    size_difference,
    size_estimates,
)
from experiments.report.configs import flatten
from experiments.report.tables import NOT_AVAILABLE, Table
from fsg_jax.endoscopy.sizing import ClassScheme, Interval

_ERRORS = {
    "mae": ("MAE, mm", "{:.2f}", 1),
    "rmse": ("RMSE, mm", "{:.2f}", 1),
    "bias": ("bias, mm", "{:+.2f}", 1),
    "within_1mm": ("< 1 mm, %", "{:.1f}", 100),
    "within_2mm": ("< 2 mm, %", "{:.1f}", 100),
}
_RELATIVE = {
    "percentage_error": ("signed error, %", "{:+.1f}", 1),
    "absolute_percentage_error": ("absolute error, %", "{:.1f}", 1),
    "pearson": ("Pearson", "{:.2f}", 1),
    "spearman": ("Spearman", "{:.2f}", 1),
}
_SCORES = {
    "f1_weighted": ("F1 weighted", "{:.1f}", 100),
    "f1_macro": ("F1 macro", "{:.1f}", 100),
    "balanced_accuracy": ("balanced accuracy", "{:.1f}", 100),
    "accuracy": ("accuracy", "{:.1f}", 100),
    "specificity": ("specificity", "{:.1f}", 100),
}
_MORE = {
    "precision_weighted": ("precision weighted", "{:.1f}", 100),
    "legacy_specificity": ("precision macro (“specificity”)", "{:.1f}", 100),
}


def size_tables(predictors: Iterable[Predictor], unit: Unit, options: Bootstrap) -> tuple[Table, Table]:
    """Errors in mm, and relative errors (with correlations per polyp), one row per predictor."""
    found = [(predictor, size_estimates(predictor, unit, options)) for predictor in predictors]
    return _table(found, _ERRORS, unit), _table(found, _RELATIVE, unit)


def class_tables(
    predictors: Iterable[Predictor], unit: Unit, scheme: ClassScheme, options: Bootstrap
) -> tuple[Table, Table]:
    """Averages in %, and precision and the sensitivity of every class in %, one row per predictor."""
    found = [(predictor, class_estimates(predictor, unit, scheme, options)) for predictor in predictors]
    by_class = {f"sensitivity_{name}": (f"sensitivity {words(name)}", "{:.1f}", 100) for name in scheme.classes}
    return _table(found, _SCORES, unit), _table(found, by_class | _MORE, unit)


def size_differences(
    pairs: Iterable[tuple[Predictor, Predictor]], options: Bootstrap
) -> tuple[Table, dict[str, Interval]]:
    """MAE minus that of a control on the same polyps; also the intervals per polyp by name."""
    rows, intervals = [], {}
    for one, other in pairs:
        polyps, frames = (size_difference(one, other, unit, options) for unit in UNITS)
        rows.append((one.name, other.name, cell(polyps, "{:+.2f}"), cell(frames, "{:+.2f}")))
        if polyps is not None:
            intervals[f"{one.name}\nagainst {other.name}"] = polyps
    columns = ("", "compared with", "MAE per polyp, mm", "MAE per frame, mm")
    return Table(columns, rows), intervals


def class_differences(
    pairs: Iterable[tuple[Predictor, Predictor]], scheme: ClassScheme, options: Bootstrap
) -> tuple[Table, dict[str, Interval]]:
    """Scores per polyp minus those of a control, in points; also the intervals of the macro F1 by name."""
    names = ("f1_weighted", "f1_macro", "balanced_accuracy")
    rows, intervals = [], {}
    for one, other in pairs:
        found = class_difference(one, other, "polyp", scheme, options)
        cells = [cell(None if found is None else found[name], "{:+.1f}", 100) for name in names]
        rows.append((one.name, other.name, *cells))
        if found is not None:
            intervals[f"{one.name}\nagainst {other.name}"] = Interval(*(100 * end for end in found["f1_macro"]))
    return Table(("", "compared with", *(f"{_SCORES[name][0]}, points" for name in names)), rows), intervals


def cell(found: Interval | None, form: str, factor: float = 1) -> str:
    """The value and, where there is one, its interval: "1.70 [1.51, 1.95]"."""
    if found is None or not np.isfinite(found.value):
        return NOT_AVAILABLE
    value, low, high = (form.format(factor * end + 0.0) for end in found)
    return f"{value} [{low}, {high}]" if np.isfinite([found.low, found.high]).all() else value


def scheme_title(scheme: ClassScheme) -> str:
    """Its name and classes."""
    return f"{scheme.name}: {', '.join(map(words, scheme.classes))}"


def words(name: str) -> str:
    """A class name for reading: "from_10mm" as "from 10 mm", which does not break before the unit."""
    return name.replace("_", " ").replace("mm", "\u00a0mm")


def data_table(data: Mapping[str, Any]) -> Table:
    """What was indexed and used, without what was dropped."""
    leaves = flatten({name: value for name, value in data.items() if name != "dropped"})
    return Table(("data", "value"), [(_key(key), _value(value)) for key, value in leaves.items()], numeric=False)


def dropped_table(data: Mapping[str, Any]) -> Table:
    """What was dropped, by reason."""
    leaves = flatten(data.get("dropped") or {})
    return Table(("dropped", "count"), [(_key(key), _value(value)) for key, value in leaves.items()])


def split_table(split: Mapping[str, Any]) -> Table:
    """How the folds were made."""
    leaves = flatten({name: value for name, value in split.items() if name != "counts"})
    return Table(("split", "value"), [(_key(key), _value(value)) for key, value in leaves.items()], numeric=False)


def fold_table(split: Mapping[str, Any]) -> Table:
    """Polyps and frames of every size group in every fold."""
    counts = split.get("counts") or []
    groups = list(dict.fromkeys(str(row["size_group"]) for row in counts))
    found = {(row["fold"], str(row["size_group"])): f"{row['polyps']:,} ({row['frames']:,})" for row in counts}
    folds = sorted({row["fold"] for row in counts})
    rows = [(str(fold), *(found.get((fold, group), "0 (0)") for group in groups)) for fold in folds]
    return Table(("fold", *(f"{group}: polyps (frames)" for group in groups)), rows)


def _table(found: list[tuple[Predictor, Estimates]], shown: Mapping[str, tuple[str, str, float]], unit: Unit) -> Table:
    names = [name for name in shown if all(name in estimates for _, estimates in found)]
    rows = []
    for predictor, estimates in found:
        cells = [cell(estimates[name], shown[name][1], shown[name][2]) for name in names]
        rows.append((predictor.name, _count(predictor, unit), *cells))
    return Table(("", f"{unit}s", *(shown[name][0] for name in names)), rows)


def _count(predictor: Predictor, unit: Unit) -> str:
    polyp = predictor.data.polyp
    return f"{len(polyp) if unit == 'frame' else len(np.unique(polyp)):,}"


def _key(key: str) -> str:
    return key.replace("_", " ").replace(".", ": ")


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else str(value)
