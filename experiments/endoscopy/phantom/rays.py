"""The geometry of a frame: what each pixel sees first, how far away and at what angle."""

import math
from typing import NamedTuple

import numpy as np

from experiments.endoscopy.phantom.camera import Camera, Pose, pixel_grid
from experiments.endoscopy.phantom.colon import WALL_Z, Ellipsoid, Scene, Wall, at_angle

_SHADE_REACH = 1.35
_NUM_PSI, _NUM_THETA = 192, 160
_BEHIND, _NEAR, _AHEAD = 25, 35, 115  # mm of wall around the camera that are looked at; beyond _NEAR every second row
_THETA_MAX = 2.4


class Hits(NamedTuple):
    """What the ray of each pixel hits; pixels are flattened.

    Attributes:
      directions: unit directions of the rays, (3, pixels).
      distance: in mm.
      cosine: of the angle of incidence.
      shade: factors of the light, less than 1 where another surface is close.
      polyp: number of the polyp; -1 is the wall.
      part: number of the polyp's part; -1 is the wall.
      local: where a part is hit, in the units in which it is the unit ball, (3, pixels); 0 on the wall.
      covered: for each polyp, how many pixels of the circular view it would have with nothing before it.
    """

    directions: np.ndarray
    distance: np.ndarray
    cosine: np.ndarray
    shade: np.ndarray
    polyp: np.ndarray
    part: np.ndarray
    local: np.ndarray
    covered: list[int]


def trace(scene: Scene, camera: Camera, pose: Pose) -> Hits:
    """Finds the first surface along the ray of every pixel."""
    grid = pixel_grid(camera)
    directions = _transform(pose.rotation.T.astype(np.float32), grid.directions)
    distance, cosine = _meet_wall(scene.wall, pose.position, directions)
    wall = np.full(distance.shape, -1, np.int8)
    hits = Hits(directions, distance, cosine, np.ones_like(distance), wall, wall.copy(), np.zeros_like(directions), [])
    for index, polyp in enumerate(scene.polyps):
        alone = np.zeros(wall.shape, bool)
        for part, body in enumerate(polyp.parts):
            around = _pixels_around(body, camera, pose)
            _shade(hits, body, pose, around)
            met, distance, cosine, local = _meet_body(body, pose.position, directions[:, around])
            alone[around[met]] = True
            front = np.flatnonzero(met & (distance < hits.distance[around]))
            pixels = around[front]
            hits.distance[pixels], hits.cosine[pixels] = distance[front], cosine[front]
            hits.shade[pixels], hits.local[:, pixels] = 1, local[:, front]
            hits.polyp[pixels], hits.part[pixels] = index, part
        hits.covered.append(int((alone & (grid.view > 0)).sum()))
    return hits


