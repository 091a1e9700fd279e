"""`python -m experiments.depth INDEX... --model MODEL --out DIR`: depth maps of the frames of an index."""

import itertools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import tyro
from PIL import Image
from tqdm import tqdm

from experiments.endoscopy.depth_model import DepthModel, describe_model, load_model, predict_depth
from experiments.errors import UserError, run_main
from experiments.run_folder import writing_to
from fsg_jax.endoscopy.frames.decode import FrameError, check_image, open_image
from fsg_jax.endoscopy.frames.depth_maps import (
    DEPTH_INFO,
    DepthInfo,
    depth_path,
    missing_depth,
    read_depth_info,
    write_depth,
    write_depth_info,
)
from fsg_jax.endoscopy.index.schema import Table, read_index

_SHOWN = 20


@dataclass(frozen=True)
class DepthArgs:
    """Writes a depth map for every frame of an index that has none yet, in a folder of its own.

    Maps are 16-bit greyscale PNG files. The smallest value of a map becomes 0 and the largest 65535, so that values
    compare within a map and not between maps. Run again after an interruption, it goes on where it stopped.
    """

    index: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Indexes of polyp boxes: files, or folders that hold index.parquet."""
    model: str
    """Folder of a Hugging Face depth-estimation model, or its name on the hub, from where it is then downloaded."""
    out: Path
    """Folder of the maps, and of depth.json, which says what made them."""
    batch_size: int = 8
    """Frames at a time; consecutive frames of one size."""
    device: Literal["cpu", "cuda"] = "cpu"
    larger_is: Literal["auto", "nearer", "farther"] = "auto"
    """What a larger value of the model means; ``auto`` takes it from the model's configuration."""
    longest_side: int = 512
    """Of a map in pixels; smaller frames have maps of their own size."""
    limit: int | None = None
    """Make at most that many maps."""
    workers: int = min(8, os.cpu_count() or 1)
    """Threads that read frames and write maps."""


class Frame(NamedTuple):
    """A frame to be mapped."""

    path: Path
    shape: tuple[int, int]
    out: Path


class Outcome(NamedTuple):
    """How many maps were made, were there already, are left for another run, and the frames that have none and why."""

    done: int
    skipped: int
    left: int
    failed: dict[Path, str]


def make_depth(args: DepthArgs) -> Outcome:
    """Makes the maps.

    Raises:
      UserError: the model cannot be loaded, or the folder holds another model's maps or cannot be written.
      FileNotFoundError: there is no such index.
      ValueError: an index or depth.json is damaged.
    """
    for name in ("batch_size", "longest_side", "workers", "limit"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} is {value}; expected 1 or more")
    table, roots = read_index(*args.index)
    frames = list(_frames(table, roots, args.out))
    wanted = set(missing_depth(table, args.out))
    todo = [frame for frame in frames if frame.out in wanted]
    model = load_model(args.model, args.device)
    info = describe_model(model, args.model, args.larger_is, synthetic=any(table.column("synthetic").to_pylist()))
    with writing_to(args.out):
        _claim(args.out, info, has_maps=len(todo) < len(frames))
        now = todo[: args.limit]
        failed = _make(model, now, args)
    return Outcome(len(now) - len(failed), len(frames) - len(todo), len(todo) - len(now), failed)


def _frames(table: Table, roots: dict[str, Path], out: Path) -> Iterator[Frame]:
    """Every frame once, in the order of the index."""
    names = ("dataset", "image_path", "width", "height")
    for dataset, name, width, height in dict.fromkeys(zip(*(table.column(n).to_pylist() for n in names), strict=True)):
        yield Frame(roots[dataset] / name, (width, height), depth_path(out, dataset, name))


def _claim(out: Path, info: DepthInfo, *, has_maps: bool) -> None:
    """Writes depth.json, or compares it: the maps of one folder are of one model."""
    if not (out / DEPTH_INFO).exists():
        if has_maps:
            raise UserError(f"{out} holds maps but no {DEPTH_INFO} that says what made them; choose another --out")
        write_depth_info(out, info)
        return
    there = read_depth_info(out)
    if differ := [n for n in ("model", "larger_is", "revision") if getattr(there, n) != getattr(info, n)]:
        pairs = "; ".join(f"{n} is {getattr(there, n)!r} there, {getattr(info, n)!r} now" for n in differ)
        raise UserError(f"{out} holds maps of another model: {pairs}; choose another --out")
    if info.synthetic and not there.synthetic:
        write_depth_info(out, replace(there, synthetic=True))


def _make(model: DepthModel, frames: Sequence[Frame], args: DepthArgs) -> dict[Path, str]:
    failed: dict[Path, str] = {}
    with ThreadPoolExecutor(args.workers) as pool, tqdm(total=len(frames), unit="frame", disable=None) as bar:
        for batch in _batches(frames, args.batch_size):
            failed |= _make_batch(model, batch, args.longest_side, pool)
            bar.update(len(batch))
            bar.set_postfix(failed=len(failed))
    return failed


def _batches(frames: Sequence[Frame], batch_size: int) -> Iterator[list[Frame]]:
    for _, group in itertools.groupby(frames, key=lambda frame: frame.shape):
        alike = iter(group)
        while batch := list(itertools.islice(alike, batch_size)):
            yield batch


def _make_batch(
    model: DepthModel, batch: Sequence[Frame], longest_side: int, pool: ThreadPoolExecutor
) -> dict[Path, str]:
    """The maps of frames of one size; returns those that failed and why."""
    read = list(pool.map(_read, batch))
    failed = {frame.path: found for frame, found in zip(batch, read, strict=True) if isinstance(found, str)}
    images = [found for found in read if not isinstance(found, str)]
    if images:
        frames = [frame for frame in batch if frame.path not in failed]
        maps = predict_depth(model, images, _map_size(batch[0].shape, longest_side))
        errors = pool.map(_write, frames, maps)
        failed |= {frame.path: error for frame, error in zip(frames, errors, strict=True) if error}
    return failed


def _map_size(shape: tuple[int, int], longest_side: int) -> tuple[int, int]:
    scale = min(1.0, longest_side / max(shape))
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


def _read(frame: Frame) -> Image.Image | str:
    """The frame as RGB, or why it cannot be read."""
    try:
        with open_image(frame.path, "index again") as image:
            check_image(frame.path, image, frame.shape, "index again")
            return image.convert("RGB")
    except FrameError as error:
        return str(error)


def _write(frame: Frame, depth: Any) -> str | None:
    try:
        write_depth(frame.out, depth)
    except ValueError as error:
        return str(error)
    return None


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command and says what was done.

    Raises:
      UserError: as `make_depth`, and at the end if frames have no map.
    """
    args = tyro.cli(DepthArgs, args=argv, prog="python -m experiments.depth")
    outcome = make_depth(args)
    left = f", {outcome.left} left by --limit" if outcome.left else ""
    print(
        f"{outcome.done} maps made, {outcome.skipped} there already, {len(outcome.failed)} failed{left}; in {args.out}"
    )
    if outcome.failed:
        reasons = list(outcome.failed.values())
        more = [f"and {len(reasons) - _SHOWN} more"] if len(reasons) > _SHOWN else []
        raise UserError("\n".join([f"{len(reasons)} frames have no map:", *reasons[:_SHOWN], *more]))


if __name__ == "__main__":
    run_main(main)
