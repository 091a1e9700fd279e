"""The measurements of a benchmark: one JSON object a line, written at once, never measured twice; and their tables."""

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments.bench.settings import Settings
from experiments.errors import UserError
from experiments.run_folder import claim_folder, writing_to
from fsg_jax._files import append, parse_json, read_text, write_text

CONFIG, ROWS = "bench.json", "bench.jsonl"

Row = dict[str, Any]
Column = tuple[str, Callable[[Row], str]]


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
        claim_folder(out / CONFIG, {"settings": settings.describe(), "hardware": hardware}, "benchmark", resume=resume)
        self.rows = read_rows(out / ROWS)
        with writing_to(out):  # a line that was cut off is dropped, so that the next one does not join it
            write_text(out / ROWS, "".join(json.dumps(row) + "\n" for row in self.rows))

    def add(self, suite: str, case: str, side: str, **values: Any) -> None:
        """Writes one row and prints it."""
        row = {"suite": suite, "case": case, "side": side, **values}
        with writing_to(self.out):
            append(self.out / ROWS, f"{json.dumps(row)}\n".encode())
        self.rows.append(row)
        brief = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in values.items() if v is not None}
        print(f"{suite} | {case} | {side} | {', '.join(f'{k} {v}' for k, v in brief.items())}", flush=True)

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
      UserError: another line is no JSON object with a suite, a case and a side.
    """
    lines = read_text(path).split("\n") if path.exists() else []
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line, path)
            if not (isinstance(row, dict) and row.keys() >= {"suite", "case", "side"}):
                raise ValueError
            rows.append(row)
        except ValueError as error:
            if number < len(lines):
                raise UserError(f"{path}, line {number}: expected a JSON object, found {line[:80]!r}") from error
    return rows


def number(form: str, scale: float, *keys: str) -> Callable[[Row], str]:
    """A cell of one number, or of a median with its quartiles under three keys; empty where there is none."""

    def cell(row: Row) -> str:
        if row.get(keys[0]) is None:
            return ""
        middle, *ends = (form.format(row[key] * scale) for key in keys)
        return f"{middle} ({' to '.join(ends)})" if ends else middle

    return cell


def prefixed(key: str, unit: str = "") -> Callable[[Row], str]:
    """A cell of a large number with a decimal prefix."""

    def cell(row: Row) -> str:
        value = row.get(key)
        if value is None:
            return ""
        units = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
        scale, letter = next(((s, p) for s, p in units if value >= s), (1.0, ""))
        return f"{value / scale:.3g} {letter}{unit}".strip()

    return cell


def table(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """A Markdown table of case, side and the columns that have anything in them."""
    used = [(title, cell) for title, cell in columns if any(cell(row) for row in rows)]
    lines = [["case", "side", *(title for title, _ in used)], ["---"] * (2 + len(used))]
    lines += [[row["case"], row["side"], *(cell(row) for _, cell in used)] for row in rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines)
