"""What is made: the options, and the videos, polyps and sizes that follow from them."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy.special import ndtr, ndtri

from fsg_jax._checks import check_integer, check_probabilities

GROUPS = ((2.0, 5.0, 0.5), (5.5, 9.5, 0.25), (10.0, 20.0, 0.25))
"""Smallest and largest size in mm and share of the polyps in each size group: <= 5, 5 to 10, >= 10 mm."""
_LOG_MEAN, _LOG_STD = np.log(5.0), 0.6
_STEP = 0.5
_MINIMUM = {"polyps": 1, "frames": 1, "seed": 0, "width": 64, "height": 64, "broken": 0, "workers": 0}


@dataclass(frozen=True)
class Config:
    """A made-up colonoscopy set; the same options and seed give the same frames, boxes and labels in both layouts.

    Raises:
      ValueError: a number is out of range, or two options contradict each other.
    """

    out: Path
    """Folder of the set: new, empty, or holding this very set."""
    layout: Literal["real-colon", "sun"]
    """How the files lie."""
    polyps: int = 48
    frames: int = 12
    """Frames that show each polyp."""
    seed: int = 0
    width: int = 320
    height: int = 256
    depth: bool = True
    """Write depth maps."""
    broken: int = 0
    """Number of deliberately damaged frames, which a reader must drop; listed in SYNTHETIC.json."""
    two_polyp_frames: bool = False
    """Every fourth video shows two polyps in its frames."""
    censor: bool = False
    """SUN: a size of 15 mm or more is written as ``15mm-``."""
    missing_histology: float = 0.0
    """Share of the polyps, at random, whose histology is not written."""
    workers: int = 0
    """Processes; 0: one for each core. The files do not depend on it."""

    def __post_init__(self) -> None:
        for name, minimum in _MINIMUM.items():
            check_integer(f"--{name}", getattr(self, name), minimum)
        check_probabilities(**{"--missing-histology": self.missing_histology})
        if self.two_polyp_frames:
            check_integer("--polyps, with --two-polyp-frames", self.polyps, 2)
        if self.censor and self.layout != "sun":
            raise ValueError(f"--layout, with --censor: expected 'sun', found {self.layout!r}")

    def parameters(self) -> dict[str, Any]:
        """The options that the content of the files depends on."""
        return {name: value for name, value in asdict(self).items() if name not in ("out", "workers")}


Corners = tuple[int | str, int | str, int | str, int | str]
"""xmin, ymin, xmax, ymax; words where they are damaged."""


class Box(NamedTuple):
    """A polyp, numbered over the set from 0, in a frame.

    `corners` are xmin, ymin, xmax, ymax, half-open, tight around the `pixels` of it that are seen; its centre is
    `distance_mm` from the camera.
    """

    polyp: int
    corners: Corners
    pixels: int
    distance_mm: float


class Frame(NamedTuple):
    """A frame: its number in the video from 1, its size and its boxes."""

    number: int
    width: int
    height: int
    boxes: tuple[Box, ...]


class Lesion(NamedTuple):
    """Histology and site of a polyp: true, which is what is seen, and as written; None is written as nothing."""

    histology: str
    site: str
    written_histology: str | None
    written_site: str


class Video(NamedTuple):
    """A video: number from 0, its polyps, numbered over the set from 0, their sizes in mm, its frames, their labels.

    While it is planned only, it has no frames and no labels.
    """

    number: int
    polyps: tuple[int, ...]
    sizes: tuple[float, ...]
    frames: tuple[Frame, ...] = ()
    lesions: tuple[Lesion, ...] = ()


def plan_videos(config: Config) -> list[Video]:
    """The videos of a phantom in order; one polyp each, or two in every fourth with ``two_polyp_frames``."""
    sizes = polyp_sizes(config.polyps, config.seed)
    left, videos = tuple(range(config.polyps)), list[Video]()
    while left:
        count = 2 if config.two_polyp_frames and len(videos) % 4 == 0 else 1
        videos.append(Video(len(videos), left[:count], tuple(sizes[k] for k in left[:count])))
        left = left[count:]
    return videos


def polyp_sizes(count: int, seed: int) -> list[float]:
    """`count` sizes in mm, log-normal within each group of `GROUPS`, in steps of 0.5 mm, in random order."""
    rng = np.random.default_rng([seed, count])
    low, high, share = np.array(GROUPS).T
    counts = np.floor(share * count).astype(int)
    counts[np.argsort(counts - share * count, kind="stable")[: count - counts.sum()]] += 1  # the largest remainders
    group = np.repeat(np.arange(len(GROUPS)), counts)
    first, last = ndtr((np.log([low, high]) - _LOG_MEAN) / _LOG_STD)[:, group]
    rank = np.concatenate([np.arange(n) for n in counts])
    quantile = first + (last - first) * (rank + rng.random(count)) / counts[group]
    sizes = np.round(np.exp(_LOG_MEAN + _LOG_STD * ndtri(quantile)) / _STEP) * _STEP
    return rng.permutation(np.clip(sizes, low[group], high[group])).tolist()
