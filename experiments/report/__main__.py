"""`python -m experiments.report DIR [--out OUT]`: write report.md and report.html from DIR/results.jsonl."""

import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.report.command import run_report
from experiments.report.render import write_report


def _report(directory: Path, /, out: Path | None = None) -> tuple[Path, Path]:
    """Write report.md and report.html from the results.jsonl of a directory.

    Args:
        directory: Holds results.jsonl, one JSON record per run.
        out: Where the report goes; beside results.jsonl by default.
    """
    return write_report(directory, out)


def main(args: Sequence[str] | None = None) -> int:
    """Run the command; return 0, or 2 after one line on stderr when the input cannot be used."""
    return run_report(_report, "python -m experiments.report", args)


if __name__ == "__main__":
    sys.exit(main())
