"""The folder of one run: claimed by one process, tied to one configuration, never half-written."""

import fcntl
import json
import os
from pathlib import Path
from typing import IO, Any

from experiments.config import flatten
from experiments.errors import UserError

CONFIG, RESULT, LOCK = "config.json", "result.json", "lock"


class RunFolder:
    """Claims `path` for one run; a context manager that lets go of it.

    Raises:
      UserError: the folder holds another run, or this one and `resume` is False; it is in use by another process; it
        cannot be written.
    """

    def __init__(self, path: Path, config: dict[str, Any], *, resume: bool) -> None:
        self.path = path
        self._lock = _claim(path)
        try:
            self._check(config, resume)
        except BaseException:
            self.close()
            raise

    def _check(self, config: dict[str, Any], resume: bool) -> None:
        file = self.path / CONFIG
        if file.exists():
            check_same_config(file, config)
            if not resume:
                raise UserError(
                    f"{self.path} already holds this run; add --resume to continue it, or choose another --out"
                )
        elif others := sorted(p.name for p in self.path.iterdir() if p.name != LOCK):
            raise UserError(f"{self.path} is not empty and holds no run of ours: found {others[:5]}")
        else:
            write_json(file, config)

    @property
    def result(self) -> dict[str, Any] | None:
        """The record of the finished run, or None."""
        file = self.path / RESULT
        return json.loads(file.read_text()) if file.exists() else None

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


def check_same_config(file: Path, config: dict[str, Any]) -> None:
    """Raises UserError that names every key in which the configuration of `file` differs."""
    old, new = flatten(json.loads(file.read_text())), flatten(json.loads(json.dumps(config)))
    differ = [f"{k}: {old.get(k)!r} there, {new.get(k)!r} now" for k in sorted(old | new) if old.get(k) != new.get(k)]
    if differ:
        raise UserError(f"{file.parent} holds another run; the configurations differ in " + "; ".join(differ))


def write_json(path: Path, value: Any) -> None:
    """Writes a file whole or not at all."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _claim(path: Path) -> IO[str]:
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / LOCK).open("w")
    except OSError as error:
        raise UserError(f"cannot write to the output folder {path}: {error}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise BusyError(f"{path} is in use by another process") from None
    return lock


class BusyError(UserError):
    """Another process has the folder."""
