"""A pinhole camera in millimetres, and how it moves: towards a polyp, drifting to the side, turning a little."""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from experiments.endoscopy.phantom.colon import Scene

_HALF_ANGLE = math.radians(50)
_VIEW_RADIUS = 0.92  # of half the width; the circular field of view
_NEAREST, _FARTHEST = 8.0, 50.0
_LARGEST, _SMALLEST = 0.42, 0.035  # of the frame's width
_ELSEWHERE = 45.0
_AXIS = np.array([0.0, 0.0, 1.0])


class Pose(NamedTuple):
    """Where the camera is (3,) in mm, and its right, down and forward directions as rows (3, 3)."""

    position: np.ndarray
    rotation: np.ndarray


class Camera(NamedTuple):
    """A pinhole camera of 100 degrees across; a ball of `size` mm at `distance` mm is ``focal size / distance`` wide.

    The pixel of column i and row j looks along ``((i + 0.5 - width/2) / focal, (j + 0.5 - height/2) / focal, 1)``.
    """

    width: int
    height: int

    @property
    def focal(self) -> float:
        """Focal length in pixels."""
        return self.width / 2 / math.tan(_HALF_ANGLE)


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
    return Grid(*(field.astype(np.float32) for field in (directions, length, view)))


class Track(NamedTuple):
    """From `far` to `near` mm from the first polyp; `drifts` are amplitude, speed and phase of five slow waves."""

    far: float
    near: float
    slant: float
    drifts: tuple[tuple[float, float, float], ...]


def random_track(sizes: tuple[float, ...], camera: Camera, rng: np.random.Generator) -> Track:
    """Draws a track on which polyps of `sizes` mm are neither too small to see nor larger than the frame."""
    scale = camera.focal / camera.width
    low, high = max(_NEAREST, max(sizes) * scale / _LARGEST), min(_FARTHEST, min(sizes) * scale / _SMALLEST)
    middle = math.exp(rng.uniform(math.log(low), math.log(high)))
    change = rng.uniform(1.1, 1.5)
    speeds, phases = rng.uniform((2, -math.pi), (5, math.pi), (5, 2)).T.tolist()
    slant = float(rng.uniform(math.radians(30), math.radians(62)))
    amplitudes = (np.array([0.07, 0.35, 0.25, 0.12, 0.12]) * rng.uniform(0.4, 1, 5)).tolist()
    drifts = tuple(zip(amplitudes, speeds, phases, strict=True))
    return Track(min(middle * change, high), max(middle / change, low), slant, drifts)


def pose_at(track: Track, scene: Scene, time: float, *, elsewhere: bool = False) -> Pose:
    """The camera at `time` in [0, 1]; `elsewhere`: the same way, but in a stretch of colon before the polyp's."""
    nearer, turn, look_away, side, rise = (a * math.sin(speed * time + phase) for a, speed, phase in track.drifts)
    distance = track.far * (track.near / track.far) ** time * math.exp(nearer)
    distance = float(np.clip(distance, track.near, track.far))
    inward = -np.array([math.cos(scene.wall.crest), math.sin(scene.wall.crest), 0])
    sideways = np.cross(_AXIS, inward)
    height = float(np.clip(math.cos(track.slant), min(7 / distance, 0.9), 1.2 * scene.wall.mean_radius / distance))
    across = height * (math.cos(turn) * inward + math.sin(turn) * sideways)
    centre = scene.polyps[0].parts[0].centre
    position = centre + distance * (across - math.sqrt(1 - height**2) * _AXIS)
    target = centre + distance * (side * sideways + rise * inward)
    shift = -_ELSEWHERE * _AXIS if elsewhere else np.zeros(3)
    return _look_at(position + shift, target + shift, turn=math.radians(17) + look_away * 0.6, roll=0.3 + 2 * side)


def _look_at(position: np.ndarray, target: np.ndarray, *, turn: float, roll: float) -> Pose:
    """A camera at `position` that looks at `target` and then turns by up to `turn` radians to the axis of the tube."""
    forward = _unit(target - position)
    angle = math.acos(float(np.clip(forward @ _AXIS, -1, 1)))
    if angle > 1e-3:
        turn = min(turn, angle)
        forward = math.cos(turn) * forward + math.sin(turn) * _unit(_AXIS - (forward @ _AXIS) * forward)
    right = _unit(np.cross([math.cos(roll), math.sin(roll), 0.0], forward))
    return Pose(position, np.stack([right, np.cross(forward, right), forward]))


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)
