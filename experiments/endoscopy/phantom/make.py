"""Makes a set: the videos in processes, then the annotations, the damage and the notes."""

import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from experiments.endoscopy.phantom.broken import add_broken
from experiments.endoscopy.phantom.config import GENERATOR, VERSION, Config
from experiments.endoscopy.phantom.files import write_depth_note, write_json
from experiments.endoscopy.phantom.folder import NOTE, holds, new_folder
from experiments.endoscopy.phantom.layouts import Layout
from experiments.endoscopy.phantom.plan import plan_videos
from experiments.endoscopy.phantom.real_colon import RealColon
from experiments.endoscopy.phantom.records import VideoPlan, VideoRecord
from experiments.endoscopy.phantom.sun import Sun
from experiments.endoscopy.phantom.video import make_video


def make_phantom(config: Config, *, progress: bool = True) -> bool:
    """Writes the set of `config`; False if it was there already.

    Raises:
      UserError: the folder holds something else or cannot be written.
    """
    if holds(config.out, _note(config)):
        return False
    layout: Layout = RealColon() if config.layout == "real-colon" else Sun(config.polyps, config.censor)
    with new_folder(config.out) as root:
        plans = plan_videos(config)
        shown = tqdm(_videos(config, plans, layout, root), total=len(plans), unit="video", disable=not progress)
        videos = list(shown)
        layout.annotate(root, videos)
        broken = add_broken(root, layout, videos, config.broken)
        write_json(root / "truth.json", _truth(layout, videos))
        if config.depth:
            write_depth_note(root / "depth")
        write_json(root / NOTE, _note(config) | {"broken": broken})
    return True


def _videos(config: Config, plans: Sequence[VideoPlan], layout: Layout, root: Path) -> Iterator[VideoRecord]:
    work = partial(make_video, config=config, layout=layout, root=root)
    workers = min(config.workers or os.cpu_count() or 1, len(plans))
    if workers == 1:
        yield from map(work, plans)
        return
    ignore_interrupts = (signal.SIGINT, signal.SIG_IGN)  # the parent stops them
    with multiprocessing.get_context("spawn").Pool(workers, signal.signal, ignore_interrupts) as pool:
        yield from pool.imap(work, plans)


def _note(config: Config) -> dict[str, Any]:
    return {
        "synthetic": True,
        "description": "Rendered, not recorded: no patient, no endoscope. For trying software, not for conclusions.",
        "generator": GENERATOR,
        "version": VERSION,
        "seed": config.seed,
        "parameters": config.parameters(),
    }


def _truth(layout: Layout, videos: Sequence[VideoRecord]) -> list[dict[str, Any]]:
    """Per polyp its size, and where, how large and how far away it is in every frame."""
    return [
        {"polyp": polyp + 1, "video": video.number + 1, "size_mm": size, "frames": _frames_of(polyp, layout, video)}
        for video in videos
        for polyp, size in zip(video.polyps, video.sizes, strict=True)
    ]


def _frames_of(polyp: int, layout: Layout, video: VideoRecord) -> list[dict[str, Any]]:
    return [
        {"image": image, "box": box.corners, "pixels": box.pixels, "distance_mm": box.distance_mm}
        for frame in video.frames
        for image, polyps in layout.images(video, frame)
        for box in frame.boxes
        if box.polyp == polyp and polyp in polyps
    ]
