"""Images on disk."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from experiments.endoscopy.phantom.config import GENERATOR

DEPTH_UNIT_MM = 0.05
_QUALITY = 90


def write_jpeg(path: Path, rgb: np.ndarray) -> None:
    """Writes a frame (height, width, 3)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rgb).save(path, format="JPEG", quality=_QUALITY)


def write_depth(image_path: Path, depth: np.ndarray) -> None:
    """Writes depth in mm (height, width), in units of `DEPTH_UNIT_MM`, as the 16-bit PNG of the frame's name."""
    levels = np.clip(np.rint(depth / DEPTH_UNIT_MM), 0, 2**16 - 1).astype(np.uint16)
    _write_png(image_path, levels)


def write_mask(image_path: Path, mask: np.ndarray) -> None:
    """Writes a mask (height, width), 255 where a polyp is seen, as the PNG of the frame's name."""
    _write_png(image_path, mask.astype(np.uint8) * 255)


def write_depth_note(root: Path) -> None:
    """Says what the depth maps under `root` are."""
    note = {
        "model": GENERATOR,
        "larger_is": "farther",
        "synthetic": True,
        "quantity": "distance along the optical axis",
        "unit_mm": DEPTH_UNIT_MM,
    }
    write_json(root / "depth.json", note)


def write_json(path: Path, value: object) -> None:
    """Writes JSON, indented."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n")


def _write_png(image_path: Path, values: np.ndarray) -> None:
    path = image_path.with_suffix(".png")
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, format="PNG", compress_level=1)
