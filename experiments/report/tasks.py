"""The section on several tasks: errors by task, differences to the baseline in pairs, and how experts are used."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.report.differences import difference_plot, difference_table
from experiments.report.figures import colours, drawing
from experiments.report.results_file import Arms, Record, Results, baseline_of, is_number
from experiments.report.statistics import Paired, paired
from experiments.report.text_table import NOT_AVAILABLE, Table, mean_and_std
from experiments.report.training_plots import learning_curves

ANOMALIES = {
    "scale_ratio": "largest scale over smallest",
    "mostly_zero": "share of experts > 90 % zero",
    "occupied": "largest share of one task in a shared expert",
}


def content(directory: Path, results: Results, resamples: int) -> dict[str, Any]:
    """Variables of the templates ``tasks``; ``warnings`` are those of this section.

    Raises:
        FileNotFoundError, RecordsError: A file of predictions is missing or cannot be used.
    """
    arms, first_record = results.arms, results.finished[0]
    pooled = None
    if "predictions" in first_record:
        from experiments.report import polyp_tasks  # needs pyarrow

        estimates, differences = polyp_tasks.tables(directory, arms, resamples)
        labels = polyp_tasks.label_table(first_record.get("labelled", {}))
        pooled = {"estimates": estimates, "differences": differences, "labels": labels, "resamples": resamples}
    tasks = first_record["tasks"]
    first = next(iter(tasks.values()))["metric"]
    pairs = {task: _pairs(arms, row["metric"]) for task, row in tasks.items()}
    curves = {f"val_{row['metric']}": (f"validation {row['metric']}", 1.0) for row in tasks.values()}
    return {
        "summary": summary(arms),
        "differences": {task: difference_table(found, _signed, "mean") for task, found in pairs.items()},
        "difference_plot": difference_plot(
            pairs[next(iter(tasks))], colours(arms), f"difference of {first} to the baseline", 1
        ),
        "first": first,
        "pooled_polyps": pooled,
        "synthetic": any(record.get("synthetic") for record in results.finished),
        "anomalies": _anomalies(arms),
        "usage": {f"{arm}, level {i + 1}": figure for arm, records in arms.items() for i, figure in _usage(records)},
        "curves": learning_curves(arms, curves),
        "warnings": list(_missing(arms)),
    }


def summary(arms: Arms) -> Table:
    """Runs, parameters, and mean and standard deviation of the test metric of each task, one row per arm."""
    tasks = next(iter(arms.values()))[0]["tasks"]
    rows = []
    for arm, records in arms.items():
        sizes = sorted({record["parameters"]["params"] for record in records})
        cells = [
            " ± ".join(mean_and_std(list(_values(records, row["metric"]).values()), _form)) for row in tasks.values()
        ]
        rows.append((arm, str(len(records)), " or ".join(f"{size:,}" for size in sizes), *cells))
    return Table(("arm", "n", "parameters", *(row["metric"] for row in tasks.values())), rows)


def _values(records: list[Record], metric: str) -> dict[Any, float]:
    """The test metric by fold and seed."""
    found = {(record["fold"], record["seed"]): record["test"].get(metric) for record in records}
    return {key: float(value) for key, value in found.items() if value is not None}


def _pairs(arms: Arms, metric: str) -> dict[str, Paired]:
    """Every arm with the baseline, that of its streams if there are some."""
    controls = {arm: control for arm in arms if (control := baseline_of(arm, arms)) is not None}
    values = {arm: _values(records, metric) for arm, records in arms.items()}
    return {arm: paired(values[arm], values[control]) for arm, control in controls.items()}


def _anomalies(arms: Arms) -> Table:
    """Means over runs of how experts are used and what goes wrong with them, one row per arm."""
    own = dict.fromkeys(k for records in arms.values() for r in records for k in r["anomalies"] if k not in ANOMALIES)
    names = {**ANOMALIES, **{k: f"weight of own experts, {k.removeprefix('own_weight_')}" for k in own}}
    levels = {"entropy": "entropy of gates", "zeros": "share of outputs that are 0"}
    rows = []
    for arm, records in arms.items():
        of_levels = [_mean([v for r in records for level in r["experts"] for v in level.get(k, ())]) for k in levels]
        rows.append((arm, *of_levels, *(_mean([r["anomalies"].get(name) for r in records]) for name in names)))
    return Table(("arm", *levels.values(), *names.values()), rows)


def _mean(values: list[Any]) -> str:
    there = [value for value in values if is_number(value)]
    return _form(float(np.mean(there))) if there else NOT_AVAILABLE


def _usage(records: list[Record]) -> Iterator[tuple[int, Figure]]:
    """A picture a level: the mean weight of each expert in each gate, over runs."""
    for i, level in enumerate(records[0]["experts"]):
        weights = np.mean([record["experts"][i]["weights"] for record in records], 0)
        height, width = weights.shape
        with drawing(1.5 + 0.5 * width, 1.2 + 0.32 * height, grid=False) as (figure, axes):
            image = axes.imshow(np.ma.masked_equal(weights, 0), aspect="auto", cmap="viridis", vmin=0, vmax=1)
            axes.set_xticks(range(width), level["experts"], rotation=45, ha="right")
            axes.set_yticks(range(height), level["gates"])
            for row, column in np.argwhere(weights > 0):
                shade = "black" if weights[row, column] > 0.6 else "white"
                axes.text(column, row, f"{weights[row, column]:.2f}", ha="center", va="center", color=shade, fontsize=7)
            figure.colorbar(image, label="weight")
        yield i, figure


def _missing(arms: Arms) -> Iterator[str]:
    everything = {(record["fold"], record["seed"]) for records in arms.values() for record in records}
    if len(arms) > 1 and not any(baseline_of(arm, arms) for arm in arms):
        yield "No run of the baseline is finished, so there are no differences to it."
    for arm, records in arms.items():
        if missing := everything - {(record["fold"], record["seed"]) for record in records}:
            listed = ", ".join(f"fold {fold} seed {seed}" for fold, seed in sorted(missing))
            yield f"Arm {arm} has no finished run of {listed}; pairs use what both arms have."


_form: Callable[[float], str] = "{:.4g}".format
_signed: Callable[[float], str] = "{:+.3g}".format
