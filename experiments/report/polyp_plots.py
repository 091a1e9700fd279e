"""Figures of polyp sizing: predicted against true size, confusion matrices, and single polyps frame by frame."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.report.figures import WIDTH, drawing
from experiments.report.polyp_metrics import Rows, confusion_by_polyp
from experiments.report.polyp_predictions import Predictions
from experiments.report.polyp_tables import words
from fsg_jax.endoscopy import sizing
from fsg_jax.endoscopy.index.schema import natural_key
from fsg_jax.endoscopy.sizing import ClassScheme, PolypPredictions

_GREY = "#777777"


def per_polyp(data: Predictions) -> PolypPredictions:
    """Median and quartiles over the frames (of all seeds) of every polyp of a regression."""
    return sizing.aggregate_sizes(data["polyp"].tolist(), data["size_mm"], data["predicted_mm"])


def scatter(found: PolypPredictions, colour: str, limit: float) -> Figure:
    """Predicted against true size, one dot per polyp with the quartiles of its frames."""
    with drawing(WIDTH, 4.2) as (figure, axes):
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
    with drawing(WIDTH, 4.2) as (figure, axes):
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


def difference_range(everything: Collection[PolypPredictions]) -> tuple[float, float]:
    """One vertical range for all Bland-Altman figures."""
    values = np.concatenate([found.predicted_mm - found.size_mm for found in everything])
    limits = [limit for found in everything for limit in limits_of_agreement(found) if np.isfinite(limit)]
    margin = 1.12 * max(np.abs(values).max(), *np.abs(limits), 1.0)
    return -margin, margin


def confusion(rows: Rows, scheme: ClassScheme) -> Figure:
    """Counts, shaded by their share of the true class."""
    counts = confusion_by_polyp(rows, scheme)[1].sum(0)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    names = [words(name).replace(" ", "\n", 1) for name in scheme.classes]
    with drawing(3.2, 3.0, grid=False) as (figure, axes):
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if shares[row, column] > 0.6 else "#222222"
            text = f"{count:,}\n{100 * shares[row, column]:.0f} %"
            axes.text(column, row, text, ha="center", va="center", color=colour)
        axes.set_xticks(range(len(names)), names)
        axes.set_yticks(range(len(names)), names)
        axes.set(xlabel="predicted", ylabel="true")
    return figure


def choose(arms: Mapping[str, Predictions], count: int = 6) -> list[str]:
    """Up to `count` polyps that all arms have tested (or any, where none is), evenly spread over the sizes."""
    tested = [set(data["polyp"].tolist()) for data in arms.values()]
    shared = set.intersection(*tested) or set.union(*tested)
    size = {
        p: s for data in arms.values() for p, s in zip(data["polyp"].tolist(), data["size_mm"].tolist(), strict=True)
    }
    ordered = sorted(shared, key=lambda polyp: (size[polyp], natural_key(polyp)))
    places = np.unique(np.linspace(0, len(ordered) - 1, min(count, len(ordered))).round().astype(int))
    return [ordered[place] for place in places]


def strips(arms: Mapping[str, Predictions], palette: Mapping[str, str], limit: float) -> dict[str, Figure]:
    """Predicted size (or probability of the true class) over the frames of some polyps, by polyp and size.

    The frames are in natural order, those of each arm's first seed.
    """
    figures = {}
    for polyp in choose(arms):
        shown = {name: data for name, data in arms.items() if (data["polyp"] == polyp).any()}
        regression = all(data.scheme is None for data in shown.values())
        with drawing(WIDTH, 2.6) as (figure, axes):
            for name, data in shown.items():
                values, size_mm = series(data, polyp)
                marker = "o" if len(values) < 40 else ""
                frames = range(1, len(values) + 1)
                axes.plot(frames, values, color=palette[name], marker=marker, markersize=3, linewidth=1.2)
            if regression:
                axes.axhline(size_mm, color="#888888", linewidth=1.8, linestyle="--")
            title = "predicted size, mm" if regression else "probability of true class"
            axes.set(xlabel="frame, in order", ylabel=title, ylim=(0, limit if regression else 1.02))
        figures[f"{polyp}: {size_mm:g} mm"] = figure
    return figures


def series(data: Predictions, polyp: str) -> tuple[np.ndarray, float]:
    """The values of one polyp, which is there, in the natural order of its frames; and its size."""
    rows = np.flatnonzero(data["polyp"] == polyp)
    rows = rows[data["seed"][rows] == data["seed"][rows].min()]
    rows = rows[sorted(range(rows.size), key=lambda index: natural_key(str(data["frame"][rows[index]])))]
    data = data.take(rows)
    size_mm = float(data["size_mm"][0])
    if data.scheme is None:
        return data["predicted_mm"], size_mm
    return data[data.scheme.columns[sizing.class_of(data["size_mm"], data.scheme)[0]]], size_mm
