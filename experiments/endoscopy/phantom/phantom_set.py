"""Makes a set: the videos in processes, then the annotations, the damage and the notes; whole or not at all."""

import glob
import multiprocessing
import os
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
from experiments.endoscopy.phantom.native_layouts import Layout, RealColon, Sun
from experiments.endoscopy.phantom.phantom_plan import Config, Video, plan_videos
from experiments.errors import UserError
from fsg_jax._files import TEMPORARY, BusyError, lock, read_json, replacing, write_json

GENERATOR, VERSION = "experiments.phantom", 1
"""Who made a set, and a number that is raised whenever the same options give other bytes."""
NOTE = "SYNTHETIC.json"
_DEPTH_NOTE = {
    "model": GENERATOR,
    "larger_is": "farther",
    "synthetic": True,
    "quantity": "distance along the optical axis",
    "unit_mm": DEPTH_UNIT_MM,
}


def make_phantom(config: Config, *, progress: bool = True) -> bool:
    """Writes the set of `config`; False if it was there already.

    Raises:
      UserError: the folder holds something else or cannot be written.
    """
    if _holds(config):
        return False
    layout: Layout = RealColon() if config.layout == "real-colon" else Sun(config.polyps, censor=config.censor)
    with new_folder(config.out) as root:
        plans = plan_videos(config)
        videos = list(tqdm(_film(config, plans, layout, root), total=len(plans), unit="video", disable=not progress))
        layout.annotate(root, videos)
        broken = add_broken(root, layout, videos, config.broken)
        write_json(root / "truth.json", _truth(layout, videos))
        if config.depth:
            write_json(root / "depth" / "depth.json", _DEPTH_NOTE)
        description = "Rendered, not recorded: no patient, no endoscope. For trying software, not for conclusions."
        note = {"synthetic": True, "description": description, "generator": GENERATOR, "version": VERSION}
        note |= {"seed": config.seed, "parameters": config.parameters(), "broken": broken}
        write_json(root / NOTE, note)
    return True


def _holds(config: Config) -> bool:
    """Whether the folder holds the set already; False if it is new or empty.

    Raises:
      UserError: it holds anything else, or is no folder.
    """
    out = config.out
    if out.exists() and not out.is_dir():
        raise UserError(f"--out: expected a folder that is new or empty, found the file {out}")
    content = sorted(path.name for path in out.iterdir()) if out.exists() else []
    if content and NOTE not in content:
        raise UserError(f"--out: expected a folder that is new, empty or a phantom, found {content[:5]} in {out}")
    if not content:
        return False
    try:
        note = read_json(out / NOTE)
        old = {**note["parameters"], "version": note["version"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{out / NOTE}: expected the note of a phantom, found {type(error).__name__}: {error}"
        ) from error
    new = {**config.parameters(), "version": VERSION}
    differ = [f"{k}: {old.get(k)!r} there, {new.get(k)!r} now" for k in sorted(old | new) if old.get(k) != new.get(k)]
    if differ:
        raise UserError(f"--out: expected this phantom, found another in {out}, which differs in {'; '.join(differ)}")
    return True


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that becomes `out` when all went well and is removed when not.

    What killed processes left of it is removed first.

    Raises:
      UserError: another process is making `out`, or it cannot be written.
    """
    out = out.absolute()
    claim = out.with_name(f".{out.name}.lock")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        held = lock(claim)
    except BusyError:
        raise UserError(f"--out: expected a folder of our own, found that another process is making {out}") from None
    except OSError as error:
        raise UserError(f"--out: expected a folder that can be written, found {error}") from error
    with held:
        try:
            for left in out.parent.glob(f"{glob.escape(out.name)}.*{TEMPORARY}"):
                shutil.rmtree(left)
            with replacing(out) as folder:
                folder.mkdir()
                yield folder
        finally:
            claim.unlink(missing_ok=True)


def _film(config: Config, plans: Sequence[Video], layout: Layout, root: Path) -> Iterator[Video]:
    work = partial(film_video, config=config, layout=layout, root=root)
    workers = min(config.workers or os.cpu_count() or 1, len(plans))
    if workers == 1:
        yield from map(work, plans)
        return
    ignore_interrupts = (signal.SIGINT, signal.SIG_IGN)  # the parent stops them
    with multiprocessing.get_context("spawn").Pool(workers, signal.signal, ignore_interrupts) as pool:
        yield from pool.imap(work, plans)


def _truth(layout: Layout, videos: Sequence[Video]) -> list[dict[str, Any]]:
    """Per polyp its size, and where, how large and how far away it is in every frame."""
    return [
        {"polyp": polyp + 1, "video": video.number + 1, "size_mm": size, "frames": _frames_of(polyp, layout, video)}
        for video in videos
        for polyp, size in zip(video.polyps, video.sizes, strict=True)
    ]


def _frames_of(polyp: int, layout: Layout, video: Video) -> list[dict[str, Any]]:
    return [
        {"image": image, "box": box.corners, "pixels": box.pixels, "distance_mm": box.distance_mm}
        for frame in video.frames
        for image, polyps in layout.images(video, frame)
        for box in frame.boxes
        if box.polyp == polyp and polyp in polyps
    ]
