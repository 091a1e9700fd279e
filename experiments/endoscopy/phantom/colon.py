"""What a video shows: a bent tube with haustral folds, the polyps on its wall, the light and the colours."""

import math
from itertools import pairwise
from typing import NamedTuple

import numpy as np

WALL_Z = np.arange(-150, 130, 0.75, dtype=np.float32)
"""Positions in mm along the tube at which the radius of a wall is known."""
_NUM_PHI = 256
_SESSILE = 0.65


class Wall(NamedTuple):
    """The wall of a stretch of colon along z; lengths in mm, angles in radians."""

    mean_radius: float
    spacing: float
    """Between folds along z."""
    bend: tuple[float, float]
    crest: float
    """Angle of the crest of the fold near ``z = 0``."""
    centre: np.ndarray
    """x and y of the middle at the positions `WALL_Z`, (2, z)."""
    radius: np.ndarray
    """Radius around the middle, (z, phi)."""


class Ellipsoid(NamedTuple):
    """Points p with ``|axes (p - centre) / semi_axes| = 1``, its surface pushed in and out by `lumps` of its radius."""

    centre: np.ndarray
    axes: np.ndarray
    """Unit directions as rows; the last one points away from the wall."""
    semi_axes: np.ndarray
    lumps: float = 0.0
    phase: float = 0.0


class Polyp(NamedTuple):
    """A polyp: its head and, if it has one, its stalk; `tint` are the factors of its colour, (3,).

    `pits` and `ridges` are factors of the width of the pits of its texture and of the ridges between them.
    """

    parts: tuple[Ellipsoid, ...]
    tint: np.ndarray
    pits: float = 1.0
    ridges: float = 1.0


class Scene(NamedTuple):
    """A wall, the polyps on it (or none), and their light and colours."""

    wall: Wall
    polyps: tuple[Polyp, ...]
    gain: float
    cast: np.ndarray
    """Factors of all colours, (3,)."""
    offset: np.ndarray
    """Where the wall's texture starts, in mm, (2,)."""
    vessels: float
    gloss: float
    noise: float


def random_scene(sizes: tuple[float, ...], rng: np.random.Generator) -> Scene:
    """Draws a colon with polyps of `sizes` mm, their greatest diameters: the first at ``z = 0``, others beside it."""
    angle = float(rng.uniform(-math.pi, math.pi))
    wall = _random_wall(angle, rng)
    places = [(0.0, angle)]
    for before, size in pairwise(sizes):
        gap = (before + size) / 2 + rng.uniform(3, 6)
        places.append((float(rng.uniform(-3, 6)), angle + rng.choice((-1, 1)) * gap / wall.mean_radius))
    polyps = tuple(_random_polyp(size, wall, *place, rng) for size, place in zip(sizes, places, strict=True))
    gain = float(np.exp(rng.normal(0, 0.12)))
    cast = np.array([1.0, *rng.uniform((0.88, 0.82), (1.12, 1.18))])
    offset = rng.uniform(0, 64, 2)
    return Scene(wall, polyps, gain, cast, offset, *rng.uniform((0.4, 0.6, 1.5), (1.0, 1.3, 4.0)).tolist())


def _random_wall(angle: float, rng: np.random.Generator) -> Wall:
    """Draws a wall with a fold near ``z = 0`` at `angle`; folds are ``exp(kappa (cos(2 pi s) - 1))`` deep at s."""
    strength, direction = rng.uniform((2, -math.pi), (9, math.pi)).tolist()
    mean, spacing, depth, slant = rng.uniform((18.5, 17, 5, 0), (22.5, 25, 8, 5)).tolist()
    p = rng.uniform(-math.pi, math.pi, 6).tolist()
    offset = float(rng.uniform(-0.2, 0.02))
    z, phi = WALL_Z[:, None], np.linspace(0, 2 * math.pi, _NUM_PHI, endpoint=False, dtype=np.float32)[None]
    tilt = slant * (np.cos(phi - p[0]) - math.cos(angle - p[0]))
    s = (z + 3 * (np.sin(z / 19 + p[1]) - math.sin(p[1])) + tilt) / spacing + offset
    lobes = 0.62 + 0.38 * np.cos(3 * (phi - p[2]) + 1.5 * np.sin(1.7 * np.round(s) + p[3]))
    folds = depth * lobes * np.exp(7 * (np.cos(2 * math.pi * s) - 1))
    bumps = 0.5 * np.sin(z / 3.7 + p[4] + 2 * np.sin(2 * phi)) * np.sin(4 * phi + z / 9 + p[5])
    radius = mean * (1 + 0.06 * np.cos(3 * (phi - p[2]))) - folds - bumps
    bend = (strength * math.cos(direction), strength * math.sin(direction))
    return Wall(mean, spacing, bend, angle, np.stack(centre_line(bend, WALL_Z)), radius.astype(np.float32))


