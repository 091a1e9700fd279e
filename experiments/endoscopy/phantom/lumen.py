"""The wall of the colon: a bent tube with haustral folds."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

_Z = np.arange(-150, 130, 0.75, dtype=np.float32)
_NUM_PHI = 256


@dataclass(frozen=True)
class Lumen:
    """Shape of a stretch of colon along z; lengths in mm, angles in radians."""

    radius: float
    bend: tuple[float, float]
    fold_spacing: float
    fold_depth: float
    fold_tilt: float
    phases: tuple[float, ...]
    crest: tuple[float, float]
    """Angle and position, in fold spacings, of a fold's crest relative to ``z = 0``."""


class Wall(NamedTuple):
    """`radius` (z, phi) around `centre` (z, 2) at the positions `z`."""

    z: np.ndarray
    centre: np.ndarray
    radius: np.ndarray


def random_lumen(angle: float, rng: np.random.Generator) -> Lumen:
    """A lumen with a fold near ``z = 0`` at `angle`."""
    bend, bend_angle = rng.uniform(2, 9), rng.uniform(-math.pi, math.pi)
    return Lumen(
        radius=float(rng.uniform(18.5, 22.5)),
        bend=(float(bend * math.cos(bend_angle)), float(bend * math.sin(bend_angle))),
        fold_spacing=float(rng.uniform(17, 25)),
        fold_depth=float(rng.uniform(5, 8)),
        fold_tilt=float(rng.uniform(0, 5)),
        phases=tuple(rng.uniform(-math.pi, math.pi, 6).tolist()),
        crest=(angle, float(rng.uniform(-0.2, 0.02))),
    )


def build_wall(lumen: Lumen) -> Wall:
    """The radius of `lumen` on a grid, a fold being ``exp(kappa (cos(2 pi s) - 1))`` deep at position s."""
    z, phi = _Z[:, None], np.linspace(0, 2 * math.pi, _NUM_PHI, endpoint=False, dtype=np.float32)[None]
    p = lumen.phases
    angle, offset = lumen.crest
    tilt = lumen.fold_tilt * (np.cos(phi - p[0]) - math.cos(angle - p[0]))
    s = (z + 3 * (np.sin(z / 19 + p[1]) - math.sin(p[1])) + tilt) / lumen.fold_spacing + offset
    lobes = 0.62 + 0.38 * np.cos(3 * (phi - p[2]) + 1.5 * np.sin(1.7 * np.round(s) + p[3]))
    folds = lumen.fold_depth * lobes * np.exp(7 * (np.cos(2 * math.pi * s) - 1))
    bumps = 0.5 * np.sin(z / 3.7 + p[4] + 2 * np.sin(2 * phi)) * np.sin(4 * phi + z / 9 + p[5])
    radius = lumen.radius * (1 + 0.06 * np.cos(3 * (phi - p[2]))) - folds - bumps
    centre = np.stack(centre_line(lumen, _Z), axis=-1)
    return Wall(_Z, centre, radius.astype(np.float32))


def centre_line(lumen: Lumen, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x and y of the middle of the lumen at `z`; straight at first, a parabola ahead of ``z = -10``."""
    ahead = np.maximum(z + np.float32(10), 0) * np.float32(0.02)
    ahead *= ahead
    return ahead * np.float32(lumen.bend[0]), ahead * np.float32(lumen.bend[1])


def surface_point(wall: Wall, z: float, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """The point of the wall at `z` and `angle` (3,) and its unit normal, which points into the lumen (3,)."""
    step = 0.05
    here = _radius_at(wall, z, angle)
    around = (_radius_at(wall, z, angle + step) - _radius_at(wall, z, angle - step)) / (2 * step * here)
    along = (_radius_at(wall, z + 1, angle) - _radius_at(wall, z - 1, angle)) / 2
    radial, tangent = np.array([math.cos(angle), math.sin(angle), 0]), np.array([-math.sin(angle), math.cos(angle), 0])
    normal = -radial + around * tangent + along * np.array([0, 0, 1])
    centre = [np.interp(z, wall.z, wall.centre[:, axis]) for axis in range(2)]
    return np.array([*centre, z]) + here * radial, normal / np.linalg.norm(normal)


def clearance(wall: Wall, point: np.ndarray) -> float:
    """Distance in mm across z from `point` (3,) to the wall; negative outside the lumen."""
    x, y = (point[axis] - np.interp(point[2], wall.z, wall.centre[:, axis]) for axis in range(2))
    return _radius_at(wall, float(point[2]), math.atan2(y, x)) - math.hypot(x, y)


def _radius_at(wall: Wall, z: float, angle: float) -> float:
    row = int(np.argmin(np.abs(wall.z - z)))
    return float(at_angle(wall.radius[row : row + 1], np.array([[angle]], np.float32))[0, 0])


def at_angle(radius: np.ndarray, phi: np.ndarray) -> np.ndarray:
    """Rows of `radius` at angles `phi` (rows, n), linearly interpolated."""
    position = phi * np.float32(_NUM_PHI / (2 * math.pi)) + np.float32(2 * _NUM_PHI)
    low = position.astype(np.intp)
    position -= low
    start = np.arange(len(radius))[:, None] * _NUM_PHI
    first = radius.ravel().take(start + (low & (_NUM_PHI - 1)), mode="clip")
    low += 1
    second = radius.ravel().take(start + (low & (_NUM_PHI - 1)), mode="clip")
    return first + position * (second - first)
