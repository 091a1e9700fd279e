"""The page and the picture of `experiments.localise`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import experiments.report.backend  # noqa: F401  imports matplotlib
from experiments.report.figures import STYLE, Figure, mpl
from experiments.report.text_table import NOT_AVAILABLE, Table, text
from fsg_jax._files import replacing, write_text
from fsg_jax.explain import binarise

COLUMNS = ("network", "map", "seeds", "chosen", "Jaccard, Otsu", "Jaccard, own threshold", "pointing game")
EACH = 3
"""Good frames that are drawn, and as many bad ones."""


def write_page(file: Path, found: Mapping[str, Any]) -> None:
    """Writes the table in Markdown, how it was made, and what a reader should know of the data."""
    settings, facts = found["settings"], found["facts"]
    rows = []
    for row in found["summary"]:
        variants = ", ".join(row["variants"])
        cells = [
            f"{s['mean']:.3f} [{s['low']:.3f}, {s['high']:.3f}]" for s in map(row.get, ("otsu", "share", "pointing"))
        ]
        rows.append((row["arm"], row["kind"], str(row["seeds"]), variants, *cells))
    names = ("commit", "dirty", "command", "python", "versions", "hardware", "started")
    origin = Table(("fact", "value"), [(name, text(facts.get(name, NOT_AVAILABLE))) for name in names], numeric=False)
    parts = [
        "# Where networks that learned from crops look",
        f"{len(settings['test'])} whole test frames of Kvasir-SEG, none of whose masks a network has seen. Level, "
        "layer, blur and own threshold (a share of the pixels of each frame) were chosen on "
        f"{settings['validation']} validation frames. Means with 95 % intervals of a bootstrap over frames; the scores "
        "of a frame are means over seeds. The pointing game has no tolerance. Kvasir-SEG has no patients: "
        "near-duplicate frames may lie on both sides of its published split.",
        Table(COLUMNS, rows).markdown(),
        "![maps of good and bad frames](localise.png)",
        f"## Origin\n\n{origin.markdown()}",
    ]
    write_text(file, "\n\n".join(parts) + "\n")


def draw(file: Path, test: Any, shown: Mapping[tuple[str, str], Any]) -> None:
    """Writes a PNG: frames with the outline of the mask and of each map made binary by Otsu's threshold.

    Rows are the frames that attention (or the first kind of map of a network) finds best and worst, columns are maps.
    """
    keys = [key for key in shown if key[1] != "gradient" and key[1] != "centre"]
    by = next((key for key in keys if key[1] == "attention"), keys[0])
    order = np.argsort(-shown[by].scores["otsu"], kind="stable")
    each = min(EACH, len(order) // 2) or 1
    picked = list(dict.fromkeys([*order[:each], *order[-each:]]))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(2.1 * (1 + len(keys)), 2.2 * len(picked)), layout="constrained")
        grid = figure.subplots(len(picked), 1 + len(keys), squeeze=False)
        for line, index in zip(grid, picked, strict=True):
            for axes, key in zip(line, [None, *keys], strict=True):
                axes.imshow(test.images[index])
                axes.set_axis_off()
                axes.contour(test.masks[index], [0.5], colors="white", linewidths=1)
                if key is None:
                    axes.set_title(test.names[index], fontsize=7)
                    continue
                values = shown[key].maps[index]
                axes.imshow(values, cmap="magma", alpha=0.5)
                if (found := binarise(values)).any():
                    axes.contour(found, [0.5], colors="cyan", linewidths=1)
                arm = key[0].split()[-1]
                axes.set_title(f"{arm}, {key[1]}: {shown[key].scores['otsu'][index]:.2f}", fontsize=7)
        with replacing(file) as temporary:
            figure.savefig(temporary, format="png", dpi=110)
