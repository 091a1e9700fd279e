"""Figures of the accuracy: learning curves and paired differences."""

from collections.abc import Iterable, Mapping

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from experiments.report.figures import STYLE, WIDTH, colours, new_figure
from experiments.report.records import Arms, Record, is_number
from experiments.report.statistics import Paired

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def learning_curve(arms: Arms, name: str, label: str, scale: float = 1.0) -> Figure | None:
    """Mean over seeds of the history entry `name`, with a band of one std (ddof=1); None without data."""
    with mpl.rc_context(STYLE):
        figure, axes = new_figure(WIDTH, 3.6)
        for index, (arm, colour) in enumerate(colours(arms).items()):
            epochs, mean, std = curve(arms[arm].values(), name)
            if epochs.size:
                (line,) = _mean_and_band(axes, epochs, scale * mean, scale * std, colour)
                every = max(1, epochs.size // 8)
                line.set(label=arm, marker=_MARKERS[index % len(_MARKERS)], markevery=(index % every, every))
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        handles, labels = axes.get_legend_handles_labels()
        if not handles:
            return None
        columns = min(3, max(1, 45 // max(map(len, labels))))
        figure.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False)
    return figure


def curve(records: Iterable[Record], name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Epochs, mean and std (ddof=1; 0 for one seed) over the seeds that have `name` at that epoch.

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


def _mean_and_band(axes: Axes, epochs: np.ndarray, mean: np.ndarray, std: np.ndarray, colour: str) -> list[Line2D]:
    axes.fill_between(epochs, mean - std, mean + std, color=colour, alpha=0.15, linewidth=0)
    return axes.plot(epochs, mean, color=colour, markersize=4, linewidth=1.5)


def difference_plot(pairs: Mapping[str, Paired], palette: Mapping[str, str]) -> Figure | None:
    """Paired differences in percentage points: a dot per seed, a bar per interval, a diamond per mean."""
    drawn = {arm: pair for arm, pair in pairs.items() if pair.mean is not None}
    if not drawn:
        return None
    with mpl.rc_context(STYLE):
        figure, axes = new_figure(WIDTH, 1.0 + 0.45 * len(drawn))
        axes.axvline(0, color="#222222", linewidth=1)
        for row, (arm, pair) in enumerate(drawn.items()):
            _difference_row(axes, row, pair, palette[arm])
        axes.set_yticks(range(len(drawn)), list(drawn))
        axes.set_ylim(len(drawn) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("difference to the baseline, percentage points")
    return figure


def _difference_row(axes: Axes, row: int, pair: Paired, colour: str) -> None:
    values = 100 * np.array(list(pair.differences.values()))
    axes.scatter(values, np.full(values.size, row + 0.2), s=18, color=colour, alpha=0.6, linewidth=0)
    if pair.interval is not None:
        low, high = pair.interval
        axes.plot([100 * low, 100 * high], [row, row], color=colour, linewidth=2.5)
    axes.scatter([np.mean(values)], [row], marker="D", s=40, color=colour, zorder=3)
