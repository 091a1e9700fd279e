"""Which polyps a video has and what its frames show, as the annotations need it."""

from typing import NamedTuple

NUM_EMPTY = 4
"""Frames without a polyp in every video of REAL-Colon."""


class VideoPlan(NamedTuple):
    """One video: the polyps in it, numbered over the whole set from 0, and their sizes in mm."""

    number: int
    polyps: tuple[int, ...]
    sizes: tuple[float, ...]


class Box(NamedTuple):
    """A polyp, numbered over the set from 0, in a frame.

    `corners` are xmin, ymin, xmax, ymax, half-open, tight around the `pixels` of it that are seen; its centre is
    `distance_mm` from the camera.
    """

    polyp: int
    corners: tuple[int, int, int, int]
    pixels: int
    distance_mm: float


class FrameRecord(NamedTuple):
    """A frame: its number in the video from 1, its size and its boxes."""

    number: int
    width: int
    height: int
    boxes: tuple[Box, ...]


class VideoRecord(NamedTuple):
    """A video: its number from 0, its polyps and their sizes in mm, its frames."""

    number: int
    polyps: tuple[int, ...]
    sizes: tuple[float, ...]
    frames: tuple[FrameRecord, ...]
