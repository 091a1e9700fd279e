"""A frame as a colonoscope shows it: wet mucosa, light at the camera, round optics, blur, noise."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from experiments.endoscopy.phantom.camera import Camera, Pose, pixel_grid
from experiments.endoscopy.phantom.colon import Ellipsoid, Scene, centre_line
from experiments.endoscopy.phantom.mucosa import WALL_MM, pit_tile, wall_tile
from experiments.endoscopy.phantom.rays import Hits, trace

_MUCOSA = np.array([0.80, 0.29, 0.19], np.float32)
_VESSEL = np.array([-0.30, -0.55, -0.42], np.float32)
_RIDGE = np.array([0.07, 0.11, 0.10], np.float32)
_REFERENCE_MM = 19.0
_SHOULDER, _WHITE = np.float32(1.3), np.float32(290)


class Picture(NamedTuple):
    """`rgb` uint8 (height, width, 3), `depth` float32 mm along the optical axis, `masks` (polyps, height, width)."""

    rgb: np.ndarray
    depth: np.ndarray
    masks: np.ndarray


def render(scene: Scene, camera: Camera, pose: Pose, rng: np.random.Generator) -> Picture:
    """Takes a frame of `scene`; `rng` draws the sensor's noise."""
    hits, grid, shape = trace(scene, camera, pose), pixel_grid(camera), (camera.height, camera.width)
    albedo, blotches, relief = _surface(scene, camera, pose, hits)
    diffuse, mirrored = _light(scene, hits, blotches, relief)
    linear = (albedo * diffuse + mirrored) * (grid.view * scene.gain)
    rgb = _develop(linear.reshape(3, *shape), grid.view.reshape(shape), scene.noise, rng)
    masks = (hits.polyp == np.arange(len(scene.polyps))[:, None]) & (grid.view > 0)
    return Picture(rgb, (hits.distance / grid.length).reshape(shape), masks.reshape(-1, *shape))


def _surface(scene: Scene, camera: Camera, pose: Pose, hits: Hits) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Colour (3, pixels), blotches and height of the fine relief (pixels,) of what is seen."""
    footprint = hits.distance * np.float32(1 / camera.focal)
    vessels, blotches, relief = _wall_values(scene, pose, hits, footprint)
    tone, vessels = 1 + 0.10 * blotches, vessels * scene.vessels
    albedo = _MUCOSA[:, None] * tone * (1 + _VESSEL[:, None] * vessels)
    for index, polyp in enumerate(scene.polyps):
        for part, body in enumerate(polyp.parts):
            at = np.flatnonzero((hits.polyp == index) & (hits.part == part))
            ridges, blotches[at], relief[at] = _pit_values(body, polyp.pits, hits.local[:, at], footprint[at])
            albedo[:, at] = (polyp.tint.astype(np.float32) * _MUCOSA)[:, None] * (1 + 0.10 * blotches[at])
            if part == 0:
                albedo[:, at] += _RIDGE[:, None] * np.float32(polyp.ridges) * ridges
    return albedo * scene.cast[:, None].astype(np.float32), blotches, relief


def _wall_values(scene: Scene, pose: Pose, hits: Hits, footprint: np.ndarray) -> np.ndarray:
    """The channels of the wall's texture, which is laid along z and around the lumen; 128 mm make one turn."""
    x, y, z = pose.position[:, None].astype(np.float32) + hits.distance * hits.directions
    centre_x, centre_y = centre_line(scene.wall.bend, z)
    x, y = x - centre_x, y - centre_y
    slope = np.float32(scene.wall.mean_radius) - np.sqrt(x * x + y * y)  # the sides of folds are longer than their z
    around, along = np.arctan2(y, x) * np.float32(WALL_MM / np.pi), z + 0.8 * slope
    start_x, start_y = scene.offset.astype(np.float32)
    return wall_tile().at(around + start_x, along + start_y, footprint)


def _pit_values(body: Ellipsoid, pits: float, local: np.ndarray, footprint: np.ndarray) -> np.ndarray:
    """The channels of the texture of a part of a polyp, which is laid around its top, equidistant from there.

    It is `pits` times as wide as that of the tile.
    """
    x, y, z = local
    arc = np.arccos(np.clip(z, -1, 1)) / np.maximum(np.hypot(x, y), np.float32(1e-3))
    across, along = (v * arc * np.float32(s / pits) for v, s in zip((x, y), body.semi_axes[:2], strict=True))
    return pit_tile().at(across, along + np.float32(7 * body.phase), footprint * np.float32(1 / pits))


def _light(scene: Scene, hits: Hits, blotches: np.ndarray, relief: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Diffuse and mirrored light; the lamp sits at the camera, so both fall with the square of the distance."""
    falloff = (_REFERENCE_MM / hits.distance) ** 2
    cosine = np.clip(hits.cosine, 0, 1)
    diffuse = falloff * hits.shade * (0.12 + 0.88 * cosine) * (1 + 0.07 * relief)
    wet = np.clip((cosine - 0.86) * 9, 0, 1) * np.clip((relief + 1.2 * blotches - 1.9) * 2, 0, 1)
    mirror = np.clip((cosine + 0.004 * relief - 0.987) * 90, 0, 1)
    return diffuse, np.float32(1.2 * scene.gloss) * np.maximum(wet, mirror) * np.sqrt(falloff)


def _develop(linear: np.ndarray, view: np.ndarray, noise: float, rng: np.random.Generator) -> np.ndarray:
    """Blur, a film curve ``sqrt(x / (1 + x))``, which is near the usual gamma, and noise."""
    x = _blur(linear)
    grain = _grain()
    start = int(rng.integers(len(grain) - x.size))
    grain = grain[start : start + x.size].reshape(x.shape) * np.float32(noise)
    values = _WHITE * np.sqrt(x / (x + _SHOULDER)) + grain * np.minimum(view * 4, 1)
    return np.stack(list(np.clip(values, 0, 255).astype(np.uint8)), axis=-1)


def _blur(image: np.ndarray) -> np.ndarray:
    """The binomial filter 1 2 1 along rows and columns; the outermost pixels stay as they are."""
    rows = image[:, :-1] + image[:, 1:]
    rows = rows[:, :-1] + rows[:, 1:]
    both = rows[:, :, :-1] + rows[:, :, 1:]
    out = image.copy()
    out[:, 1:-1, 1:-1] = (both[:, :, :-1] + both[:, :, 1:]) * np.float32(1 / 16)
    return out


@lru_cache(maxsize=1)
def _grain() -> np.ndarray:
    return np.random.default_rng(2026).standard_normal(1 << 21).astype(np.float32)
