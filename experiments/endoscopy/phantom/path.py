"""How the camera moves while it looks at a polyp: towards it, drifting to the side, turning a little."""

import math
from dataclasses import dataclass

import numpy as np

from experiments.endoscopy.phantom.camera import Camera, Pose, look_at
from experiments.endoscopy.phantom.scene import Scene

_NEAREST, _FARTHEST = 8.0, 50.0
_LARGEST, _SMALLEST = 0.42, 0.035  # of the frame's width
_ELSEWHERE = 45.0
_AXIS = np.array([0.0, 0.0, 1.0])


@dataclass(frozen=True)
class Path:
    """From `far` to `near` mm from the first polyp; `waves` are amplitude, speed and phase of each drift."""

    far: float
    near: float
    slant: float
    waves: tuple[tuple[float, float, float], ...]

    def drift(self, which: int, time: float) -> float:
        """A smooth function of the time in [0, 1]."""
        amplitude, speed, phase = self.waves[which]
        return amplitude * math.sin(speed * time + phase)


def random_path(sizes: tuple[float, ...], camera: Camera, rng: np.random.Generator) -> Path:
    """A path on which polyps of `sizes` mm are neither too small to see nor larger than the frame."""
    scale = camera.focal / camera.width
    low, high = max(_NEAREST, max(sizes) * scale / _LARGEST), min(_FARTHEST, min(sizes) * scale / _SMALLEST)
    middle = math.exp(rng.uniform(math.log(low), math.log(high)))
    change = rng.uniform(1.1, 1.5)
    waves = [(a, rng.uniform(2, 5), rng.uniform(-math.pi, math.pi)) for a in (0.07, 0.35, 0.25, 0.12, 0.12)]
    return Path(
        far=min(middle * change, high),
        near=max(middle / change, low),
        slant=float(rng.uniform(math.radians(30), math.radians(62))),
        waves=tuple((a * float(rng.uniform(0.4, 1)), float(s), float(p)) for a, s, p in waves),
    )


def pose_at(path: Path, scene: Scene, time: float, *, elsewhere: bool = False) -> Pose:
    """The camera at `time` in [0, 1]; `elsewhere`: the same way, but in a stretch of colon before the polyp's."""
    centre = scene.polyps[0].centre
    distance = path.far * (path.near / path.far) ** time * math.exp(path.drift(0, time))
    distance = float(np.clip(distance, path.near, path.far))
    inward = -np.array([math.cos(scene.lumen.crest[0]), math.sin(scene.lumen.crest[0]), 0])
    sideways = np.cross(_AXIS, inward)
    reach = scene.lumen.radius
    height = float(np.clip(math.cos(path.slant), min(7 / distance, 0.9), 1.2 * reach / distance))
    turn = path.drift(1, time)
    across = height * (math.cos(turn) * inward + math.sin(turn) * sideways)
    position = centre + distance * (across - math.sqrt(1 - height**2) * _AXIS)
    turn_away = math.radians(17) + path.drift(2, time) * 0.6
    target = centre + distance * (path.drift(3, time) * sideways + path.drift(4, time) * inward)
    shift = -_ELSEWHERE * _AXIS if elsewhere else np.zeros(3)
    return look_at(position + shift, target + shift, toward=_AXIS, turn=turn_away, roll=0.3 + 2 * path.drift(3, time))
