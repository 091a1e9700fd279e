"""The measurements of a benchmark: one JSON object a line, written at once, never measured twice."""

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from experiments.bench.settings import Settings
from experiments.errors import UserError
from experiments.run_folder import holds, writing_to
from fsg_jax._files import write_json, write_text

CONFIG, ROWS = "bench.json", "bench.jsonl"

Row = dict[str, Any]


class Bench:
    """Settings and the rows measured so far, kept in ``out/bench.jsonl``.

    Args:
      settings: of all suites.
      out: the folder; made if it is not there.
      hardware: of this process; a folder holds the rows of one kind.
      resume: keep and skip the rows that are there.

    Raises:
      UserError: `out` holds another benchmark, this one and `resume` is False, or a damaged line.
    """

    def __init__(self, settings: Settings, out: Path, hardware: str, *, resume: bool = False) -> None:
        self.settings, self.out = settings, out
        config = {"settings": settings.describe(), "hardware": hardware}
        with writing_to(out):
            out.mkdir(parents=True, exist_ok=True)
            if not holds(out / CONFIG, config):
                write_json(out / CONFIG, config)
            elif not resume:
                raise UserError(f"{out} already holds this benchmark; add --resume to continue it")
            self.rows = read_rows(out / ROWS)
            # A line that was cut off is dropped here, so that the next one does not join it.
            write_text(out / ROWS, "".join(json.dumps(row) + "\n" for row in self.rows))

    def add(self, suite: str, case: str, side: str, **values: Any) -> None:
        """Writes one row and prints it."""
        row = {"suite": suite, "case": case, "side": side, **values}
        with writing_to(self.out), (self.out / ROWS).open("a") as file:
            file.write(json.dumps(row) + "\n")
        self.rows.append(row)
        print(f"{suite} | {case} | {side} | {_brief(values)}", flush=True)

    def missing(self, suite: str, case: str, sides: Collection[str]) -> list[str]:
        """The sides that have no row yet."""
        there = {row["side"] for row in self.of(suite, case)}
        return [side for side in sides if side not in there]

    def of(self, suite: str, case: str | None = None) -> Iterator[Row]:
        """The rows of a suite, or of one case of it."""
        return (row for row in self.rows if row["suite"] == suite and case in (None, row["case"]))


def read_rows(path: Path) -> list[Row]:
    """The rows of a file; none if it is not there. A last line that was cut off is left out.

    Raises:
      UserError: another line is no JSON object.
    """
    lines = path.read_text().split("\n") if path.exists() else []
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows += [dict(json.loads(line))] if line.strip() else []
        except (ValueError, TypeError) as error:
            if number < len(lines):
                raise UserError(f"{path}, line {number}: expected a JSON object; {error}") from error
    return rows


def _brief(values: dict[str, Any]) -> str:
    numbers = {k: v for k, v in values.items() if isinstance(v, int | float | str)}
    return ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in numbers.items())