def _random_polyp(size: float, wall: Wall, z: float, angle: float, rng: np.random.Generator) -> Polyp:
    base, normal = _surface_point(wall, z, angle)
    axes = _axes(normal, float(rng.uniform(0, math.pi)))
    radius = size / 2
    lumps, phase = rng.uniform((0.015, 0), (0.045, 6)).tolist()
    tint = rng.uniform((0.98, 0.68, 0.68), (1.1, 0.86, 0.86))
    if rng.random() < _SESSILE:
        semi = radius * np.array([1, *rng.uniform((0.88, 0.65), (1, 0.9))])
        return Polyp((Ellipsoid(base + 0.12 * semi[2] * normal, axes, semi, lumps, phase),), tint)
    semi = radius * np.array([1, *rng.uniform((0.9, 0.85), 1)])
    raised = rng.uniform(0.9, 1.25) * semi[2]
    head = Ellipsoid(base + raised * normal, axes, semi, lumps, phase)
    stalk = Ellipsoid(base + 0.2 * raised * normal, axes, np.array([0.38 * radius, 0.38 * radius, 0.9 * raised]))
    return Polyp((head, stalk), tint)


def _axes(normal: np.ndarray, spin: float) -> np.ndarray:
    """Three orthogonal unit rows, the last of them `normal`, turned around it by `spin`."""
    first = np.cross(normal, np.eye(3)[np.argmin(np.abs(normal))])
    first /= np.linalg.norm(first)
    second = np.cross(normal, first)
    cos, sin = math.cos(spin), math.sin(spin)
    return np.stack([cos * first + sin * second, cos * second - sin * first, normal])


def centre_line(bend: tuple[float, float], z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x and y of the middle of the lumen at `z`; straight at first, a parabola ahead of ``z = -10``."""
    ahead = np.maximum(z + np.float32(10), 0) * np.float32(0.02)
    ahead *= ahead
    return ahead * np.float32(bend[0]), ahead * np.float32(bend[1])


def _surface_point(wall: Wall, z: float, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """The point of the wall at `z` and `angle` (3,) and its unit normal, which points into the lumen (3,)."""
    step = 0.05
    here = _radius_at(wall, z, angle)
    around = (_radius_at(wall, z, angle + step) - _radius_at(wall, z, angle - step)) / (2 * step * here)
    along = (_radius_at(wall, z + 1, angle) - _radius_at(wall, z - 1, angle)) / 2
    radial, tangent = np.array([math.cos(angle), math.sin(angle), 0]), np.array([-math.sin(angle), math.cos(angle), 0])
    normal = -radial + around * tangent + along * np.array([0, 0, 1])
    return np.array([*_centre_at(wall, z), z]) + here * radial, normal / np.linalg.norm(normal)


def clearance(wall: Wall, point: np.ndarray) -> float:
    """Distance in mm across z from `point` (3,) to the wall; negative outside the lumen."""
    x, y = point[:2] - _centre_at(wall, point[2])
    return _radius_at(wall, float(point[2]), math.atan2(y, x)) - math.hypot(x, y)


def _centre_at(wall: Wall, z: float) -> list[float]:
    return [float(np.interp(z, WALL_Z, line)) for line in wall.centre]


def _radius_at(wall: Wall, z: float, angle: float) -> float:
    row = int(np.argmin(np.abs(WALL_Z - z)))
    return float(at_angle(wall.radius[row : row + 1], np.array([[angle]], np.float32))[0, 0])


def at_angle(radius: np.ndarray, phi: np.ndarray) -> np.ndarray:
    """Rows of `radius` at angles `phi` (rows, n), linearly interpolated."""
    fraction, low = np.modf(phi * np.float32(_NUM_PHI / (2 * math.pi)) + np.float32(2 * _NUM_PHI))
    start, column = np.arange(len(radius))[:, None] * _NUM_PHI, low.astype(np.intp)
    first, second = (radius.ravel().take(start + (c & (_NUM_PHI - 1)), mode="clip") for c in (column, column + 1))
    return first + fraction * (second - first)
