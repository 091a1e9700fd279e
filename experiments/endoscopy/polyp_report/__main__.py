"""`python -m experiments.polyp_report DIR [--out OUT]`: write report.md and report.html from DIR/results.jsonl."""

import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.endoscopy.polyp_report.render import write_report
from experiments.report.command import run_report


def _report(directory: Path, /, out: Path | None = None, resamples: int = 1000) -> tuple[Path, Path]:
    """Write report.md and report.html from the results.jsonl of a directory.

    Args:
        directory: Holds results.jsonl, one JSON record per run, and the predictions it names.
        out: Where the report goes; beside results.jsonl by default.
        resamples: Of the bootstrap over polyps.
    """
    return write_report(directory, out, resamples=resamples)


def main(args: Sequence[str] | None = None) -> int:
    """Run the command; return 0, or 2 after one line on stderr when the input cannot be used."""
    return run_report(_report, "python -m experiments.polyp_report", args)


if __name__ == "__main__":
    sys.exit(main())
