"""Makes a set: the videos in processes, then the annotations, the damage and the notes; whole or not at all."""

import multiprocessing
import os
import re
import shutil
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from experiments.endoscopy.phantom.damage import add_broken
from experiments.endoscopy.phantom.film_video import DEPTH_UNIT_MM, film_video
from experiments.endoscopy.phantom.native_layouts import Layout, RealColon, Sun, annotate
from experiments.endoscopy.phantom.phantom_plan import Config, Video, plan_videos
from experiments.errors import UserError
from experiments.run_folder import writing_to
from fsg_jax._files import TEMPORARY, BusyError, lock, read_json, replacing, write_json

GENERATOR, VERSION = "experiments.phantom", 2
"""What made a set, and a number that is raised whenever the same options give other bytes."""
NOTE = "SYNTHETIC.json"
_DESCRIPTION = "Rendered, not recorded: no patient, no endoscope. For trying software, not for conclusions."


def make_phantom(config: Config, *, progress: bool = True) -> bool:
    """Writes the set of `config`; False if it was there already.

    Raises:
      UserError: the folder holds something else, another process is making it, or it cannot be written.
    """
    if _holds(config):
        return False
    layout: Layout = RealColon() if config.layout == "real-colon" else Sun(config.polyps, censor=config.censor)
    plans = plan_videos(config)
    with writing_to(config.out), new_folder(config.out) as root:
        hidden = None if progress else True
        videos = list(tqdm(_film(config, plans, layout, root), total=len(plans), unit="video", disable=hidden))
        annotate(root, layout, videos)
        broken = add_broken(root, layout, videos, config.broken)
        write_json(root / "truth.json", _truth(layout, videos))
        if config.depth:
            maps: dict[str, Any] = {"model": GENERATOR, "larger_is": "farther", "synthetic": True}
            maps |= {"quantity": "distance along the optical axis", "unit_mm": DEPTH_UNIT_MM}
            write_json(root / "depth" / "depth.json", maps)
        note = {"synthetic": True, "description": _DESCRIPTION, "generator": GENERATOR, "version": VERSION}
        write_json(root / NOTE, note | {"seed": config.seed, "parameters": config.parameters(), "broken": broken})
    return True


def _holds(config: Config) -> bool:
    """Whether the folder holds the set already; False if it is new or empty.

    Raises:
      UserError: it holds anything else, or is no folder.
    """
    out = config.out
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        note = read_json(out / NOTE)
        old, new = {**note["parameters"], "version": note["version"]}, {**config.parameters(), "version": VERSION}
    except (OSError, ValueError, KeyError, TypeError) as error:
        found = f"{out} without a note of ours ({type(error).__name__}: {error})"
        raise UserError(f"--out: expected a folder that is new, empty or a phantom, found {found}") from error
    differ = [f"{k}: {old.get(k)!r} there, {new.get(k)!r} now" for k in sorted(old | new) if old.get(k) != new.get(k)]
    if differ:
        raise UserError(f"--out: expected this phantom, found another in {out}, which differs in {'; '.join(differ)}")
    return True


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that becomes `out` when all went well and is removed when not.

    What killed processes left of it is removed first.

    Raises:
      UserError: another process is making `out`.
      OSError: it cannot be written.
    """
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    claim = out.with_name(f".{out.name}.lock")
    try:
        held = lock(claim)
    except BusyError:
        raise UserError(f"--out: expected a folder of this process alone, found another process making {out}") from None
    with held:
        try:
            for left in out.parent.iterdir():
                if re.fullmatch(rf"{re.escape(out.name)}\.\d+{re.escape(TEMPORARY)}", left.name):
                    shutil.rmtree(left)
            with replacing(out) as folder:
                folder.mkdir()
                yield folder
        finally:
            claim.unlink(missing_ok=True)


def _film(config: Config, plans: Sequence[Video], layout: Layout, root: Path) -> Iterator[Video]:
    film = partial(film_video, config=config, layout=layout, root=root)
    workers = min(config.workers or os.cpu_count() or 1, len(plans))
    if workers == 1:
        yield from map(film, plans)
        return
    ignore_interrupts = (signal.SIGINT, signal.SIG_IGN)  # the parent stops them
    with multiprocessing.get_context("spawn").Pool(workers, signal.signal, ignore_interrupts) as pool:
        yield from pool.imap(film, plans)


def _truth(layout: Layout, videos: Sequence[Video]) -> list[dict[str, Any]]:
    """Per polyp its size and labels, and where, how large and how far away it is in every frame."""
    return [
        {"polyp": polyp + 1, "video": video.number + 1, "size_mm": size}
        | lesion._asdict()
        | {"frames": _frames_of(polyp, layout, video)}
        for video in videos
        for polyp, size, lesion in zip(video.polyps, video.sizes, video.lesions, strict=True)
    ]


def _frames_of(polyp: int, layout: Layout, video: Video) -> list[dict[str, Any]]:
    return [
        {"image": image, "box": box.corners, "pixels": box.pixels, "distance_mm": box.distance_mm}
        for frame in video.frames
        for image, polyps in layout.images(video, frame)
        for box in frame.boxes
        if box.polyp == polyp and polyp in polyps
    ]
