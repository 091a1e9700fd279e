"""Attention maps laid over images: one picture of all, and a page that holds everything it shows."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from PIL import Image

from experiments.report.figures import STYLE, Figure
from experiments.report.pages import render
from experiments.report.text_table import NOT_AVAILABLE, Table
from fsg_jax._files import replacing, write_text

CELL = 1.5
"""Inches, the height of an image in the picture."""
SMALL = 160
"""Pixels; narrower images are shown with square pixels."""


def overlay(image: np.ndarray, values: np.ndarray, numbers: Mapping[str, Any]) -> np.ndarray:
    """A map over a pale grey image: colours from its smallest value, blue, to its largest, red; uint8 RGB.

    A map that is the same everywhere, but for rounding, is blue.

    Args:
      image: (height, width, 3) in [0, 1].
      values: (height, width).
      numbers: of the map before it was enlarged, ``min`` and ``max``.
    """
    low, high = numbers["min"], numbers["max"]
    flat = high - low <= 1e-5 * high
    share = np.zeros_like(values) if flat else np.clip((values - low) / (high - low), 0, 1)
    grey = 0.25 + 0.6 * image @ np.array([0.299, 0.587, 0.114])
    return np.rint(255 * (0.45 * grey[..., None] + 0.55 * mpl.colormaps["turbo"](share)[..., :3])).astype(np.uint8)


def draw(file: Path, levels: Mapping[str, tuple[int, int]], shown: Sequence[Any]) -> None:
    """Writes a PNG file: a row an image, which comes first, then its overlays."""
    height, width = shown[0].image.shape[:2]
    columns, rows, cell = 1 + len(levels), len(shown), CELL * min(max(width / height, 0.5), 2)
    left, top, gap = 1.3, 0.4, 0.08
    size = (left + columns * (cell + gap), top + rows * (CELL + gap))
    with mpl.rc_context(STYLE), replacing(file) as temporary:
        figure = Figure(figsize=size)
        for i, one in enumerate(shown):
            pictures = [("image", one.image, "")]
            for name, numbers in one.row["levels"].items():
                pictures.append((_size(name, levels), overlay(one.image, one.maps[name], numbers), _range(numbers)))
            for j, (title, picture, told) in enumerate(pictures):
                x, y = left + j * (cell + gap), size[1] - top - (i + 1) * (CELL + gap) + gap
                axes = figure.add_axes((x / size[0], y / size[1], cell / size[0], CELL / size[1]))
                axes.imshow(picture, interpolation="nearest")
                axes.set_axis_off()
                box = {"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 1.5}
                axes.text(0.03, 0.04, told, fontsize=6, transform=axes.transAxes, bbox=box if told else None)
                if i == 0:
                    axes.set_title(title, fontsize=9)
            told = f"{_short(Path(one.row['path']).name)}\n{_told(one.row)}"
            middle = size[1] - top - i * (CELL + gap) - CELL / 2
            figure.text((left - 0.1) / size[0], middle / size[1], told, fontsize=8, ha="right", va="center")
        figure.savefig(temporary, format="png", dpi=150)


def write_page(file: Path, about: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], shown: Sequence[Any]) -> None:
    """Writes the page, with its pictures in it."""
    levels = {name: (size["rows"], size["columns"]) for name, size in about["levels"].items()}
    sections = []
    for one in shown:
        pictures = [("what the network saw", _png(np.rint(255 * one.image).astype(np.uint8)))]
        for name in levels:
            numbers = one.row["levels"][name]
            pictures.append((_caption(name, levels, numbers), _png(overlay(one.image, one.maps[name], numbers))))
        sections.append({"path": one.row["path"], "told": _told(one.row), "pictures": pictures})
    readable = [row for row in rows if "error" not in row]
    preprocessing = about["preprocessing"]
    content = {
        "about": about,
        "sections": sections,
        "readable": len(readable),
        "unreadable": [row for row in rows if "error" in row],
        "summary": _summary(levels, readable) if readable else None,
        "facts": Table(("", ""), [(key, _plain(value)) for key, value in preprocessing.items()]),
        "small": preprocessing["size"][1] < SMALL,
    }
    write_text(file, render("attention.html.j2", content))


def _summary(levels: Mapping[str, tuple[int, int]], rows: Sequence[Mapping[str, Any]]) -> Table:
    cells = []
    for name, (height, width) in levels.items():
        own = [row["levels"][name] for row in rows]
        entropies = [one["entropy"] for one in own if one["entropy"] is not None]
        numbers = (_spread(entropies), _spread([one["max"] for one in own]), f"{1 / (height * width):.2g}")
        cells.append((name, f"{height} x {width}", *numbers, _spread([one["sum"] for one in own])))
    return Table(("map", "positions", "entropy", "largest weight", "if uniform", "sum"), cells)


def _spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3g} ({np.min(values):.3g} to {np.max(values):.3g})" if values else NOT_AVAILABLE


def _caption(name: str, levels: Mapping[str, tuple[int, int]], numbers: Mapping[str, Any]) -> str:
    entropy = NOT_AVAILABLE if numbers["entropy"] is None else f"{numbers['entropy']:.3f}"
    return f"{_size(name, levels)}: {_range(numbers)}, entropy {entropy}"


def _range(numbers: Mapping[str, Any]) -> str:
    return f"{numbers['min']:.2g} to {numbers['max']:.2g}"


def _size(name: str, levels: Mapping[str, tuple[int, int]]) -> str:
    return f"{name}, {levels[name][0]} x {levels[name][1]}"


def _told(row: Mapping[str, Any]) -> str:
    if "value" in row:
        return f"value {row['value']:.4g}"
    return f"class {row['classes'][0]}, {row['probabilities'][0]:.3f}"


def _short(name: str) -> str:
    return name if len(name) <= 20 else f"{name[:8]}…{name[-10:]}"


def _plain(value: Any) -> str:
    return ", ".join(f"{one:.6g}" for one in value) if isinstance(value, list | tuple) else str(value)


def _png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return buffer.getvalue()
