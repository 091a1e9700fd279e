"""What a video shows: a stretch of colon, the polyps on its wall, the light and the colours."""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from experiments.endoscopy.phantom.lumen import Lumen, Wall, build_wall, random_lumen, surface_point

_SESSILE = 0.65


@dataclass(frozen=True)
class Ellipsoid:
    """Points p with ``|axes (p - centre) / semi_axes| = 1``, its surface pushed in and out by `lumps` of its radius."""

    centre: np.ndarray
    axes: np.ndarray
    """Unit directions as rows; the last one points away from the wall."""
    semi_axes: np.ndarray
    lumps: float = 0.0
    phase: float = 0.0


@dataclass(frozen=True)
class Polyp:
    """A polyp of `size_mm`, its greatest diameter; `parts` are its head and, if it has one, its stalk."""

    size_mm: float
    parts: tuple[Ellipsoid, ...]
    tint: np.ndarray
    """What its colour is multiplied by, (3,)."""

    @property
    def centre(self) -> np.ndarray:
        """Centre of the head."""
        return self.parts[0].centre


@dataclass(frozen=True)
class Look:
    """Light and colours of a video."""

    gain: float
    cast: np.ndarray
    offset: np.ndarray
    """Where the wall's texture starts, in mm, (2,)."""
    vessels: float
    gloss: float
    noise: float


@dataclass(frozen=True)
class Scene:
    """A wall, polyps on it (or none), and how they are lit."""

    lumen: Lumen
    wall: Wall
    polyps: tuple[Polyp, ...]
    look: Look


def random_scene(sizes: tuple[float, ...], rng: np.random.Generator) -> Scene:
    """A colon with polyps of `sizes` mm, the first at ``z = 0``, the others beside it."""
    angle = float(rng.uniform(-math.pi, math.pi))
    lumen = random_lumen(angle, rng)
    wall = build_wall(lumen)
    places = [(0.0, angle)]
    for before, size in pairwise(sizes):
        gap = (before + size) / 2 + rng.uniform(3, 6)
        places.append((float(rng.uniform(-3, 6)), angle + rng.choice((-1, 1)) * gap / lumen.radius))
    polyps = tuple(_polyp(size, wall, *place, rng) for size, place in zip(sizes, places, strict=True))
    return Scene(lumen, wall, polyps, _look(rng))


def _look(rng: np.random.Generator) -> Look:
    return Look(
        gain=float(np.exp(rng.normal(0, 0.12))),
        cast=np.array([1.0, rng.uniform(0.88, 1.12), rng.uniform(0.82, 1.18)]),
        offset=rng.uniform(0, 64, 2),
        vessels=float(rng.uniform(0.4, 1.0)),
        gloss=float(rng.uniform(0.6, 1.3)),
        noise=float(rng.uniform(1.5, 4.0)),
    )


def _polyp(size: float, wall: Wall, z: float, angle: float, rng: np.random.Generator) -> Polyp:
    base, normal = surface_point(wall, z, angle)
    axes = _frame(normal, float(rng.uniform(0, math.pi)))
    radius = size / 2
    lumps, phase = float(rng.uniform(0.015, 0.045)), float(rng.uniform(0, 6))
    tint = np.array([rng.uniform(0.98, 1.1), rng.uniform(0.68, 0.86), rng.uniform(0.68, 0.86)])
    if rng.random() < _SESSILE:
        semi = radius * np.array([1, rng.uniform(0.88, 1), rng.uniform(0.65, 0.9)])
        head = Ellipsoid(base + 0.12 * semi[2] * normal, axes, semi, lumps, phase)
        return Polyp(size, (head,), tint)
    semi = radius * np.array([1, rng.uniform(0.9, 1), rng.uniform(0.85, 1)])
    raised = rng.uniform(0.9, 1.25) * semi[2]
    head = Ellipsoid(base + raised * normal, axes, semi, lumps, phase)
    stalk = Ellipsoid(base + 0.2 * raised * normal, axes, np.array([0.38 * radius, 0.38 * radius, 0.9 * raised]))
    return Polyp(size, (head, stalk), tint)


def _frame(normal: np.ndarray, spin: float) -> np.ndarray:
    """Three orthogonal unit rows, the last of them `normal`, turned around it by `spin`."""
    helper = np.eye(3)[np.argmin(np.abs(normal))]
    first = np.cross(normal, helper)
    first /= np.linalg.norm(first)
    second = np.cross(normal, first)
    return np.stack(
        [math.cos(spin) * first + math.sin(spin) * second, math.cos(spin) * second - math.sin(spin) * first, normal]
    )
