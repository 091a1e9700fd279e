"""Examples a second and a core, decoded and cached: `python -m experiments.frame_rates INDEX... [--cache DIR]`."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, process_time
from typing import Annotated, NamedTuple

import numpy as np
import tyro

from experiments.errors import UserError, run_main
from fsg_jax._checks import check_integer, check_positive
from fsg_jax.endoscopy.frames.frame_cache import CachedSource
from fsg_jax.endoscopy.frames.source import FrameSource
from fsg_jax.endoscopy.index.schema import read_index


class FrameRate(NamedTuple):
    """Examples read by one thread, the time that passed and the processor time that was spent."""

    examples: int
    wall_s: float
    cpu_s: float

    @property
    def per_second(self) -> float:
        """Examples a second of wall time; less than `per_core` where other work or a slow disk holds it up."""
        return self.examples / self.wall_s

    @property
    def per_core(self) -> float:
        """Examples a second of processor time, over all threads of the process: what one core can do."""
        return self.examples / self.cpu_s


def measure_frame_rate(source: FrameSource | CachedSource, rows: Sequence[int], seconds: float) -> FrameRate:
    """Reads ``rows`` of ``source`` in turn, again from the first when they end, for at least ``seconds``.

    It first reads for a tenth of that time, uncounted, because first reads open files and load modules.

    Raises:
      ValueError: no rows, or ``seconds`` not above 0.
    """
    check_integer("number of rows", len(rows), 1)
    check_positive(seconds=seconds)
    for duration in (seconds / 10, seconds):
        examples, wall_start, cpu_start = 0, perf_counter(), process_time()
        for row in itertools.cycle(rows):
            source[row]
            examples += 1
            if perf_counter() - wall_start >= duration:
                break
    return FrameRate(examples, perf_counter() - wall_start, process_time() - cpu_start)


@dataclass(frozen=True)
class RateArgs:
    """Measures how fast examples are read, by one thread, in a fixed random order."""

    index: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Indexes of polyp boxes: files, or folders that hold index.parquet."""
    size: int = 384
    """Height and width of an example in pixels; a cache has its own."""
    keep_aspect: bool = False
    depth_root: Path | None = None
    """Folder of the depth maps; none are read without it."""
    cache: Path | None = None
    """A cache of the same index, measured too."""
    rows: int = 500
    """Examples to choose from."""
    seconds: float = 10.0
    """For each of the two."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command and prints a line for each source."""
    args = tyro.cli(RateArgs, args=argv, prog="python -m experiments.frame_rates")
    table, roots = read_index(*args.index)
    check_integer("--rows", args.rows, 1)
    rows = np.random.default_rng(0).permutation(len(table))[: args.rows].tolist()
    source = FrameSource(table, roots, args.size, keep_aspect=args.keep_aspect, depth_root=args.depth_root)
    sources: dict[str, FrameSource | CachedSource] = {f"decoded, {args.size} px": source}
    if args.cache is not None:
        cached = CachedSource(args.cache)
        if len(cached) != len(table):
            raise UserError(f"--cache: expected {len(table)} examples as in the index, found {len(cached)}")
        sources[f"cached, {cached.size} px"] = cached
    for name, each in sources.items():
        rate = measure_frame_rate(each, rows, args.seconds)
        print(f"{name}: {rate.per_core:.0f} examples/s a core, {rate.per_second:.0f} examples/s of wall time")


if __name__ == "__main__":
    run_main(main)
