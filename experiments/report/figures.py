"""Style, colours and encoding of the figures. They are made without pyplot, which keeps global state."""

import base64
import io
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH = 4.8
"""Inches; a figure that fills a narrow window keeps its text readable."""

STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "svg.hashsalt": "report",
    "text.parse_math": False,
}
_COLOURS = ("#222222", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")


def colours(arms: Iterable[str]) -> dict[str, str]:
    """One colour per arm from the palette of Okabe and Ito (2008), the first black; seven, then repeated."""
    return {arm: _COLOURS[index % len(_COLOURS)] for index, arm in enumerate(arms)}


@contextmanager
def drawing(width: float, height: float, *, grid: bool = True) -> Iterator[tuple[Figure, Axes]]:
    """Gives an empty figure of `width` x `height` inches with one set of axes, and the style while it is drawn."""
    with mpl.rc_context(STYLE | {"axes.grid": grid}):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.add_subplot()


def data_uri(image: Figure | bytes) -> str:
    """A figure as SVG, or the content of a PNG file, in a data URI; equal figures give equal text."""
    kind = "png"
    if isinstance(image, Figure):
        kind, buffer = "svg+xml", io.BytesIO()
        with mpl.rc_context(STYLE), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing|constrained_layout", UserWarning)
            image.savefig(buffer, format="svg", metadata={"Date": None})
        image = re.sub(rb"[\x00-\x08\x0b-\x1f]", b"", buffer.getvalue())  # of names; XML has none
    return f"data:image/{kind};base64,{base64.b64encode(image).decode('ascii')}"


class Difference(NamedTuple):
    """A difference, the ends of its interval (NaN if there is none), a colour, and the differences of single runs."""

    value: float
    low: float
    high: float
    colour: str
    single: Sequence[float] = ()


def forest(rows: Mapping[str, Difference], label: str, factor: float, width: float = WIDTH) -> Figure | None:
    """Differences times a factor, one row each: a diamond for the value, a bar for its interval, dots for single runs.

    None without any.
    """
    if not rows:
        return None
    with drawing(width, 1.0 + 0.47 * len(rows)) as (figure, axes):
        axes.axvline(0, color="#222222", linewidth=1)
        for place, row in enumerate(rows.values()):
            value, low, high, single = (factor * np.asarray(part) for part in (*row[:3], row.single))
            axes.scatter(single, np.full(len(single), place + 0.2), s=18, color=row.colour, alpha=0.6, linewidth=0)
            if np.isfinite([low, high]).all():
                axes.plot([low, high], [place, place], color=row.colour, linewidth=2.5)
            axes.scatter([value], [place], marker="D", s=40, color=row.colour, zorder=3)
        axes.set_yticks(range(len(rows)), list(rows))
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(label)
    return figure
