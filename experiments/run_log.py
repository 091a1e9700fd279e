"""The log of one run: JSONL of every step and every epoch, and TensorBoard; exact across kill and resume."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from experiments.config import flatten
from experiments.run_folder import write_text
from experiments.tensorboard import Scalars

STEPS, EPOCHS = "steps.jsonl", "epochs.jsonl"


class RunLog:
    """Appends rows; on opening, rows later than `step` (written after the checkpoint that is resumed) are dropped."""

    def __init__(self, folder: Path, step: int) -> None:
        self.folder = folder
        self.epochs = _truncate(folder / EPOCHS, step)
        self._this_epoch = [row for row in _truncate(folder / STEPS, step) if row["epoch"] > len(self.epochs)]
        self._writer = Scalars(folder / "tensorboard", step + 1)

    def add_steps(self, rows: Iterable[dict[str, Any]]) -> None:
        """Rows of single steps, in order."""
        rows = list(rows)
        self._this_epoch += rows
        _append(self.folder / STEPS, rows)

    def add_epoch(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row of an epoch, completed with the means of its steps; returned."""
        n = max(len(self._this_epoch), 1)
        means = {f"train_{k}": sum(r[k] for r in self._this_epoch) / n for k in ("loss", "accuracy")}
        row = row | means
        self._this_epoch = []
        self.epochs.append(row)
        _append(self.folder / EPOCHS, [row])
        self._writer.add({name.replace(".", "/"): value for name, value in flatten(row).items()}, row["step"])
        return row

    def close(self) -> None:
        """Closes the files."""
        self._writer.close()


def _append(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
        file.flush()
        os.fsync(file.fileno())


def _truncate(path: Path, step: int) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    lines = path.read_text().splitlines()
    rows = [row for row in map(_parse, lines) if row is not None and row["step"] <= step]
    if len(rows) < len(lines):
        write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    return rows


def _parse(line: str) -> dict[str, Any] | None:
    """A row, or None for the last line of a process killed while writing it."""
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None
