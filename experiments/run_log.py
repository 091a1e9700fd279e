"""The log of one run: JSONL of every step and every epoch, and TensorBoard; exact across kill and resume."""

import json
import os
import warnings
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from experiments.config import flatten
from experiments.errors import UserError
from experiments.tensorboard import Scalars
from fsg_jax._files import append, check_file, set_aside, to_disk, write_text

STEPS, EPOCHS = "steps.jsonl", "epochs.jsonl"


class RunLog:
    """Appends rows. On opening the files are made what they were when the checkpoint that is resumed was saved.

    What the result of the run depends on, the rows of the epochs and those of the steps since, comes from the
    checkpoint. A file that does not begin with what was written into it is set aside, with a warning. Rows survive the
    end of the process at once; that of the machine from the next `sync` on, which comes before every checkpoint.

    Args:
      folder: of the run.
      step: of the checkpoint that is resumed, or 0.
      means: metrics of steps; the row of an epoch gets their means.
      saved: what `position` gave for that checkpoint; None at step 0.
      write: False keeps the rows in memory only, for all but one of several processes.

    Raises:
      UserError: there is no `saved` for a later step, as in checkpoints of before 2026-11-27.
    """

    def __init__(
        self,
        folder: Path,
        step: int,
        means: tuple[str, ...],
        saved: dict[str, Any] | None = None,
        *,
        write: bool = True,
    ) -> None:
        if step and saved is None:
            raise UserError(
                f"{folder}: expected the log in the checkpoint of step {step}, found one of an older version"
            )
        saved = saved or {"epochs": [], "steps": [], "bytes": 0, "crc32": 0}
        self.folder, self._means, self._write = folder, means, write
        self.epochs: list[dict[str, Any]] = saved["epochs"]
        self._this_epoch: list[dict[str, Any]] = saved["steps"]
        self._bytes, self._crc32 = saved["bytes"], saved["crc32"]
        self._writer = None
        if write:
            rows = _dump(self.epochs)
            _cut(folder / EPOCHS, len(rows), zlib.crc32(rows), rows)
            if not _cut(folder / STEPS, self._bytes, self._crc32, rows := _dump(self._this_epoch)):
                self._bytes, self._crc32 = len(rows), zlib.crc32(rows)
            self._writer = Scalars(folder / "tensorboard", step + 1)

    def position(self) -> dict[str, Any]:
        """What a checkpoint keeps of the log, JSON-able; rows that are added later are not in it."""
        rows = {"epochs": list(self.epochs), "steps": list(self._this_epoch)}
        return rows | {"bytes": self._bytes, "crc32": self._crc32}

    def sync(self) -> None:
        """Returns when the rows are on the disk: to be called before a checkpoint that has their `position`."""
        if self._write:
            to_disk(self.folder / STEPS)
            to_disk(self.folder / EPOCHS)

    def add_steps(self, rows: Iterable[dict[str, Any]]) -> None:
        """Rows of single steps, in order."""
        rows = list(rows)
        self._this_epoch += rows
        content = _dump(rows)
        self._bytes, self._crc32 = self._bytes + len(content), zlib.crc32(content, self._crc32)
        if self._write:
            append(self.folder / STEPS, content, durable=False)

    def add_epoch(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row of an epoch, completed with the means of its steps; returned."""
        n = max(len(self._this_epoch), 1)
        means = {f"train_{k}": sum(r[k] for r in self._this_epoch) / n for k in self._means}
        row = row | means
        self._this_epoch = []
        self.epochs.append(row)
        if self._writer is not None:
            append(self.folder / EPOCHS, _dump([row]), durable=False)
            self._writer.add({name.replace(".", "/"): value for name, value in flatten(row).items()}, row["step"])
        return row

    def close(self) -> None:
        """Closes the files."""
        if self._writer is not None:
            self._writer.close()


def _dump(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _cut(path: Path, size: int, crc32: int, instead: bytes) -> bool:
    """Ends the file after `size` bytes; one whose bytes up to there are others is set aside and begins with `instead`.

    Returns:
      Whether it is the old file.
    """
    sound = _begins(path, size, crc32)
    if sound and path.exists():
        os.truncate(path, size)
    elif not sound:
        aside = set_aside(path) if path.exists() else "nothing"
        warnings.warn(
            f"{path} is damaged (expected its first {size} bytes as they were written); it is set aside as {aside} and "
            "begins anew with what the checkpoint holds; the result does not depend on it",
            stacklevel=3,
        )
        write_text(path, instead.decode())
    return sound


def _begins(path: Path, size: int, crc32: int) -> bool:
    """Whether the first `size` bytes of the file have that checksum."""
    try:
        if check_file(path, limit=2**63) < size:
            return False
        found = 0
        with path.open("rb") as file:
            for start in range(0, size, 2**20):
                found = zlib.crc32(file.read(min(2**20, size - start)), found)
    except FileNotFoundError:
        return size == 0
    except ValueError:
        return False
    return found == crc32
