"""Small made-up indexes of polyps."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from fsg_jax.endoscopy.index.schema import from_rows


def polyp_rows(polyp: str, size: float | None, frames: Iterable[int] = range(3), **values: Any) -> list[dict[str, Any]]:
    """The rows of one polyp; `values` override columns."""
    dataset, video = values.get("dataset", "sun"), values.get("video_id", polyp)
    shared = {"dataset": dataset, "video_id": video, "patient_id": video, "polyp_id": polyp, "mask_path": None}
    shared |= {"width": 64, "height": 48, "xmin": 3, "ymin": 4, "xmax": 20, "ymax": 30}
    shared |= {"size_mm": size, "size_censored": False, "synthetic": True} | values
    return [shared | {"frame_id": str(t), "image_path": f"{video}/{t}.jpg"} for t in frames]


def cases(sizes: Sequence[float], **values: Any) -> list[dict[str, Any]]:
    """One polyp a video, numbered from 1."""
    return [row for i, size in enumerate(sizes, start=1) for row in polyp_rows(str(i), size, **values)]


def cohort() -> list[dict[str, Any]]:
    """Both datasets: 30 SUN cases, two of one patient; 20 REAL-Colon polyps in 14 videos, two of them in one frame."""
    rng = np.random.default_rng(0)
    rows = cases([float(v) for v in rng.choice([3, 4.5, 5, 6, 8, 10, 15], 30)])
    for row in rows:
        row["patient_id"] = "1" if row["polyp_id"] == "2" else row["patient_id"]
    for polyp in range(20):
        video, frames = f"001-{polyp % 14 + 1:03d}", range(polyp % 5 + 1)
        values = {"dataset": "real_colon", "video_id": video}
        rows += polyp_rows(f"{video}_{polyp // 14 + 1}", float(rng.choice([2, 4, 7, 12])), frames, **values)
    return rows


def table_of(rows: Iterable[dict[str, Any]]) -> pa.Table:
    """The rows as an index."""
    return from_rows(rows)
