"""The section of polyp sizing: errors per polyp and per frame, intervals over polyps, baselines, data and folds."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments.report import polyp_metrics, polyp_plots, polyp_tables
from experiments.report.figures import WIDTH, Difference, colours, data_uri, forest
from experiments.report.polyp_metrics import UNITS, Predictor
from experiments.report.polyp_predictions import Predictions, one_task, pool
from experiments.report.polyp_tables import Column
from experiments.report.results_file import RESULTS, Arms, Results, baseline_of, is_number
from experiments.report.text_table import Table, mean_and_std
from experiments.report.training_plots import learning_curves
from fsg_jax._files import read_bytes
from fsg_jax.endoscopy.sizing import BINARY_5, BINARY_10, TRI_CLASS, ClassScheme, Interval

CURVES = ("train_loss", "val_loss", "val_mae", "val_polyp_mae", "val_f1_macro", "val_polyp_f1_macro")
_SUMMARY = {
    "polyp_mae": Column("test MAE per polyp, mm", "{:.2f}", 1),
    "mae": Column("test MAE per frame, mm", "{:.2f}", 1),
    "polyp_f1_macro": Column("test macro F1 per polyp, %"),
    "f1_macro": Column("test macro F1 per frame, %"),
}
_PNG = b"\x89PNG\r\n\x1a\n"
_PANELS_PER_STREAMS = 3


def content(directory: Path, results: Results, resamples: int) -> dict[str, Any]:
    """Variables of the templates ``polyps``; ``warnings`` are those of this section.

    Raises:
        FileNotFoundError: A file of predictions is missing.
        RecordsError: A file of predictions cannot be used, or the arms have different tasks.
    """
    arms, first = results.arms, results.finished[0]
    data = {name: pool(directory, records) for name, records in arms.items()}
    scheme = one_task(data.values(), directory / RESULTS)
    baselines = polyp_metrics.baselines(max(data.values(), key=lambda found: len(found["polyp"])))
    predictors = [*(Predictor(name, found, found.outputs) for name, found in data.items()), *baselines]
    differences, intervals = polyp_tables.differences(_pairs(arms, data), scheme, resamples)
    panels, unreadable = _embed_panels(directory, arms)
    classes = []
    for found in [scheme] if scheme else [TRI_CLASS, BINARY_10, BINARY_5]:
        units = {unit: polyp_tables.metric_tables(predictors, unit, found, resamples) for unit in UNITS}
        rows = {one.name: polyp_metrics.classes(one, "polyp", found) for one in predictors[: len(arms)]}
        matrices = {name: polyp_plots.confusion(each, found) for name, each in rows.items()}
        classes.append((polyp_tables.scheme_title(found), units, matrices))
    return {
        "synthetic": any(record["synthetic"] for record in results.finished),
        "regression": scheme is None,
        "folds": sorted({record["fold"] for record in results.finished}),
        "polyps": len({polyp for found in data.values() for polyp in found["polyp"].tolist()}),
        "resamples": resamples,
        "baselines": [predictor.name for predictor in baselines],
        "sizes": {} if scheme else {u: polyp_tables.metric_tables(predictors, u, None, resamples) for u in UNITS},
        "classes": classes,
        "differences": differences,
        "difference_plot": _difference_plot(intervals, scheme),
        **_size_figures(data),
        "panels": panels,
        "curves": learning_curves(arms, {name: (name, 1.0) for name in CURVES}),
        "data": polyp_tables.key_table(("data", "value"), first["data"], leave_out="dropped"),
        "dropped": polyp_tables.key_table(("dropped", "count"), first["data"].get("dropped") or {}, numeric=True),
        "split": polyp_tables.key_table(("split", "value"), first["split"], leave_out="counts"),
        "fold_counts": polyp_tables.fold_table(first["split"]),
        "warnings": [*_missing_folds(arms), *_caveats(results, data), *unreadable],
    }


def summary(arms: Arms) -> Table:
    """Test metrics of the records, mean ± std (ddof=1) over the runs of an arm.

    Differences are left to the report, which compares polyp by polyp; folds share training polyps.
    """
    tests = {arm: [record.get("test") or {} for record in records] for arm, records in arms.items()}
    recorded = {name for found in tests.values() for test in found for name in test}
    shown = {name: column for name, column in _SUMMARY.items() if name in recorded}
    rows = []
    for arm, found in tests.items():
        values = [[column.factor * t[name] for t in found if is_number(t.get(name))] for name, column in shown.items()]
        cells = [mean_and_std(v, column.form.format) for v, column in zip(values, shown.values(), strict=True)]
        rows.append((arm, str(len(found)), *(" ± ".join(each) for each in cells)))
    return Table(("arm", "runs", *(column.title for column in shown.values())), rows)


def _pairs(arms: Arms, data: dict[str, Predictions]) -> Iterator[tuple[Predictor, Predictor]]:
    """Every arm with the baseline of its streams, and with the baselines without a network."""
    for name, found in data.items():
        one, baseline = Predictor(name, found, found.outputs), baseline_of(name, arms)
        if baseline is not None:
            yield one, Predictor(baseline, data[baseline], data[baseline].outputs)
        yield from ((one, other) for other in polyp_metrics.baselines(found))


def _difference_plot(intervals: dict[str, Interval], scheme: ClassScheme | None) -> Figure | None:
    factor, title = (100, "macro F1, points") if scheme else (1, "MAE difference per polyp, mm (below 0: better)")
    rows = {
        name: Difference(*found, "#0072B2" if found.low > 0 or found.high < 0 else "#777777")
        for name, found in intervals.items()
    }
    return forest(rows, title, factor, 1.5 * WIDTH)


def _size_figures(data: dict[str, Predictions]) -> dict[str, Any]:
    """Scatter and Bland-Altman figures of arms that predict sizes, all on the same axes; and the strips."""
    palette = colours(data)
    found = {name: polyp_plots.per_polyp(each) for name, each in data.items() if each.scheme is None}
    tops = [each["size_mm"].max() for each in data.values()] + [polyps.high_mm.max() for polyps in found.values()]
    limit = 1.08 * float(max(tops))
    scatter = {}
    for name, polyps in found.items():
        agreement = polyp_plots.bland_altman(polyps, palette[name], limit, polyp_plots.difference_range(found.values()))
        scatter[name] = polyp_plots.scatter(polyps, palette[name], limit), agreement
    return {"scatter": scatter, "strips": polyp_plots.strips(data, palette, limit)}


def _embed_panels(directory: Path, arms: Arms) -> tuple[dict[str, list[str]], list[str]]:
    """Data URIs by streams, the first panels of the first run that has some; and what could not be shown."""
    named: dict[str, list[str]] = {}
    for record in (record for records in arms.values() for record in records):
        if record.get("panels"):
            named.setdefault(" + ".join(record["streams"]), record["panels"][:_PANELS_PER_STREAMS])
    shown: dict[str, list[str]] = {}
    problems = []
    for streams, path in ((streams, directory / name) for streams, names in named.items() for name in names):
        try:
            image = read_bytes(path)
        except (OSError, ValueError) as error:
            problems.append(f"{path.name}: the panel cannot be read ({getattr(error, 'strerror', error)}).")
            continue
        if image.startswith(_PNG):
            shown.setdefault(streams, []).append(data_uri(image))
        else:
            problems.append(f"{path.name}: the panel is not a PNG image.")
    return shown, problems


def _missing_folds(arms: Arms) -> Iterator[str]:
    for name, records in arms.items():
        folds = {record["fold"] for record in records}
        expected = max(record["split"].get("num_folds") or 0 for record in records)
        found, missing = (", ".join(map(str, sorted(some))) for some in (folds, set(range(expected)) - folds))
        if not expected:
            yield f"{name}: how many folds there are is not recorded; found {found}."
        elif missing:
            covered = f"Its numbers cover the polyps of fold {found} only; differences use the polyps both sides have."
            yield f"{name}: no finished run of fold {missing} of {expected}. {covered}"


def _caveats(results: Results, data: dict[str, Predictions]) -> Iterator[str]:
    """What weakens the numbers."""
    records = results.finished
    first = records[0]
    if unverified := {path for record in records for path in record["data"].get("unverified") or []}:
        yield f"Without a seal, so that damage or an edit would not be noticed: {', '.join(sorted(unverified))}."
    for name in ("data", "split", "synthetic"):
        if any(record[name] != first[name] for record in records):
            yield f"The runs differ in what they record of {name}; the first run's is shown."
    if not all(found.baselines for found in data.values()):
        yield "Some predictions hold no baselines, so that what to beat is missing for them."
    for fold, shared in sorted({record["fold"]: record.get("shared", {}) for record in records}.items()):
        if any(shared.values()):
            counts = ", ".join(f"{count} {name}" for name, count in shared.items())
            yield f"Fold {fold}: roles share {counts}; results on its test polyps may be too good."
    if censored := first["data"].get("polyps whose size is a lower bound"):
        yield f"{censored} polyps have a lower bound as their size; they are scored as if it were the size."
    if outside := first["data"].get("boxes outside the field of view"):
        yield f"{outside} boxes lie outside the field of view; the network is given a blank for them."
    clamp = first["config"].get("loss", {}).get("clamp_mm")
    largest = max(float(found["size_mm"].max()) for found in data.values())
    if clamp and largest > clamp[1] and all(found.scheme is None for found in data.values()):
        yield f"Predictions end at {clamp[1]:g} mm and the largest polyp has {largest:g} mm; see loss.clamp_mm."
