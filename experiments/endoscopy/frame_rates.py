"""`python -m experiments.frame_rates INDEX... [--cache DIR]`: examples a second and a core, decoded and cached."""

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Protocol

import numpy as np
import tyro

from experiments.errors import UserError, run_main
from fsg_jax.endoscopy.frames.frame_cache import CachedSource
from fsg_jax.endoscopy.frames.source import FrameSource
from fsg_jax.endoscopy.index.schema import read_index


class Source(Protocol):
    """Anything that is read by row: a `FrameSource`, a `CachedSource`."""

    def __getitem__(self, row: Any, /) -> Any:
        """The example of a row."""


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


def measure_frame_rate(source: Source, rows: Sequence[int], seconds: float) -> FrameRate:
    """Reads ``rows`` of ``source`` in turn, again from the first when they end, for at least ``seconds``.

    A tenth of the time more goes before, uncounted: first reads open files and load modules.

    Raises:
      ValueError: no rows, or ``seconds`` not above 0.
    """
    if not len(rows) or seconds <= 0:
        raise ValueError(f"found {len(rows)} rows and {seconds} seconds; expected one or more, and more than 0")
    _read_for(source, rows, seconds / 10)
    return _read_for(source, rows, seconds)


def _read_for(source: Source, rows: Sequence[int], seconds: float) -> FrameRate:
    wall, cpu = time.perf_counter(), time.process_time()
    examples = 0
    for row in itertools.cycle(rows):
        source[row]
        examples += 1
        if time.perf_counter() - wall >= seconds:
            break
    return FrameRate(examples, time.perf_counter() - wall, time.process_time() - cpu)


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
    if args.rows < 1 or args.seconds <= 0:
        raise UserError(f"--rows is {args.rows}, --seconds {args.seconds}; expected 1 or more, and more than 0")
    rows = np.random.default_rng(0).permutation(len(table))[: args.rows].tolist()
    source = FrameSource(table, roots, args.size, keep_aspect=args.keep_aspect, depth_root=args.depth_root)
    sources: dict[str, Source] = {f"decoded, {args.size} px": source}
    if args.cache is not None:
        cached = CachedSource(args.cache)
        if len(cached) != len(table):
            raise UserError(f"--cache {args.cache} has {len(cached)} examples; expected {len(table)}, as in the index")
        sources[f"cached, {cached.size} px"] = cached
    for name, each in sources.items():
        rate = measure_frame_rate(each, rows, args.seconds)
        print(f"{name}: {rate.per_core:.0f} examples/s a core, {rate.per_second:.0f} examples/s of wall time")


if __name__ == "__main__":
    run_main(main)
