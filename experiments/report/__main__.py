"""`python -m experiments.report DIR [--out OUT]`: writes report.md and report.html from DIR/results.jsonl."""

from collections.abc import Sequence

import tyro

from experiments.errors import run_main
from experiments.report.pages import write_report


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command and prints the paths of the pages."""
    for path in tyro.cli(write_report, args=args, prog="python -m experiments.report"):
        print(path)


if __name__ == "__main__":
    run_main(main)
