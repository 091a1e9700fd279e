"""`python -m experiments.report DIR [DIR ...] [--out OUT]`: report.md and report.html from the results.jsonl there."""

from collections.abc import Sequence
from pathlib import Path

import tyro

from experiments.errors import run_main
from experiments.report.pages import write_report
from fsg_jax._checks import expect


def report(dirs: tyro.conf.Positional[tuple[Path, ...]], /, out: Path | None = None, resamples: int = 1000) -> None:
    """Writes report.md and report.html of the runs of an ablation, and prints their paths.

    Args:
        dirs: A folder that holds results.jsonl, one JSON record per run, and the predictions it names, if any. Or
            several of one experiment: other seeds, arms or folds on equal hardware, whose records are joined in OUT.
        out: Where the report goes; made if missing; beside results.jsonl by default, needed for several folders.
        resamples: Of the bootstrap over polyps, 1 or more.
    """
    expect(dirs, "DIRS", "one folder or more", "none")
    for path in write_report(*dirs, out=out, resamples=resamples):
        print(path)


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command."""
    tyro.cli(report, args=args, prog="python -m experiments.report")


if __name__ == "__main__":
    run_main(main)
