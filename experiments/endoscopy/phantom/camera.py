"""A pinhole camera in millimetres, and the path that it takes."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

_HALF_ANGLE = math.radians(50)
_VIEW_RADIUS = 0.92  # of half the width; the circular field of view


class Pose(NamedTuple):
    """Where the camera is (3,) in mm, and its right, down and forward directions as rows (3, 3)."""

    position: np.ndarray
    rotation: np.ndarray


@dataclass(frozen=True)
class Camera:
    """A pinhole camera of 100 degrees across; a ball of `size` mm at `distance` mm is ``focal size / distance`` wide.

    The pixel of column i and row j looks along ``((i + 0.5 - width/2) / focal, (j + 0.5 - height/2) / focal, 1)``.
    """

    width: int
    height: int

    @property
    def focal(self) -> float:
        """Focal length in pixels."""
        return self.width / 2 / math.tan(_HALF_ANGLE)

    def project(self, pose: Pose, point: np.ndarray) -> tuple[float, float, float]:
        """Column, row and depth along the optical axis of `point`."""
        x, y, z = pose.rotation @ (point - pose.position)
        return self.width / 2 + self.focal * x / z, self.height / 2 + self.focal * y / z, float(z)


class Grid(NamedTuple):
    """Per pixel, flattened: unit directions (3, pixels), their length at depth 1, and the circular field of view."""

    directions: np.ndarray
    length: np.ndarray
    view: np.ndarray


@lru_cache(maxsize=4)
def pixel_grid(camera: Camera) -> Grid:
    """The rays of `camera` and what of the frame its round optics show (1 inside, 0 outside, soft in between)."""
    x, y = np.meshgrid(np.arange(camera.width) + 0.5, np.arange(camera.height) + 0.5)
    x, y = x.ravel() - camera.width / 2, y.ravel() - camera.height / 2
    length = np.sqrt((x * x + y * y) / camera.focal**2 + 1)
    directions = np.stack([x / camera.focal, y / camera.focal, np.ones_like(x)]) / length
    radius = np.hypot(x, y) / (camera.width / 2 * _VIEW_RADIUS)
    view = np.clip((1 - radius) * camera.width / 8, 0, 1) * (1 - 0.35 * np.minimum(radius, 1) ** 4)
    return Grid(directions.astype(np.float32), length.astype(np.float32), view.astype(np.float32))


def world_directions(camera: Camera, pose: Pose) -> np.ndarray:
    """Unit directions (3, pixels) of the rays in the world."""
    x, y, z = pixel_grid(camera).directions
    r = pose.rotation.astype(np.float32)
    return np.stack([x * r[0, i] + y * r[1, i] + z * r[2, i] for i in range(3)])


def look_at(position: np.ndarray, target: np.ndarray, *, toward: np.ndarray, turn: float, roll: float) -> Pose:
    """A camera at `position` that looks at `target` and then turns by up to `turn` radians to direction `toward`."""
    forward = _unit(target - position)
    angle = math.acos(float(np.clip(forward @ toward, -1, 1)))
    side = toward - (forward @ toward) * forward
    if angle > 1e-3:
        turn = min(turn, angle)
        forward = math.cos(turn) * forward + math.sin(turn) * _unit(side)
    up = np.array([math.cos(roll), math.sin(roll), 0.0])
    right = _unit(np.cross(up, forward))
    return Pose(position, np.stack([right, np.cross(forward, right), forward]))


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)
