"""What a camera inside the lumen sees of its wall first."""

import math
from typing import NamedTuple

import numpy as np

from experiments.endoscopy.phantom.lumen import Wall, at_angle

_NUM_PSI, _NUM_THETA = 192, 160
_BEHIND, _NEAR, _AHEAD = 25, 35, 115  # mm of wall around the camera that are looked at; beyond _NEAR every second row
_THETA_MAX = 2.4


class Panorama(NamedTuple):
    """Distance in mm and cosine of incidence of the wall by angle around the camera (rows) and from the z axis."""

    distance: np.ndarray
    cosine: np.ndarray


def panorama(wall: Wall, camera: np.ndarray) -> Panorama:
    """The first hit of every ray from `camera` (3,): where ``z / rho`` of the profile first exceeds that of the ray."""
    z, rho = _profile(wall, camera)
    sees = np.arange(len(z), dtype=np.float32)
    cot = z[:, None] / rho
    ahead = int(np.searchsorted(z, 0))
    np.maximum.accumulate(cot[ahead:], axis=0, out=cot[ahead:])
    np.minimum.accumulate(cot[ahead - 1 :: -1], axis=0, out=cot[ahead - 1 :: -1])
    theta = np.linspace(1e-4, _THETA_MAX, _NUM_THETA)
    wanted = 1 / np.tan(theta)
    row = np.stack([np.interp(wanted, line, sees) for line in np.ascontiguousarray(cot.T)]).astype(np.float32)
    fields = (np.hypot(rho, z[:, None]), _incidence(z, rho))
    return Panorama(*(_along(field, row) for field in fields))


def _profile(wall: Wall, camera: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions z relative to the camera, and the wall's distance rho (z, psi) from the camera's own axis."""
    relative = wall.z - np.float32(camera[2])
    rows = np.flatnonzero((relative > -_BEHIND) & (relative < _AHEAD))
    rows = rows[(relative[rows] < _NEAR) | (rows % 2 == 0)]
    psi = np.linspace(-math.pi, math.pi, _NUM_PSI, endpoint=False, dtype=np.float32)[None]
    cos, sin = np.cos(psi), np.sin(psi)
    x, y = (np.float32(camera[axis]) - wall.centre[rows, axis, None] for axis in range(2))
    radius, along, square = wall.radius[rows], x * cos + y * sin, x * x + y * y
    rho = _chord(radius.mean(axis=1, keepdims=True), along, square)
    for _ in range(2):
        rho = _chord(at_angle(radius, np.arctan2(y + rho * sin, x + rho * cos)), along, square)
    return relative[rows], rho


def _chord(radius: np.ndarray, along: np.ndarray, square: np.ndarray) -> np.ndarray:
    """Length of the ray to the circle of `radius`; where the camera's axis has left the lumen, almost none."""
    return np.maximum(np.sqrt(np.maximum(radius * radius - square + along * along, 0)) - along, np.float32(0.3))


def _incidence(z: np.ndarray, rho: np.ndarray) -> np.ndarray:
    """Cosine between the wall's normal and the direction to the camera."""
    along = np.gradient(rho, z, axis=0)
    around = (np.roll(rho, -1, 1) - np.roll(rho, 1, 1)) * np.float32(_NUM_PSI / (4 * math.pi)) / rho
    z = z[:, None]
    return (rho - z * along) / np.sqrt((1 + around * around + along * along) * (rho * rho + z * z))


def _along(field: np.ndarray, row: np.ndarray) -> np.ndarray:
    """`field` (z, psi) at fractional rows (psi, theta)."""
    low = np.minimum(row.astype(np.intp), len(field) - 2)
    flat = low * _NUM_PSI + np.arange(_NUM_PSI, dtype=np.intp)[:, None]
    first = field.ravel().take(flat)
    return first + np.subtract(row, low, dtype=np.float32) * (field.ravel().take(flat + _NUM_PSI) - first)


def look_up(view: Panorama, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance in mm and cosine along the rays `directions` (3, pixels), bilinear in the angles."""
    x, y, z = directions
    psi = (np.arctan2(y, x) + np.float32(math.pi)) * np.float32(_NUM_PSI / (2 * math.pi))
    theta = np.minimum(np.arccos(np.clip(z, -1, 1)) * np.float32((_NUM_THETA - 1) / _THETA_MAX), _NUM_THETA - 1.001)
    row, column = psi.astype(np.intp), theta.astype(np.intp)
    psi -= row
    theta -= column
    corner = row * _NUM_THETA + column
    return tuple(_bilinear(table, corner, psi, theta) for table in view)  # type: ignore[return-value]


def _bilinear(table: np.ndarray, corner: np.ndarray, down: np.ndarray, right: np.ndarray) -> np.ndarray:
    wrapped = np.concatenate([table, table[:2]]).ravel()
    pairs = np.stack([wrapped[:-_NUM_THETA], wrapped[_NUM_THETA:]], axis=-1)  # a texel and the one below it
    first, second = pairs.take(corner, axis=0, mode="clip"), pairs.take(corner + 1, axis=0, mode="clip")
    second -= first
    second *= right[:, None]
    first += second
    return first[:, 0] + down * (first[:, 1] - first[:, 0])
