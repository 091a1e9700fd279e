"""The log of one run: JSONL of every step and every epoch, and TensorBoard; exact across kill and resume."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from experiments.config import flatten
from experiments.errors import UserError
from experiments.tensorboard import Scalars
from fsg_jax._files import append_lines, write_text

STEPS, EPOCHS = "steps.jsonl", "epochs.jsonl"


class RunLog:
    """Appends rows; on opening, rows later than `step` (written after the checkpoint that is resumed) are dropped.

    Args:
      folder: of the run.
      step: of the checkpoint that is resumed, or 0.
      means: metrics of steps; the row of an epoch gets their means.
      write: False keeps the rows in memory only, for all but one of several processes.
    """

    def __init__(self, folder: Path, step: int, means: tuple[str, ...], *, write: bool = True) -> None:
        self.folder, self._means, self._write = folder, means, write
        self.epochs = _truncate(folder / EPOCHS, step, write)
        self._this_epoch = [row for row in _truncate(folder / STEPS, step, write) if row["epoch"] > len(self.epochs)]
        self._writer = Scalars(folder / "tensorboard", step + 1) if write else None

    def add_steps(self, rows: Iterable[dict[str, Any]]) -> None:
        """Rows of single steps, in order."""
        rows = list(rows)
        self._this_epoch += rows
        if self._write:
            append_lines(self.folder / STEPS, _dump(rows))

    def add_epoch(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row of an epoch, completed with the means of its steps; returned."""
        n = max(len(self._this_epoch), 1)
        means = {f"train_{k}": sum(r[k] for r in self._this_epoch) / n for k in self._means}
        row = row | means
        self._this_epoch = []
        self.epochs.append(row)
        if self._writer is not None:
            append_lines(self.folder / EPOCHS, _dump([row]))
            self._writer.add({name.replace(".", "/"): value for name, value in flatten(row).items()}, row["step"])
        return row

    def close(self) -> None:
        """Closes the files."""
        if self._writer is not None:
            self._writer.close()


def _dump(rows: list[dict[str, Any]]) -> list[str]:
    return [json.dumps(row) for row in rows]


def _truncate(path: Path, step: int, write: bool) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    lines = path.read_text().splitlines()
    rows = [row for i, line in enumerate(lines, 1) if (row := _parse(line, f"{path}, line {i}", i == len(lines)))]
    rows = [row for row in rows if row["step"] <= step]
    if write and len(rows) < len(lines):
        write_text(path, "".join(f"{line}\n" for line in _dump(rows)))
    return rows


def _parse(line: str, where: str, last: bool) -> dict[str, Any] | None:
    """A row, or None for the last line of a process killed while writing it."""
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        if last:
            return None
        raise UserError(f"{where}: expected a JSON object, found {error}") from error
