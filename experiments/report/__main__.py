"""`python -m experiments.report DIR [--out OUT]`: write report.md and report.html from DIR/results.jsonl."""

import sys
from collections.abc import Sequence
from pathlib import Path

import tyro

from experiments.report.records import RecordsError
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
    try:
        paths = tyro.cli(_report, args=args, prog="python -m experiments.report")
    except (OSError, RecordsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path in paths:
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
