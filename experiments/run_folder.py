"""The folder of one run: claimed by one process, tied to one configuration, never half-written."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from experiments.config import flatten
from experiments.errors import BusyError, UserError

CONFIG, RESULT, LOCK, TEMPORARY = "config.json", "result.json", "lock", ".tmp"


class RunFolder:
    """Claims `path` for one run; a context manager that lets go of it.

    Raises:
      UserError: the folder holds another run, or this one and `resume` is False; it is in use by another process; it
        cannot be written.
    """

    def __init__(self, path: Path, config: dict[str, Any], *, resume: bool) -> None:
        self.path = path
        with writing_to(path):
            path.mkdir(parents=True, exist_ok=True)
            holds(path / CONFIG, config)  # before anything is written into a folder that is not ours
            self._lock = lock(path / LOCK)
            try:
                self._enter(config, resume)
            except BaseException:
                self.close()
                raise

    def _enter(self, config: dict[str, Any], resume: bool) -> None:
        if not holds(self.path / CONFIG, config):
            write_json(self.path / CONFIG, config)
        elif not resume:
            raise UserError(f"{self.path} already holds this run; add --resume to continue it, or choose another --out")

    @property
    def result(self) -> dict[str, Any] | None:
        """The record of the finished run, or None."""
        file = self.path / RESULT
        return read_json(file) if file.exists() else None

    def finish(self, record: dict[str, Any]) -> None:
        """Writes the record."""
        write_json(self.path / RESULT, record)

    def close(self) -> None:
        """Lets other processes in."""
        self._lock.close()

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class FollowerFolder:
    """The folder of a run for the processes that do not write it, all but the first of several."""

    result: dict[str, Any] | None = None

    def __init__(self, path: Path) -> None:
        self.path = path

    def finish(self, record: dict[str, Any]) -> None:
        """Process 0 writes it."""

    def close(self) -> None:
        """Nothing is held."""


@contextmanager
def writing_to(path: Path) -> Iterator[None]:
    """An OSError inside becomes a UserError that names the output folder."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write to the output folder {path}: {error}") from error


EXECUTION = {
    *("data.workers", "data.threads", "data.resident", "data.cache"),
    *("train.dispatch", "train.fsdp", "train.log_every", "train.checkpoint_every", "train.keep_last"),
}
"""Settings of how a run is carried out, not of what it computes; they may differ when it is resumed."""


def holds(file: Path, config: dict[str, Any]) -> bool:
    """Whether `file`, which is written first into its folder, is there with this configuration.

    Raises:
      UserError: it has another one, whose differing keys are named, or the folder holds other files only.
    """
    if not file.exists():
        if others := sorted(p.name for p in file.parent.iterdir() if p.name != LOCK and p.suffix != TEMPORARY):
            raise UserError(f"{file.parent} is not empty and has no {file.name} of ours: found {others[:5]}")
        return False
    old, new = flatten(read_json(file)), flatten(json.loads(json.dumps(config)))
    keys = [key for key in sorted(old | new) if key not in EXECUTION and old.get(key) != new.get(key)]
    differ = [f"{key}: {old.get(key)!r} there, {new.get(key)!r} now" for key in keys]
    if differ:
        raise UserError(f"{file.parent} holds another run; the configurations differ in " + "; ".join(differ))
    return True


def claim_folder(file: Path, config: dict[str, Any], what: str, *, resume: bool) -> None:
    """Makes the folder of `file` that of `config`, which `file` holds.

    Raises:
      UserError: it holds something else, or this and `resume` is False; `what` says what it is.
    """
    with writing_to(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        if not holds(file, config):
            write_json(file, config)
        elif not resume:
            raise UserError(f"{file.parent} already holds this {what}; add --resume to continue it")


def read_json(path: Path) -> dict[str, Any]:
    """The content of a file written by `write_json`; UserError if it is damaged."""
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged or not of ours: {error}") from error


def write_json(path: Path, value: Any) -> None:
    """Writes a file whole or not at all."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        with temporary.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def lock(path: Path, *, wait: bool = False) -> IO[str]:
    """The file `path`, locked until it is closed or the process ends.

    Raises:
      BusyError: another process has it and `wait` is False.
    """
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        file.close()
        raise BusyError(f"{path.parent} is in use by another process") from None
    return file
