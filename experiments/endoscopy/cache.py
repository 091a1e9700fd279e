"""Decodes the frames of an index once, for faster training: `python -m experiments.cache INDEX... --out DIR`."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tqdm import tqdm

from experiments.errors import UserError, run_main
from experiments.run_folder import writing_to
from fsg_jax.endoscopy.frames.depth_maps import check_depth
from fsg_jax.endoscopy.frames.frame_cache import CachedSource, build_cache
from fsg_jax.endoscopy.frames.source import FrameSource
from fsg_jax.endoscopy.index.schema import read_index


@dataclass(frozen=True)
class CacheArgs:
    """Writes the examples of an index, decoded and resized, to a folder of ArrayRecord files.

    After an interruption, the same command continues where it stopped.
    """

    index: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Indexes of polyp boxes: files, or folders that hold index.parquet."""
    out: Path
    """Folder of the cache."""
    size: int = 384
    """Height and width of an example in pixels."""
    depth_root: Path | None = None
    """Folder of the depth maps; none are cached without it."""
    keep_aspect: bool = False
    """Keep the frames' aspect ratio, with black around them."""
    workers: int = os.cpu_count() or 1
    """Threads."""
    compression: Literal["none", "snappy", "zstd"] = "snappy"
    """Of the records; ``none`` is the fastest to read and the largest."""


def main(argv: Sequence[str] | None = None) -> None:
    """Builds the cache, or what is left of it, and says what there is.

    Raises:
      UserError: the indexes have no rows, or the folder cannot be written.
      FileNotFoundError: there is no such index, or depth maps are missing.
      ValueError: a frame is not what the index says, or the folder holds another cache.
    """
    args = tyro.cli(CacheArgs, args=argv, prog="python -m experiments.cache")
    table, roots = read_index(*args.index)
    if not len(table):
        raise UserError(f"{', '.join(map(str, args.index))}: expected an index of polyp boxes, found no rows")
    if args.depth_root is not None:
        check_depth(table, args.depth_root)
    source = FrameSource(table, roots, args.size, keep_aspect=args.keep_aspect, depth_root=args.depth_root)
    with tqdm(total=len(source), unit="example", disable=None) as bar, writing_to(args.out):
        build_cache(source, args.out, workers=args.workers, compression=args.compression, on_row=bar.update)
    cached, shards = CachedSource(args.out, source), list(args.out.glob("shard-*"))
    word = "shard" if len(shards) == 1 else "shards"
    gigabytes = sum(path.stat().st_size for path in shards) / 1e9
    print(f"{len(cached)} examples in {len(shards)} {word}, {gigabytes:.2f} GB, in {args.out}")


if __name__ == "__main__":
    run_main(main)
