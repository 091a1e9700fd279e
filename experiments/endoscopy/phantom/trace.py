"""The geometry of a frame: what each pixel sees, how far away and at what angle."""

from typing import NamedTuple

import numpy as np

from experiments.endoscopy.phantom.camera import Camera, Pose, pixel_grid, world_directions
from experiments.endoscopy.phantom.ellipsoid import Meeting, meet, pixels_around, to_local
from experiments.endoscopy.phantom.panorama import look_up, panorama
from experiments.endoscopy.phantom.scene import Scene

_SHADE_REACH = 1.35


class Patch(NamedTuple):
    """The pixels of a part of polyp `polyp` that nothing hides (flat indices), and where its surface is met there."""

    polyp: int
    part: int
    pixels: np.ndarray
    meeting: Meeting


class Hits(NamedTuple):
    """Per pixel, flattened: distance in mm, cosine of incidence, shade by close surfaces, polyp (-1: wall).

    `directions` (3, pixels) are those of the rays; `covered` is how many pixels of the circular view each polyp would
    have with nothing before it.
    """

    directions: np.ndarray
    distance: np.ndarray
    cosine: np.ndarray
    shade: np.ndarray
    polyp: np.ndarray
    patches: tuple[Patch, ...]
    covered: tuple[int, ...]


def trace(scene: Scene, camera: Camera, pose: Pose) -> Hits:
    """The first surface along the ray of every pixel."""
    directions = world_directions(camera, pose)
    distance, cosine = look_up(panorama(scene.wall, pose.position), directions)
    hits = Hits(directions, distance, cosine, np.ones_like(distance), np.full(distance.shape, -1, np.int8), (), ())
    patches, covered = [], []
    in_view = pixel_grid(camera).view > 0
    for index, polyp in enumerate(scene.polyps):
        alone = np.zeros_like(in_view)
        for part in range(len(polyp.parts)):
            patch, pixels = _add(hits, scene, camera, pose, index, part)
            alone[pixels] = True
            patches.append(patch)
        covered.append(int((alone & in_view).sum()))
    return hits._replace(patches=tuple(patches), covered=tuple(covered))


def _add(hits: Hits, scene: Scene, camera: Camera, pose: Pose, index: int, part: int) -> tuple[Patch, np.ndarray]:
    """Draws a part of a polyp over `hits`; the pixels it would have with nothing before it come too."""
    body = scene.polyps[index].parts[part]
    around = pixels_around(body, camera, pose, _SHADE_REACH)
    rays = hits.directions[:, around]
    points = pose.position[:, None].astype(np.float32) + hits.distance[around] * rays
    local = to_local(body, points - body.centre[:, None].astype(np.float32))
    gap = np.maximum(np.sqrt((local * local).sum(axis=0)) - 1, 0)
    hits.shade[around] *= 1 - 0.45 * np.exp(-((gap / 0.22) ** 2)) * (gap < 1)
    meeting = meet(body, pose.position, rays)
    front = np.flatnonzero(meeting.met & (meeting.distance < hits.distance[around]))
    pixels = around[front]
    seen = Meeting(*(field[..., front] for field in meeting))
    hits.distance[pixels], hits.cosine[pixels] = seen.distance, seen.cosine
    hits.shade[pixels], hits.polyp[pixels] = 1, index
    return Patch(index, part, pixels, seen), around[meeting.met]
