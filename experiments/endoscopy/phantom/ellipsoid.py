"""Where rays meet an ellipsoid, and what of the frame they can meet it in."""

from typing import NamedTuple

import numpy as np

from experiments.endoscopy.phantom.camera import Camera, Pose
from experiments.endoscopy.phantom.scene import Ellipsoid


class Meeting(NamedTuple):
    """Per ray: whether it meets the body, distance in mm, unit local position (3, rays), cosine of incidence."""

    met: np.ndarray
    distance: np.ndarray
    local: np.ndarray
    cosine: np.ndarray


def pixels_around(body: Ellipsoid, camera: Camera, pose: Pose, reach: float) -> np.ndarray:
    """Flat indices of the pixels in the square around the ball of `reach` times the body's greatest half axis."""
    radius = reach * float(body.semi_axes.max())
    column, row, depth = camera.project(pose, body.centre)
    half = camera.focal * 1.2 * radius / max(depth - radius, 1.0)
    if depth <= 0:
        return np.empty(0, int)
    low_x, high_x = (int(np.clip(column + s * half, 0, camera.width)) for s in (-1, 1))
    low_y, high_y = (int(np.clip(row + s * half, 0, camera.height)) for s in (-1, 1))
    return (np.arange(low_y, high_y)[:, None] * camera.width + np.arange(low_x, high_x)).ravel()


def to_local(body: Ellipsoid, vectors: np.ndarray) -> np.ndarray:
    """Vectors (3, n) in the units in which the body is the unit ball."""
    scaled = (body.axes / body.semi_axes[:, None]).astype(np.float32)
    return np.stack([row[0] * vectors[0] + row[1] * vectors[1] + row[2] * vectors[2] for row in scaled])


def meet(body: Ellipsoid, position: np.ndarray, directions: np.ndarray) -> Meeting:
    """First meeting of the rays from `position` (3,) along `directions` (3, rays) with `body`.

    The body's radius is ``1 + lumps``: a ray is first met with the ball, or taken where it passes closest, and then
    met again with the ball of the radius found there.
    """
    origin = (body.axes / body.semi_axes[:, None] @ (position - body.centre)).astype(np.float32)
    d = to_local(body, directions)
    square = (d * d).sum(axis=0)
    half = d[0] * origin[0] + d[1] * origin[1] + d[2] * origin[2]
    inside = np.float32(origin @ origin)
    radius: np.ndarray | np.float32 = np.float32(1)
    if body.lumps:
        near = origin[:, None] + _first(square, half, inside - 1)[1] * d
        radius = 1 + _lumps(body, near)
    met, distance = _first(square, half, inside - radius * radius)
    local = origin[:, None] + distance * d
    return Meeting(met, distance, local, _incidence(body, local, directions))


def _first(square: np.ndarray, half: np.ndarray, rest: np.ndarray | np.float32) -> tuple[np.ndarray, np.ndarray]:
    """Whether and where ``square t^2 + 2 half t + rest`` first vanishes; where it does not, where it is least."""
    discriminant = half * half - square * rest
    distance = (-half - np.sqrt(np.maximum(discriminant, 0))) / square
    return (discriminant > 0) & (distance > 0), distance


def _lumps(body: Ellipsoid, local: np.ndarray) -> np.ndarray:
    """Relative height of the lumps, at most 0, so that the size stays the greatest diameter."""
    x, y, z = local
    p = np.float32(body.phase)
    return np.float32(body.lumps) * (np.sin(5 * x + p) * np.cos(4 * y - p) + np.sin(4 * z + 3 * x - 2 * y + p) - 2)


def _incidence(body: Ellipsoid, local: np.ndarray, directions: np.ndarray) -> np.ndarray:
    slope = local.copy()
    if body.lumps:  # the normal of the lumpy surface, to first order
        x, y, z = local * 3
        p, height = np.float32(body.phase), np.float32(4 * body.lumps)
        slope += height * np.stack([np.cos(x + y + p), np.sin(y - z + p), np.cos(z - x + p)])
    slope /= body.semi_axes[:, None].astype(np.float32)
    normal = body.axes.T.astype(np.float32)
    world = [row[0] * slope[0] + row[1] * slope[1] + row[2] * slope[2] for row in normal]
    dot = -(world[0] * directions[0] + world[1] * directions[1] + world[2] * directions[2])
    return dot / np.sqrt((slope * slope).sum(axis=0))
