"""A picture of gates: for each gate its values from the largest down, a line a network."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np

from experiments.gate_values import Gates
from experiments.report.figures import STYLE, Figure, colours

COLUMNS = 4


def draw(file: Path, title: str, networks: Sequence[Gates], threshold: float | None) -> None:
    """Writes a PNG file; a dashed line is the threshold, if there is one."""
    names = list(dict.fromkeys(name for one in networks for name in one.values))
    columns = min(COLUMNS, len(names))
    rows = -(-len(names) // columns)
    palette = colours(one.name for one in networks)
    with mpl.rc_context(STYLE | {"axes.grid": True}):
        figure = Figure(figsize=(2.6 * max(columns, 2), 2.2 * rows + 0.8), layout="constrained")
        grid = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
        for axes, name in zip(grid, names, strict=False):
            for one in networks:
                if name in one.values:
                    values = np.sort(one.values[name])[::-1]
                    place = (np.arange(values.size) + 0.5) / values.size
                    axes.plot(place, values, color=palette[one.name], linewidth=1.3, label=one.name)
            if threshold is not None:
                axes.axhline(threshold, color="#888888", linewidth=0.8, linestyle="--")
            axes.set_title(name, fontsize=9)
            axes.set_xlabel("share of channels, largest first", fontsize=8)
        for axes in grid[len(names) :]:
            axes.remove()
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", frameon=False, fontsize=8, ncols=2)
        figure.supylabel("gate value", fontsize=9)
        figure.suptitle(title, fontsize=10)
        figure.savefig(file, format="png", dpi=150)
