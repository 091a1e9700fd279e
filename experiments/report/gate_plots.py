"""Figures of the gates: final values by layer, and the mean of each layer over the epochs."""

from collections.abc import Iterable, Mapping

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.report.figures import STYLE, WIDTH, colours, new_figure
from experiments.report.records import Arms, Record, is_number

_BINS = 20


def histograms(arms: Arms) -> dict[str, Figure]:
    """One figure per layer: share of the final gate values per bin, seeds pooled, arms overlaid.

    All layers have the bins of the range of all values, so that they can be compared.
    """
    layers = final_gates(arms)
    values = [found for by_arm in layers.values() for found in by_arm.values()]
    if not values:
        return {}
    edges = _edges(np.concatenate(values))
    palette = colours(arms)
    return {layer: _histogram(by_arm, edges, palette) for layer, by_arm in layers.items()}


def final_gates(arms: Arms) -> dict[str, dict[str, np.ndarray]]:
    """Finite final gate values by layer and arm, pooled over seeds, in forward order."""
    pooled: dict[str, dict[str, list[float]]] = {}
    for arm, seeds in arms.items():
        for record in seeds.values():
            for layer, values in record["gates"].items():
                finite = [value for value in values if is_number(value)]
                if finite:
                    pooled.setdefault(layer, {}).setdefault(arm, []).extend(finite)
    return {
        layer: {arm: np.array(values, dtype=float) for arm, values in by_arm.items()}
        for layer, by_arm in pooled.items()
    }


def heatmaps(arms: Arms) -> dict[str, Figure]:
    """One figure per gated arm: mean gate of each layer by epoch, averaged over seeds; one colour scale."""
    grids = {arm: found for arm, seeds in arms.items() if (found := mean_gates(seeds.values()))}
    finite = np.concatenate([g[np.isfinite(g)] for _, _, g in grids.values()]) if grids else np.array([])
    if not finite.size:
        return {}
    limits = _padded(finite)
    return {arm: _heatmap(*found, limits) for arm, found in grids.items()}


def mean_gates(records: Iterable[Record]) -> tuple[list[str], list[float], np.ndarray] | None:
    """Layers, epochs and the mean gate (layers x epochs; NaN where not logged); None without gates."""
    cells: dict[tuple[str, float], list[float]] = {}
    for record in records:
        for row in record["history"]:
            for layer, entry in (row.get("gates") or {}).items():
                if is_number(entry.get("mean")):
                    cells.setdefault((layer, row["epoch"]), []).append(entry["mean"])
    if not cells:
        return None
    layers = list(dict.fromkeys(layer for layer, _ in cells))
    epochs = sorted({epoch for _, epoch in cells})
    means = [[np.mean(cells.get((layer, epoch), [np.nan])) for epoch in epochs] for layer in layers]
    return layers, epochs, np.array(means, dtype=float)


def _histogram(by_arm: Mapping[str, np.ndarray], edges: np.ndarray, palette: Mapping[str, str]) -> Figure:
    with mpl.rc_context(STYLE):
        figure, axes = new_figure(3.0, 2.2)
        for arm, values in by_arm.items():
            share = np.histogram(values, edges)[0] / values.size
            axes.stairs(share, edges, color=palette[arm], linewidth=1.4)
            axes.stairs(share, edges, color=palette[arm], alpha=0.12, fill=True)
        axes.set(xlabel="gate value", ylabel="share of gates", xlim=(edges[0], edges[-1]))
        axes.locator_params(nbins=4)
    return figure


def _heatmap(layers: list[str], epochs: list[float], grid: np.ndarray, limits: tuple[float, float]) -> Figure:
    with mpl.rc_context(STYLE | {"axes.grid": False}):
        figure, axes = new_figure(WIDTH, 1.5 + 0.24 * len(layers))
        colormap = mpl.colormaps["viridis"].with_extremes(bad="#dddddd")
        image = axes.imshow(grid, aspect="auto", cmap=colormap, vmin=limits[0], vmax=limits[1])
        shown = np.unique(np.linspace(0, len(epochs) - 1, min(len(epochs), 6)).round().astype(int))
        axes.set_xticks(shown, [f"{epochs[index]:g}" for index in shown])
        axes.set_yticks(range(len(layers)), layers)
        axes.set_xlabel("epoch")
        figure.colorbar(image, location="bottom", label="mean gate", aspect=35, ticks=MaxNLocator(5))
    return figure


def _edges(values: np.ndarray) -> np.ndarray:
    return np.linspace(*_padded(values), _BINS + 1)


def _padded(values: np.ndarray) -> tuple[float, float]:
    """The range of the values, widened to 0.02 where it is narrower."""
    low, high = float(values.min()), float(values.max())
    margin = max(0.0, 0.02 - (high - low)) / 2
    return low - margin, high + margin
