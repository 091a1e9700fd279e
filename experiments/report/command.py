"""The command line that the reports share."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import tyro

from experiments.report.records import RecordsError


def run_report(report: Callable[..., Sequence[Path]], prog: str, args: Sequence[str] | None) -> int:
    """Calls `report` with the arguments of the command line and prints the paths that it returns.

    Returns 0, or 2 after one line on stderr when the input cannot be used.
    """
    try:
        paths = tyro.cli(report, args=args, prog=prog)
    except (OSError, RecordsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path in paths:
        print(path)
    return 0
