"""Figures of predicted against true size, and of differences with their intervals."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.endoscopy.polyp_report.evaluation import Rows, confusion_by_polyp
from experiments.endoscopy.polyp_report.predictions import Predictions
from experiments.endoscopy.polyp_report.tables import words
from experiments.report.figures import STYLE, WIDTH, new_figure
from fsg_jax.endoscopy import sizing
from fsg_jax.endoscopy.sizing import ClassScheme, Interval, PolypPredictions

_GREY = "#777777"


def per_polyp(data: Predictions) -> PolypPredictions:
    """Median and quartiles over the frames (of all seeds) of every polyp."""
    if data.predicted_mm is None:
        raise ValueError("a classification predicts no sizes")
    return sizing.aggregate_sizes(data.polyp.tolist(), data.size_mm, data.predicted_mm)


def scatter(found: PolypPredictions, colour: str, limit: float) -> Figure:
    """Predicted against true size, one dot per polyp with the quartiles of its frames."""
    with mpl.rc_context(STYLE):
        figure, axes = new_figure(WIDTH, 4.2)
        axes.plot([0, limit], [0, limit], color=_GREY, linewidth=1)
        for threshold in sizing.TRI_CLASS.thresholds:
            axes.axvline(threshold, color=_GREY, linewidth=0.8, linestyle=":")
            axes.axhline(threshold, color=_GREY, linewidth=0.8, linestyle=":")
        bars = np.stack([found.predicted_mm - found.low_mm, found.high_mm - found.predicted_mm])
        style: dict[str, Any] = {"fmt": "o", "color": colour, "markersize": 4, "linewidth": 0.8, "alpha": 0.75}
        axes.errorbar(spread(found.size_mm), found.predicted_mm, bars, **style)
        axes.set(xlabel="true size, mm", ylabel="predicted size, mm", xlim=(0, limit), ylim=(0, limit))
        axes.locator_params(integer=True)
        axes.set_aspect("equal")
    return figure


def spread(sizes: np.ndarray, step: float = 0.12) -> np.ndarray:
    """The sizes with equal ones moved apart sideways, evenly about their place."""
    moved = np.array(sizes, dtype=float)
    for size in np.unique(sizes):
        rows = np.flatnonzero(sizes == size)
        width = min(step, 0.7 / len(rows))
        moved[rows] += width * (np.arange(len(rows)) - (len(rows) - 1) / 2)
    return moved


def limits_of_agreement(found: PolypPredictions) -> tuple[float, float, float]:
    """Bias and bias ∓ 1.96 standard deviations (ddof = 1) of predicted - true: Bland and Altman (1986).

    The limits are NaN for fewer than two polyps.
    """
    difference = found.predicted_mm - found.size_mm
    margin = 1.96 * float(difference.std(ddof=1)) if len(difference) > 1 else float("nan")
    bias = float(difference.mean())
    return bias, bias - margin, bias + margin


def bland_altman(found: PolypPredictions, colour: str, limit: float, extent: tuple[float, float]) -> Figure:
    """Difference against mean of predicted and true size, one dot per polyp, with the limits of agreement."""
    with mpl.rc_context(STYLE):
        figure, axes = new_figure(WIDTH, 4.2)
        mean, difference = (found.predicted_mm + found.size_mm) / 2, found.predicted_mm - found.size_mm
        axes.axhline(0, color=_GREY, linewidth=1)
        axes.scatter(mean, difference, s=18, color=colour, alpha=0.75, linewidth=0)
        bias, low, high = limits_of_agreement(found)
        for value, style in ((bias, "-"), (low, "--"), (high, "--")):
            if np.isfinite(value):
                axes.axhline(value, color=colour, linewidth=1.2, linestyle=style)
                place: dict[str, Any] = {"xycoords": axes.get_yaxis_transform(), "va": "bottom", "ha": "right"}
                axes.annotate(f"{value:+.2f}", (1, value), fontsize=9, **place)
        axes.set(xlabel="mean of predicted and true, mm", ylabel="predicted - true, mm", xlim=(0, limit), ylim=extent)
        axes.locator_params(axis="x", integer=True)
    return figure


def difference_range(everything: Sequence[PolypPredictions]) -> tuple[float, float]:
    """One vertical range for all Bland-Altman figures."""
    values = np.concatenate([found.predicted_mm - found.size_mm for found in everything])
    limits = [limit for found in everything for limit in limits_of_agreement(found) if np.isfinite(limit)]
    margin = 1.12 * max(np.abs(values).max(), *np.abs(limits), 1.0)
    return -margin, margin


def confusion(rows: Rows, scheme: ClassScheme) -> Figure:
    """Counts, shaded by their share of the true class."""
    counts = confusion_by_polyp(rows, scheme)[1].sum(0)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    names = [words(name) for name in scheme.classes]
    with mpl.rc_context(STYLE | {"axes.grid": False}):
        figure, axes = new_figure(3.2, 3.0)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if shares[row, column] > 0.6 else "#222222"
            text = f"{count:,}\n{100 * shares[row, column]:.0f} %"
            axes.text(column, row, text, ha="center", va="center", color=colour)
        axes.set_xticks(range(len(names)), [name.replace(" ", "\n", 1) for name in names])
        axes.set_yticks(range(len(names)), [name.replace(" ", "\n", 1) for name in names])
        axes.set(xlabel="predicted", ylabel="true")
    return figure


def forest(intervals: Mapping[str, Interval], label: str) -> Figure | None:
    """Differences with their intervals, one row each; None without any."""
    if not intervals:
        return None
    with mpl.rc_context(STYLE):
        figure, axes = new_figure(1.5 * WIDTH, 1.0 + 0.48 * len(intervals))
        axes.axvline(0, color="#222222", linewidth=1)
        for row, found in enumerate(intervals.values()):
            _forest_row(axes, row, found)
        axes.set_yticks(range(len(intervals)), list(intervals), fontsize=9)
        axes.set_ylim(len(intervals) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(label)
    return figure


def _forest_row(axes: Axes, row: int, found: Interval) -> None:
    colour = "#0072B2" if found.low > 0 or found.high < 0 else _GREY
    if np.isfinite([found.low, found.high]).all():
        axes.plot([found.low, found.high], [row, row], color=colour, linewidth=2.5)
    axes.scatter([found.value], [row], marker="D", s=40, color=colour, zorder=3)
