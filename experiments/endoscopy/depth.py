"""Makes depth maps of the frames of an index: `python -m experiments.depth INDEX... --model MODEL --out DIR`."""

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import tyro
from PIL import Image
from tqdm import tqdm

from experiments.endoscopy.depth_model import DepthModel, describe_model, load_model, predict_depth
from experiments.errors import UserError, run_main
from experiments.run_folder import writing_to
from fsg_jax._checks import check_integer
from fsg_jax.endoscopy.frames import depth_maps
from fsg_jax.endoscopy.frames.decode import check_image, open_image
from fsg_jax.endoscopy.index.schema import Table, read_index

_SHOWN = 20


@dataclass(frozen=True)
class DepthArgs:
    """Writes a depth map for every frame of an index that has none yet, in a folder of its own.

    Maps are 16-bit greyscale PNG files. The smallest value of a map becomes 0 and the largest 65535, so that values
    compare within a map and not between maps. After an interruption, the same command continues where it stopped.
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


def make_depth(args: DepthArgs) -> None:
    """Makes the maps and says what was done.

    Raises:
      UserError: the model cannot be loaded, the folder holds another model's maps or cannot be written, or, at the
        end, frames have no map.
      FileNotFoundError: there is no such index.
      ValueError: a number is out of its range, or an index or depth.json is damaged.
    """
    for name in ("batch_size", "longest_side", "workers", "limit"):
        if (value := getattr(args, name)) is not None:
            check_integer(f"--{name.replace('_', '-')}", value, 1)
    table, roots = read_index(*args.index)
    frames = list(_frames(table, roots, args.out))
    wanted = set(depth_maps.missing_depth(table, args.out))
    todo = [frame for frame in frames if frame.out in wanted]
    now = todo[: args.limit]
    model = load_model(args.model, args.device)
    info = describe_model(model, args.model, args.larger_is, synthetic=any(table.column("synthetic").to_pylist()))
    failed: list[str] = []
    with writing_to(args.out):
        _claim(args.out, info, has_maps=len(todo) < len(frames))
        with ThreadPoolExecutor(args.workers) as pool, tqdm(total=len(now), unit="frame", disable=None) as bar:
            for batch in _batches(now, args.batch_size):
                failed += _make_batch(model, batch, args.longest_side, pool)
                bar.update(len(batch))
                bar.set_postfix(failed=len(failed))
    left = f", {len(todo) - len(now)} left by --limit" if len(todo) > len(now) else ""
    counts = f"{len(now) - len(failed)} maps made, {len(frames) - len(todo)} there already, {len(failed)} failed{left}"
    print(f"{counts}; in {args.out}")
    if failed:
        more = [f"and {len(failed) - _SHOWN} more"] if len(failed) > _SHOWN else []
        raise UserError("\n".join([f"{len(failed)} frames have no map:", *failed[:_SHOWN], *more]))


def _frames(table: Table, roots: dict[str, Path], out: Path) -> Iterator[Frame]:
    """Every frame once, in the order of the index."""
    names = ("dataset", "image_path", "width", "height")
    for dataset, name, width, height in dict.fromkeys(zip(*(table.column(n).to_pylist() for n in names), strict=True)):
        yield Frame(roots[dataset] / name, (width, height), depth_maps.depth_path(out, dataset, name))


def _claim(out: Path, info: depth_maps.DepthInfo, *, has_maps: bool) -> None:
    """Writes depth.json, or compares it: the maps of one folder are of one model."""
    file = out / depth_maps.DEPTH_INFO
    if not file.exists():
        if has_maps:
            raise UserError(f"{file}: expected a file that says what made the maps there, found none")
        depth_maps.write_depth_info(out, info)
        return
    there = depth_maps.read_depth_info(out)
    if differ := [n for n in ("model", "larger_is", "revision") if getattr(there, n) != getattr(info, n)]:
        pairs = "; ".join(f"{n} is {getattr(there, n)!r} there, {getattr(info, n)!r} now" for n in differ)
        raise UserError(f"--out: expected maps of this model, found maps of another in {out}: {pairs}")
    if info.synthetic and not there.synthetic:
        depth_maps.write_depth_info(out, replace(there, synthetic=True))


def _batches(frames: Sequence[Frame], batch_size: int) -> Iterator[list[Frame]]:
    for _, group in itertools.groupby(frames, key=lambda frame: frame.shape):
        alike = iter(group)
        while batch := list(itertools.islice(alike, batch_size)):
            yield batch


def _make_batch(model: DepthModel, batch: Sequence[Frame], longest_side: int, pool: ThreadPoolExecutor) -> list[str]:
    """Makes the maps of frames of one size; returns why some failed."""
    read = list(pool.map(partial(_attempt, _read), batch))
    failed = [found for found in read if isinstance(found, str)]
    good = [(frame.out, found) for frame, found in zip(batch, read, strict=True) if not isinstance(found, str)]
    if good:
        paths, images = zip(*good, strict=True)
        maps = predict_depth(model, images, _map_size(batch[0].shape, longest_side))
        failed += filter(None, pool.map(partial(_attempt, depth_maps.write_depth), paths, maps))
    return failed


def _map_size(shape: tuple[int, int], longest_side: int) -> tuple[int, int]:
    scale = min(1.0, longest_side / max(shape))
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


def _read(frame: Frame) -> Image.Image:
    with open_image(frame.path, "index again") as image:
        check_image(frame.path, image, frame.shape, "index again")
        return image.convert("RGB")


def _attempt(work: Callable[..., Any], *args: Any) -> Any:
    """What `work` returns, or the message of its ValueError (a `FrameError` is one)."""
    try:
        return work(*args)
    except ValueError as error:
        return str(error)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    make_depth(tyro.cli(DepthArgs, args=argv, prog="python -m experiments.depth"))


if __name__ == "__main__":
    run_main(main)
