"""Draws what a network would be given: `python -m experiments.panels INDEX... --out DIR --data.input-size 384 ...`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from experiments.endoscopy.input_panels import example_rows, write_panels
from experiments.endoscopy.polyp_config import PolypData, Stream
from experiments.errors import run_main
from experiments.run_folder import writing_to
from fsg_jax.endoscopy.frames.source import FrameSource
from fsg_jax.endoscopy.index.sampling import rows_by_polyp
from fsg_jax.endoscopy.index.schema import read_index


@dataclass(frozen=True)
class Args:
    """Pictures of frames with their box and of each stream."""

    index: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Index folders."""
    out: Path
    """Folder of ``panels/*.png``."""
    streams: tuple[Stream, ...] = ("rgb", "mask")
    count: int = 8
    """Polyps, evenly spaced in natural order; the middle frame of each."""
    data: PolypData = field(default_factory=PolypData)
    """Sizes and geometry."""


def main() -> None:
    """Command line."""
    args = tyro.cli(Args, prog="python -m experiments.panels")
    table, roots = read_index(*args.index)
    config = args.data
    root = config.depth_root if "depth" in args.streams else None
    source = FrameSource(table, roots, config.frame_size, keep_aspect=config.keep_aspect, depth_root=root)
    rows = example_rows(rows_by_polyp(table), args.count)
    with writing_to(args.out):
        files = write_panels(source, table, rows, config, args.streams, args.out)
    print(f"{len(files)} panels in {args.out / 'panels'}")


if __name__ == "__main__":
    run_main(main)
