"""One video: a scene and a path that suit each other, and its frames on disk."""

from collections.abc import Iterator
from pathlib import Path as FilePath
from typing import NamedTuple

import numpy as np

from experiments.endoscopy.phantom.camera import Camera, Pose, pixel_grid
from experiments.endoscopy.phantom.config import Config
from experiments.endoscopy.phantom.files import write_depth, write_jpeg, write_mask
from experiments.endoscopy.phantom.layouts import Layout
from experiments.endoscopy.phantom.lumen import clearance
from experiments.endoscopy.phantom.path import Path, pose_at, random_path
from experiments.endoscopy.phantom.records import NUM_EMPTY, Box, FrameRecord, VideoPlan, VideoRecord
from experiments.endoscopy.phantom.render import Picture, render
from experiments.endoscopy.phantom.scene import Scene, random_scene
from experiments.endoscopy.phantom.trace import trace

_ATTEMPTS = 40
_SEEN = 0.7
_MIN_SEEN = 3e-4  # of the pixels of the frame
_CHECKS = np.linspace(0, 1, 5)


class Shot(NamedTuple):
    """A frame before it is taken: its number in the video, what it shows and from where."""

    number: int
    scene: Scene
    pose: Pose


def make_video(plan: VideoPlan, config: Config, layout: Layout, root: FilePath) -> VideoRecord:
    """Renders the frames of a video that `layout` holds, writes them under `root` and returns what they show."""
    camera = Camera(config.width, config.height)
    scene, path = choose_scene(config.seed, plan, camera)
    frames = []
    for shot in shots(scene, path, config.frames):
        if not shot.scene.polyps and not layout.has_empty_frames:
            continue
        picture = render(shot.scene, camera, shot.pose, np.random.default_rng([config.seed, plan.number, shot.number]))
        frames.append(_record(plan, shot, picture, config))
        _write(frames[-1], plan, picture, layout, root, depth=config.depth)
    return VideoRecord(plan.number, plan.polyps, plan.sizes, tuple(frames))


def choose_scene(seed: int, plan: VideoPlan, camera: Camera) -> tuple[Scene, Path]:
    """The first random scene and path along which the camera stays in the lumen and sees most of every polyp.

    Raises:
      ValueError: there is none after many attempts.
    """
    for attempt in range(_ATTEMPTS):
        rng = np.random.default_rng([seed, plan.number, attempt, len(plan.sizes)])
        scene = random_scene(plan.sizes, rng)
        path = random_path(plan.sizes, camera, rng)
        if _suits(scene, path, camera):
            return scene, path
    raise ValueError(
        f"no view of polyps of {plan.sizes} mm in {_ATTEMPTS} attempts; choose another --seed, or --width and --height "
        "nearer to 320 and 256"
    )


def _suits(scene: Scene, path: Path, camera: Camera) -> bool:
    coarse = Camera(camera.width // 2, camera.height // 2)
    poses = [pose_at(path, scene, time) for time in _CHECKS]
    if min(clearance(scene.wall, pose.position) for pose in poses) < 3:
        return False
    return all(_sees_all(scene, coarse, pose) for pose in poses)


def _sees_all(scene: Scene, camera: Camera, pose: Pose) -> bool:
    hits = trace(scene, camera, pose)
    visible = np.bincount(hits.polyp[pixel_grid(camera).view > 0] + 1, minlength=len(scene.polyps) + 1)[1:]
    return bool((visible >= np.maximum(_SEEN * np.array(hits.covered), _min_pixels(camera))).all())


def _min_pixels(camera: Camera) -> float:
    return _MIN_SEEN * camera.width * camera.height


def shots(scene: Scene, path: Path, count: int) -> Iterator[Shot]:
    """`count` frames of the polyps, and before and after them a few of colon without any."""
    empty = Scene(scene.lumen, scene.wall, (), scene.look)
    before = (NUM_EMPTY + 1) // 2
    for index in range(count + NUM_EMPTY):
        elsewhere = not before <= index < before + count
        time = 0.37 * index if elsewhere else (index - before) / max(count - 1, 1)
        pose = pose_at(path, scene, time % 1.0 if elsewhere else time, elsewhere=elsewhere)
        yield Shot(index + 1, empty if elsewhere else scene, pose)


def _record(plan: VideoPlan, shot: Shot, picture: Picture, config: Config) -> FrameRecord:
    boxes = []
    for polyp, index, mask in zip(shot.scene.polyps, plan.polyps, picture.masks, strict=False):  # or none of them
        pixels = int(mask.sum())
        if pixels < _min_pixels(Camera(config.width, config.height)):
            continue
        rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        corners = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
        distance = float(np.linalg.norm(polyp.centre - shot.pose.position))
        boxes.append(Box(index, corners, pixels, round(distance, 3)))
    return FrameRecord(shot.number, config.width, config.height, tuple(boxes))


def _write(
    frame: FrameRecord, plan: VideoPlan, picture: Picture, layout: Layout, root: FilePath, *, depth: bool
) -> None:
    for image_path, polyps in layout.images(plan, frame):
        write_jpeg(root / image_path, picture.rgb)
        if depth:
            write_depth(root / "depth" / layout.dataset / image_path, picture.depth)
        if polyps:
            seen = picture.masks[[plan.polyps.index(polyp) for polyp in polyps]]
            write_mask(root / "masks" / image_path, np.any(seen, axis=0))
