"""Films one video: a scene and a camera's track that suit each other, and the frames on disk."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments.endoscopy.phantom.camera import Camera, Pose, Track, pixel_grid, pose_at, random_track
from experiments.endoscopy.phantom.colon import Scene, clearance, random_scene
from experiments.endoscopy.phantom.lesion_kinds import draw_lesions
from experiments.endoscopy.phantom.native_layouts import Layout
from experiments.endoscopy.phantom.phantom_plan import Box, Config, Frame, Video
from experiments.endoscopy.phantom.rays import trace
from experiments.endoscopy.phantom.shading import Picture, render

NUM_EMPTY = 4
"""Frames without a polyp in every video of REAL-Colon."""
DEPTH_UNIT_MM = 0.05
"""What a step of the values of a depth map stands for."""
_QUALITY = 90
_ATTEMPTS = 40
_SEEN = 0.7
_MIN_SEEN = 3e-4  # of the pixels of the frame
_CHECKS = np.linspace(0, 1, 5)


def film_video(plan: Video, config: Config, layout: Layout, root: Path) -> Video:
    """Renders the frames of a video that `layout` holds, writes them under `root`, and returns it with all it has."""
    camera = Camera(config.width, config.height)
    scene, track = _choose_scene(config.seed, plan, camera)
    lesions, scene = draw_lesions(plan, scene, config)
    frames = []
    for number, shown, pose in _shots(scene, track, config.frames):
        if not shown.polyps and not layout.has_empty_frames:
            continue
        picture = render(shown, camera, pose, np.random.default_rng([config.seed, plan.number, number]))
        frames.append(Frame(number, *camera, _boxes(plan, shown, pose, picture, camera)))
        for image, polyps in layout.images(plan, frames[-1]):
            png = Path(image).with_suffix(".png")
            _save(root / image, picture.rgb, quality=_QUALITY)
            if config.depth:
                levels = np.clip(np.rint(picture.depth / DEPTH_UNIT_MM), 0, 2**16 - 1).astype(np.uint16)
                _save(root / "depth" / layout.dataset / png, levels, compress_level=1)
            if polyps:
                seen = picture.masks[[plan.polyps.index(polyp) for polyp in polyps]].any(axis=0)
                _save(root / "masks" / png, np.where(seen, np.uint8(255), np.uint8(0)), compress_level=1)
    return plan._replace(frames=tuple(frames), lesions=lesions)


def _save(path: Path, pixels: np.ndarray, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def _boxes(plan: Video, scene: Scene, pose: Pose, picture: Picture, camera: Camera) -> tuple[Box, ...]:
    boxes = []
    for polyp, index, mask in zip(scene.polyps, plan.polyps, picture.masks, strict=False):  # or none of them
        pixels = int(mask.sum())
        if pixels >= _min_pixels(camera):
            distance = round(float(np.linalg.norm(polyp.parts[0].centre - pose.position)), 3)
            boxes.append(Box(index, Image.fromarray(mask).getbbox(), pixels, distance))
    return tuple(boxes)


def _choose_scene(seed: int, plan: Video, camera: Camera) -> tuple[Scene, Track]:
    """The first random scene and track along which the camera stays in the lumen and sees most of every polyp.

    Raises:
      ValueError: there is none after many attempts.
    """
    coarse = Camera(camera.width // 2, camera.height // 2)
    for attempt in range(_ATTEMPTS):
        rng = np.random.default_rng([seed, plan.number, attempt, len(plan.sizes)])
        scene, track = random_scene(plan.sizes, rng), random_track(plan.sizes, camera, rng)
        poses = [pose_at(track, scene, time) for time in _CHECKS]
        inside = all(clearance(scene.wall, pose.position) >= 3 for pose in poses)
        if inside and all(_sees_all(scene, coarse, pose) for pose in poses):
            return scene, track
    raise ValueError(
        f"--seed: expected one that shows polyps of {plan.sizes} mm, found no view in {_ATTEMPTS} attempts; choose "
        "another, or --width and --height nearer to 320 and 256"
    )


def _sees_all(scene: Scene, camera: Camera, pose: Pose) -> bool:
    hits = trace(scene, camera, pose)
    visible = np.bincount(hits.polyp[pixel_grid(camera).view > 0] + 1, minlength=len(scene.polyps) + 1)[1:]
    return bool((visible >= np.maximum(_SEEN * np.array(hits.covered), _min_pixels(camera))).all())


def _min_pixels(camera: Camera) -> float:
    return _MIN_SEEN * camera.width * camera.height


def _shots(scene: Scene, track: Track, count: int) -> Iterator[tuple[int, Scene, Pose]]:
    """Number, scene and pose of `count` frames of the polyps, and before and after them of a few without any."""
    before = (NUM_EMPTY + 1) // 2
    for index in range(count + NUM_EMPTY):
        if before <= index < before + count:
            yield index + 1, scene, pose_at(track, scene, (index - before) / max(count - 1, 1))
        else:
            yield index + 1, scene._replace(polyps=()), pose_at(track, scene, 0.37 * index % 1.0, elsewhere=True)