def _shade(hits: Hits, body: Ellipsoid, pose: Pose, pixels: np.ndarray) -> None:
    """Darkens what lies close to `body`."""
    points = pose.position[:, None].astype(np.float32) + hits.distance[pixels] * hits.directions[:, pixels]
    local = _transform(_to_unit_ball(body), points - body.centre[:, None].astype(np.float32))
    gap = np.maximum(np.sqrt(_dot(local, local)) - 1, 0)
    hits.shade[pixels] *= 1 - 0.45 * np.exp(-((gap / 0.22) ** 2)) * (gap < 1)


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _transform(matrix: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """``matrix @ vectors`` for vectors (3, n), added up in the same order on every machine."""
    return np.stack([_dot(row, vectors) for row in matrix])


def _meet_wall(wall: Wall, camera: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance in mm to the wall and cosine of incidence along rays from `camera`; bilinear in a panorama's angles."""
    x, y, z = directions
    psi = (np.arctan2(y, x) + np.float32(math.pi)) * np.float32(_NUM_PSI / (2 * math.pi))
    theta = np.minimum(np.arccos(np.clip(z, -1, 1)) * np.float32((_NUM_THETA - 1) / _THETA_MAX), _NUM_THETA - 1.001)
    row, column = psi.astype(np.intp), theta.astype(np.intp)
    psi -= row
    theta -= column
    distance, cosine = (_bilinear(t, row * _NUM_THETA + column, psi, theta) for t in _panorama(wall, camera))
    return distance, cosine


def _panorama(wall: Wall, camera: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance and cosine of incidence of the wall by angle around the camera (rows) and from the z axis.

    A ray hits where ``z / rho`` of the profile first exceeds that of the ray.
    """
    z, rho = _profile(wall, camera)
    cot = z[:, None] / rho
    ahead = int(np.searchsorted(z, 0))
    np.maximum.accumulate(cot[ahead:], axis=0, out=cot[ahead:])
    np.minimum.accumulate(cot[ahead - 1 :: -1], axis=0, out=cot[ahead - 1 :: -1])
    wanted, rows = 1 / np.tan(np.linspace(1e-4, _THETA_MAX, _NUM_THETA)), np.arange(len(z), dtype=np.float32)
    row = np.stack([np.interp(wanted, line, rows) for line in np.ascontiguousarray(cot.T)]).astype(np.float32)
    return _along(np.hypot(rho, z[:, None]), row), _along(_wall_incidence(z, rho), row)


def _profile(wall: Wall, camera: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions z relative to the camera, and the wall's distance rho (z, psi) from the camera's own axis."""
    relative = WALL_Z - np.float32(camera[2])
    rows = np.flatnonzero((relative > -_BEHIND) & (relative < _AHEAD))
    rows = rows[(relative[rows] < _NEAR) | (rows % 2 == 0)]
    psi = np.linspace(-math.pi, math.pi, _NUM_PSI, endpoint=False, dtype=np.float32)[None]
    cos, sin = np.cos(psi), np.sin(psi)
    x, y = (np.float32(camera[axis]) - wall.centre[axis, rows, None] for axis in range(2))
    radius, along, square = wall.radius[rows], x * cos + y * sin, x * x + y * y
    rho = _chord(radius.mean(axis=1, keepdims=True), along, square)
    for _ in range(2):
        rho = _chord(at_angle(radius, np.arctan2(y + rho * sin, x + rho * cos)), along, square)
    return relative[rows], rho


def _chord(radius: np.ndarray, along: np.ndarray, square: np.ndarray) -> np.ndarray:
    """Length of the ray to the circle of `radius`; where the camera's axis has left the lumen, almost none."""
    return np.maximum(np.sqrt(np.maximum(radius * radius - square + along * along, 0)) - along, np.float32(0.3))


def _wall_incidence(z: np.ndarray, rho: np.ndarray) -> np.ndarray:
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


def _bilinear(table: np.ndarray, corner: np.ndarray, down: np.ndarray, right: np.ndarray) -> np.ndarray:
    wrapped = np.concatenate([table, table[:2]]).ravel()
    pairs = np.stack([wrapped[:-_NUM_THETA], wrapped[_NUM_THETA:]], axis=-1)  # a texel and the one below it
    first, second = pairs.take(corner, axis=0, mode="clip"), pairs.take(corner + 1, axis=0, mode="clip")
    first += (second - first) * right[:, None]
    return first[:, 0] + down * (first[:, 1] - first[:, 0])


def _pixels_around(body: Ellipsoid, camera: Camera, pose: Pose) -> np.ndarray:
    """Flat indices of the pixels in the square around the ball that holds the body and its shade."""
    radius = _SHADE_REACH * float(body.semi_axes.max())
    x, y, depth = pose.rotation @ (body.centre - pose.position)
    half = camera.focal * 1.2 * radius / max(depth - radius, 1.0) if depth > 0 else 0.0
    column, row = camera.width / 2 + camera.focal * x / depth, camera.height / 2 + camera.focal * y / depth
    left, right = np.clip([column - half, column + half], 0, camera.width).astype(int)
    top, bottom = np.clip([row - half, row + half], 0, camera.height).astype(int)
    return (np.arange(top, bottom)[:, None] * camera.width + np.arange(left, right)).ravel()


def _to_unit_ball(body: Ellipsoid) -> np.ndarray:
    """The matrix (3, 3) to the units in which the body is the unit ball."""
    return (body.axes / body.semi_axes[:, None]).astype(np.float32)


def _meet_body(body: Ellipsoid, position: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, ...]:
    """Where the rays from `position` (3,) along `directions` (3, rays) first meet `body`.

    The body's radius is ``1 + lumps``: a ray is first met with the ball, or taken where it passes closest, and then
    met again with the ball of the radius found there.

    Returns:
      Per ray whether it meets the body, distance in mm, cosine of incidence, unit local position (3, rays).
    """
    origin = (body.axes / body.semi_axes[:, None] @ (position - body.centre)).astype(np.float32)
    d = _transform(_to_unit_ball(body), directions)
    square, half, inside = _dot(d, d), _dot(d, origin), np.asarray(origin @ origin)
    met, distance = _first_root(square, half, inside - 1)
    if body.lumps:
        radius = 1 + _lumps(body, origin[:, None] + distance * d)
        met, distance = _first_root(square, half, inside - radius * radius)
    local = origin[:, None] + distance * d
    return met, distance, _body_incidence(body, local, directions), local


def _first_root(square: np.ndarray, half: np.ndarray, rest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether and where ``square t^2 + 2 half t + rest`` first vanishes; where it does not, where it is least."""
    discriminant = half * half - square * rest
    distance = (-half - np.sqrt(np.maximum(discriminant, 0))) / square
    return (discriminant > 0) & (distance > 0), distance


def _lumps(body: Ellipsoid, local: np.ndarray) -> np.ndarray:
    """Relative height of the lumps, at most 0, so that the size stays the greatest diameter."""
    x, y, z = local
    p = np.float32(body.phase)
    return np.float32(body.lumps) * (np.sin(5 * x + p) * np.cos(4 * y - p) + np.sin(4 * z + 3 * x - 2 * y + p) - 2)


def _body_incidence(body: Ellipsoid, local: np.ndarray, directions: np.ndarray) -> np.ndarray:
    slope = local.copy()
    if body.lumps:  # the normal of the lumpy surface, to first order
        x, y, z = local * 3
        p, height = np.float32(body.phase), np.float32(4 * body.lumps)
        slope += height * np.stack([np.cos(x + y + p), np.sin(y - z + p), np.cos(z - x + p)])
    slope /= body.semi_axes[:, None].astype(np.float32)
    return -_dot(_transform(body.axes.T.astype(np.float32), slope), directions) / np.sqrt(_dot(slope, slope))
