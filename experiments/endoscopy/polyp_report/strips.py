"""Strips: the predictions for single polyps, frame by frame."""

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from experiments.endoscopy.polyp_report.predictions import Predictions
from experiments.report.figures import STYLE, WIDTH, new_figure
from fsg_jax.endoscopy import sizing
from fsg_jax.endoscopy.index.schema import natural_key


def choose(arms: Mapping[str, Predictions], count: int = 6) -> list[str]:
    """Up to `count` polyps that all arms have tested (or any, where none is), evenly spread over the sizes."""
    tested = [set(data.polyp.tolist()) for data in arms.values()]
    shared = set.intersection(*tested) or set.union(*tested)
    size = {p: s for data in arms.values() for p, s in zip(data.polyp.tolist(), data.size_mm.tolist(), strict=True)}
    ordered = sorted(shared, key=lambda polyp: (size[polyp], natural_key(polyp)))
    places = np.unique(np.linspace(0, len(ordered) - 1, min(count, len(ordered))).round().astype(int))
    return [ordered[place] for place in places]


def caption(polyp: str, arms: Mapping[str, Predictions]) -> str:
    """The polyp and its size."""
    found = next(data.size_mm[data.polyp == polyp] for data in arms.values() if (data.polyp == polyp).any())
    return f"{polyp}: {found[0]:g} mm"


def strip(polyp: str, arms: Mapping[str, Predictions], palette: Mapping[str, str], limit: float) -> Figure:
    """Predicted size (or probability of the true class) over the frames in natural order, of each arm's first seed."""
    shown = {name: data for name, data in arms.items() if (data.polyp == polyp).any()}
    regression = all(data.scheme is None for data in shown.values())
    with mpl.rc_context(STYLE):
        figure, axes = new_figure(WIDTH, 2.6)
        for name, data in shown.items():
            values, size_mm = series(data, polyp)
            style: dict[str, Any] = {"marker": "o" if len(values) < 40 else "", "markersize": 3, "linewidth": 1.2}
            axes.plot(range(1, len(values) + 1), values, color=palette[name], **style)
        if regression:
            axes.axhline(size_mm, color="#888888", linewidth=1.8, linestyle="--")
        label = "predicted size, mm" if regression else "probability of true class"
        axes.set(xlabel="frame, in order", ylabel=label, ylim=(0, limit if regression else 1.02))
    return figure


def series(data: Predictions, polyp: str) -> tuple[np.ndarray, float]:
    """The values of one polyp, which is there, in the natural order of its frames; and its size."""
    rows = np.flatnonzero(data.polyp == polyp)
    rows = rows[data.seed[rows] == data.seed[rows].min()]
    rows = rows[sorted(range(rows.size), key=lambda index: natural_key(str(data.frame[rows[index]])))]
    size_mm = data.size_mm[rows]
    if data.predicted_mm is not None:
        return data.predicted_mm[rows], float(size_mm[0])
    if data.probabilities is None or data.scheme is None:
        raise ValueError("predictions: expected sizes or class probabilities, found neither")
    return data.probabilities[rows, sizing.class_of(size_mm, data.scheme)], float(size_mm[0])
