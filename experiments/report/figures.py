"""Style, colours and encoding of the figures. They are made without pyplot, which keeps global state."""

import base64
import io
from collections.abc import Iterable
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH = 4.8
"""Inches; a figure that fills a narrow window keeps its text readable."""

STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "svg.hashsalt": "report",
}
_COLOURS = ("#222222", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")


def colours(arms: Iterable[str]) -> dict[str, str]:
    """One colour per arm from the palette of Okabe and Ito (2008), the first black; seven, then repeated."""
    return {arm: _COLOURS[index % len(_COLOURS)] for index, arm in enumerate(arms)}


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure of `width` x `height` inches with one set of axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def data_uri(figure: Figure) -> str:
    """The figure as an SVG image in a data URI; equal figures give equal text."""
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
