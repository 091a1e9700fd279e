"""Frames, an index of them and depth maps, written into a folder for the tests of reading."""

from pathlib import Path

import numpy as np
from PIL import Image

from fsg_jax.endoscopy.frames.depth_maps import DepthInfo, depth_path, write_depth, write_depth_info
from fsg_jax.endoscopy.index.schema import from_rows

COLOUR = (200, 40, 90)


def row(image_path, shape, box, **values):
    """An index row of one box in a frame of ``shape`` (width, height)."""
    names = ("xmin", "ymin", "xmax", "ymax")
    base = {
        "dataset": "made-up",
        "video_id": "v1",
        "patient_id": "p1",
        "polyp_id": "case1",
        "frame_id": "1",
        "image_path": image_path,
        "mask_path": None,
        "width": shape[0],
        "height": shape[1],
        "size_mm": 4.5,
        "size_censored": False,
        "synthetic": True,
    }
    return base | dict(zip(names, box, strict=True)) | values


def draw(path: Path, shape, boxes, *, background=(30, 60, 120), **save):
    """An image of ``shape`` (width, height) with a rectangle of `COLOUR` at every box."""
    pixels = np.full((shape[1], shape[0], 3), background, np.uint8)
    for xmin, ymin, xmax, ymax in boxes:
        pixels[ymin:ymax, xmin:xmax] = COLOUR
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **save)


def make_set(root: Path, shapes=((64, 48), (40, 60), (64, 48)), *, depth_root=None):
    """Noise frames, one box each, with depth maps of another resolution if ``depth_root``; the table and its roots."""
    generator = np.random.default_rng(0)
    rows = []
    for number, (width, height) in enumerate(shapes):
        name = f"case1/frame_{number}.jpg"
        (root / "case1").mkdir(parents=True, exist_ok=True)
        noise = generator.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(noise).save(root / name, quality=90)
        rows.append(row(name, (width, height), (2, 3, width // 2, height // 2), frame_id=str(number)))
        if depth_root is not None:
            write_depth(depth_path(depth_root, "made-up", name), generator.random((height // 2, width // 2)))
    if depth_root is not None:
        write_depth_info(depth_root, DepthInfo("noise", "nearer", synthetic=True))
    return from_rows(rows), {"made-up": root}
