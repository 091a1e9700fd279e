"""A frame as a colonoscope shows it: light at the camera, wet mucosa, round optics, blur, noise."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from experiments.endoscopy.phantom.camera import Camera, Pose, pixel_grid
from experiments.endoscopy.phantom.lumen import centre_line
from experiments.endoscopy.phantom.scene import Scene
from experiments.endoscopy.phantom.texture import WALL_MM, pit_tile, wall_tile
from experiments.endoscopy.phantom.trace import Hits, Patch, trace

_MUCOSA = np.array([0.80, 0.29, 0.19], np.float32)
_VESSEL = np.array([-0.30, -0.55, -0.42], np.float32)
_RIDGE = np.array([0.07, 0.11, 0.10], np.float32)
_REFERENCE_MM = 19.0
_SHOULDER, _WHITE = 1.3, np.float32(290)


class Picture(NamedTuple):
    """`rgb` uint8 (height, width, 3), `depth` float32 mm along the optical axis, `masks` (polyps, height, width).

    `covered`: pixels each polyp would have with nothing before it.
    """

    rgb: np.ndarray
    depth: np.ndarray
    masks: np.ndarray
    covered: tuple[int, ...]


def render(scene: Scene, camera: Camera, pose: Pose, rng: np.random.Generator) -> Picture:
    """The frame that `camera` takes of `scene`; `rng` draws the sensor's noise."""
    hits = trace(scene, camera, pose)
    grid = pixel_grid(camera)
    albedo, blotches, relief = _surface(scene, camera, pose, hits)
    light = _light(scene, hits, blotches, relief)
    linear = (albedo * light[0] + light[1]) * (grid.view * scene.look.gain)
    rgb = _develop(linear.reshape(3, camera.height, camera.width), scene, grid.view, rng)
    shape = (camera.height, camera.width)
    seen = (hits.polyp == np.arange(len(scene.polyps))[:, None]) & (grid.view > 0)
    return Picture(rgb, (hits.distance / grid.length).reshape(shape), seen.reshape(-1, *shape), hits.covered)


def _surface(scene: Scene, camera: Camera, pose: Pose, hits: Hits) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Colour (3, pixels), blotches and height of the fine relief (pixels,) of what is seen."""
    footprint = hits.distance * np.float32(1 / camera.focal)
    vessels, blotches, relief = _wall_values(scene, pose, hits, footprint)
    vessels = vessels * scene.look.vessels
    tone = 1 + 0.10 * blotches
    albedo = np.stack([m * tone * (1 + v * vessels) for m, v in zip(_MUCOSA, _VESSEL, strict=True)])
    for patch in hits.patches:
        albedo[:, patch.pixels], blotches[patch.pixels], relief[patch.pixels] = _polyp_surface(scene, patch, footprint)
    return albedo * scene.look.cast[:, None].astype(np.float32), blotches, relief


def _wall_values(scene: Scene, pose: Pose, hits: Hits, footprint: np.ndarray) -> np.ndarray:
    """The channels of the wall's texture, which is laid along z and around the lumen; 128 mm make one turn."""
    position = pose.position.astype(np.float32)
    x, y, z = (position[i] + hits.distance * hits.directions[i] for i in range(3))
    centre_x, centre_y = centre_line(scene.lumen, z)
    x -= centre_x
    y -= centre_y
    slope = np.float32(scene.lumen.radius) - np.sqrt(x * x + y * y)  # the sides of folds are longer than their z
    start_x, start_y = scene.look.offset
    around = np.arctan2(y, x) * np.float32(WALL_MM / np.pi)
    return wall_tile().at(around + np.float32(start_x), z + 0.8 * slope + np.float32(start_y), footprint)


def _polyp_surface(scene: Scene, patch: Patch, footprint: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    polyp = scene.polyps[patch.polyp]
    body = polyp.parts[patch.part]
    x, y, z = patch.meeting.local
    arc = np.arccos(np.clip(z, -1, 1)) / np.maximum(np.hypot(x, y), np.float32(1e-3))  # equidistant from the top
    across, along = (v * arc * np.float32(s) for v, s in zip((x, y), body.semi_axes[:2], strict=True))
    values = pit_tile().at(across, along + np.float32(7 * body.phase), footprint[patch.pixels])
    tint = polyp.tint.astype(np.float32) * _MUCOSA
    tone = 1 + 0.10 * values[1]
    head = np.float32(patch.part == 0)
    return np.stack([t * tone + head * r * values[0] for t, r in zip(tint, _RIDGE, strict=True)]), values[1], values[2]


def _light(scene: Scene, hits: Hits, blotches: np.ndarray, relief: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Diffuse and mirrored light; the lamp sits at the camera, so both fall with the square of the distance."""
    falloff = (_REFERENCE_MM / hits.distance) ** 2
    cosine = np.clip(hits.cosine, 0, 1)
    diffuse = falloff * hits.shade * (0.12 + 0.88 * cosine) * (1 + 0.07 * relief)
    wet = np.clip((cosine - 0.86) * 9, 0, 1) * np.clip((relief + 1.2 * blotches - 1.9) * 2, 0, 1)
    mirror = np.clip((cosine + 0.004 * relief - 0.987) * 90, 0, 1)
    return diffuse, np.float32(1.2 * scene.look.gloss) * np.maximum(wet, mirror) * np.sqrt(falloff)


def _develop(linear: np.ndarray, scene: Scene, view: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blur, a film curve ``sqrt(x / (1 + x))``, which is near the usual gamma, and noise."""
    x = _blur(linear)
    values = _WHITE * np.sqrt(x / (x + np.float32(_SHOULDER)))
    grain = _grain()
    start = int(rng.integers(len(grain) - values.size))
    noise = grain[start : start + values.size].reshape(values.shape) * np.float32(scene.look.noise)
    values += noise * np.minimum(view * 4, 1).reshape(values.shape[1:])
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
