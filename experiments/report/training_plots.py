"""Figures of the training: learning curves, final gates by layer, and the mean gate of each layer over the epochs."""

from collections.abc import Iterable, Mapping

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.report.figures import WIDTH, colours, drawing
from experiments.report.results_file import Arms, Record, is_number

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_BINS = 20


def learning_curves(arms: Arms, curves: Mapping[str, tuple[str, float]]) -> dict[str, Figure]:
    """Figures by label: mean over runs, with a band of one std (ddof=1), of columns of the history.

    Args:
        arms: Finished records.
        curves: The label and the scale of each column; those that no record has are left out.
    """
    figures = {label: _learning_curve(arms, name, label, scale) for name, (label, scale) in curves.items()}
    return {label: figure for label, figure in figures.items() if figure is not None}


def _learning_curve(arms: Arms, name: str, label: str, scale: float) -> Figure | None:
    with drawing(WIDTH, 3.6) as (figure, axes):
        for index, (arm, colour) in enumerate(colours(arms).items()):
            epochs, mean, std = curve(arms[arm], name)
            if epochs.size:
                epochs, mean, std = with_gaps(epochs, scale * mean, scale * std)
                alone = np.flatnonzero(_alone(mean))
                axes.fill_between(epochs, mean - std, mean + std, color=colour, alpha=0.15, linewidth=0)
                axes.errorbar(epochs[alone], mean[alone], std[alone], fmt="none", ecolor=colour, alpha=0.4)
                (line,) = axes.plot(epochs, mean, color=colour, markersize=4, linewidth=1.5)
                every = max(1, epochs.size // 8)
                line.set(
                    label=f" {arm}" if arm.startswith("_") else arm,
                    marker=_MARKERS[index % len(_MARKERS)],
                    markevery=sorted({*range(index % every, epochs.size, every), *alone.tolist()}),
                )
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        handles, labels = axes.get_legend_handles_labels()
        if not handles:
            return None
        columns = min(3, max(1, 45 // max(map(len, labels))))
        figure.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False)
    return figure


def curve(records: Iterable[Record], name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Epochs, mean and std (ddof=1; 0 for one run) over the runs that have `name` at that epoch.

    Values that are present and not finite make the mean of that epoch NaN, which is drawn as a gap.
    """
    by_epoch: dict[float, list[float]] = {}
    for record in records:
        for row in record["history"]:
            if row.get(name) is not None:
                value = row[name] if is_number(row[name]) else np.nan
                by_epoch.setdefault(row["epoch"], []).append(value)
    epochs = sorted(by_epoch)
    mean = [np.mean(by_epoch[epoch]) for epoch in epochs]
    std = [np.std(by_epoch[epoch], ddof=1) if len(by_epoch[epoch]) > 1 else 0.0 for epoch in epochs]
    return np.array(epochs), np.array(mean, dtype=float), np.array(std, dtype=float)


def with_gaps(epochs: np.ndarray, *values: np.ndarray) -> tuple[np.ndarray, ...]:
    """`epochs` and `values` with a NaN between epochs that do not follow each other, so that no line passes there."""
    gaps = np.flatnonzero(np.diff(epochs) > 1) + 1
    return tuple(np.insert(each.astype(float), gaps, np.nan) for each in (epochs, *values))


def _alone(values: np.ndarray) -> np.ndarray:
    """Whether each value has no neighbour to be joined with by a line."""
    there = np.isfinite(values)
    neighbours = np.concatenate([[False], there, [False]])
    return there & ~neighbours[:-2] & ~neighbours[2:]


def histograms(arms: Arms) -> dict[str, Figure]:
    """One figure per layer: share of the final gate values per bin, runs pooled, arms overlaid.

    All layers have the bins of the range of all values, so that they can be compared.
    """
    layers, palette = final_gates(arms), colours(arms)
    if not layers:
        return {}
    low, high = _padded(np.concatenate([values for by_arm in layers.values() for values in by_arm.values()]))
    edges = np.linspace(low, high, _BINS + 1)
    figures = {}
    for layer, by_arm in layers.items():
        with drawing(3.0, 2.2) as (figure, axes):
            for arm, values in by_arm.items():
                share = np.histogram(values, edges)[0] / values.size
                axes.stairs(share, edges, color=palette[arm], linewidth=1.4)
                axes.stairs(share, edges, color=palette[arm], alpha=0.12, fill=True)
            axes.set(xlabel="gate value", ylabel="share of gates", xlim=(low, high))
            axes.locator_params(nbins=4)
        figures[layer] = figure
    return figures


def final_gates(arms: Arms) -> dict[str, dict[str, np.ndarray]]:
    """Finite final gate values by layer and arm, pooled over runs, in forward order."""
    pooled: dict[str, dict[str, np.ndarray]] = {}
    for arm, records in arms.items():
        for layer in dict.fromkeys(layer for record in records for layer in record["gates"]):
            values = [value for record in records for value in record["gates"].get(layer, ()) if is_number(value)]
            if values:
                pooled.setdefault(layer, {})[arm] = np.array(values, dtype=float)
    return pooled


def heatmaps(arms: Arms) -> dict[str, Figure]:
    """One figure per gated arm: mean gate of each layer by epoch, averaged over runs; one colour scale."""
    grids = {arm: found for arm, records in arms.items() if (found := mean_gates(records))[0]}
    finite = np.concatenate([[], *(grid[np.isfinite(grid)] for _, _, grid in grids.values())])
    if not finite.size:
        return {}
    low, high = _padded(finite)
    figures = {}
    for arm, (layers, epochs, grid) in grids.items():
        with drawing(WIDTH, 1.5 + 0.24 * len(layers), grid=False) as (figure, axes):
            colormap = mpl.colormaps["viridis"].with_extremes(bad="#dddddd")
            image = axes.imshow(grid, aspect="auto", cmap=colormap, vmin=low, vmax=high)
            shown = np.unique(np.linspace(0, len(epochs) - 1, min(len(epochs), 6)).round().astype(int))
            axes.set_xticks(shown, [f"{epochs[index]:g}" for index in shown])
            axes.set_yticks(range(len(layers)), layers)
            axes.set_xlabel("epoch")
            figure.colorbar(image, location="bottom", label="mean gate", aspect=35, ticks=MaxNLocator(5))
        figures[arm] = figure
    return figures


def mean_gates(records: Iterable[Record]) -> tuple[list[str], list[float], np.ndarray]:
    """Layers, epochs and the mean gate (layers x epochs; NaN where not logged); none without gates."""
    cells: dict[tuple[str, float], list[float]] = {}
    for record in records:
        for row in record["history"]:
            for layer, entry in (row.get("gates") or {}).items():
                if is_number(entry.get("mean")):
                    cells.setdefault((layer, row["epoch"]), []).append(entry["mean"])
    layers = list(dict.fromkeys(layer for layer, _ in cells))
    epochs = sorted({epoch for _, epoch in cells})
    means = [[np.mean(cells.get((layer, epoch), [np.nan])) for epoch in epochs] for layer in layers]
    return layers, epochs, np.array(means, dtype=float)


def _padded(values: np.ndarray) -> tuple[float, float]:
    """The range of the values, widened to 0.02 where it is narrower."""
    low, high = float(values.min()), float(values.max())
    margin = max(0.0, 0.02 - (high - low)) / 2
    return low - margin, high + margin
