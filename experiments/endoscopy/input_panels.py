"""Pictures of what the network is given: the frame with its box, and each stream."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa

from experiments.endoscopy import cohort as data
from experiments.endoscopy.augmentation import eval_transform
from experiments.endoscopy.polyp_config import PolypData
from experiments.report.figures import Figure  # not from matplotlib, see `experiments.report.backend`
from fsg_jax.endoscopy import ENDOSCOPY_MEAN, ENDOSCOPY_STD


def write_panels(
    source: Any, table: pa.Table, rows: np.ndarray, config: PolypData, streams: Sequence[str], folder: Path
) -> list[str]:
    """Writes ``panels/*.png``, one for each of these rows of the index; their paths relative to `folder`."""
    batch = data.read_rows(source, rows)
    images = jax.device_get(eval_transform(config, streams)(jax.random.key(0), batch)["image"])
    (folder / "panels").mkdir(parents=True, exist_ok=True)
    files = [f"panels/{i}.png" for i in range(len(rows))]
    for i, (row, file) in enumerate(zip(rows.tolist(), files, strict=True)):
        pictures = {name: viewable(values[i]) for name, values in images.items()}
        figure = draw(batch["frame"][i], batch["box"][i], pictures, title(table, row))
        figure.savefig(folder / file, dpi=110)
    return files


def example_rows(polyps: list[np.ndarray], count: int = 4) -> np.ndarray:
    """The middle frame of a few polyps, evenly spaced among them."""
    chosen = np.unique(np.linspace(0, len(polyps) - 1, count).round().astype(int))
    return np.array([polyps[i][len(polyps[i]) // 2] for i in chosen])


def title(table: pa.Table, row: int) -> str:
    """The polyp, the frame and the size, in words."""
    found = {name: table[name][row].as_py() for name in ("dataset", "polyp_id", "frame_id", "size_mm", "synthetic")}
    size = "" if found["size_mm"] is None else f", {found['size_mm']:g} mm"
    synthetic = " (synthetic)" if found["synthetic"] else ""
    return f"{found['dataset']} polyp {found['polyp_id']}, frame {found['frame_id']}{size}{synthetic}"


def draw(frame: np.ndarray, box: np.ndarray, pictures: dict[str, np.ndarray], name: str) -> Figure:
    """The frame with its box, then the streams."""
    columns = 1 + len(pictures)
    figure = Figure(figsize=(2.6 * columns, 2.9), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)
    x0, y0, x1, y1 = box - 0.5
    axes[0, 0].imshow(frame)
    axes[0, 0].plot([x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0], color="yellow", linewidth=1)
    axes[0, 0].set_title("frame and box", fontsize=8)
    for axis, (stream, picture) in zip(axes[0, 1:], pictures.items(), strict=True):
        axis.imshow(picture, cmap="viridis")
        axis.set_title(f"stream {stream}", fontsize=8)
    for axis in axes[0]:
        axis.set_axis_off()
    figure.suptitle(name, fontsize=9, parse_math=False)
    return figure


def viewable(image: np.ndarray) -> np.ndarray:
    """A stream as a picture: normalisation undone, or the depth as it is."""
    if image.shape[-1] == 1:
        return image[..., 0]
    return np.clip(image * np.array(ENDOSCOPY_STD) + np.array(ENDOSCOPY_MEAN), 0, 1)
