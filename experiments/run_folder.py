"""The folder of one run: claimed by one process, tied to one configuration, never half-written."""

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from experiments.config import flatten
from experiments.errors import UserError
from fsg_jax._files import TEMPORARY, lock, read_json, write_json

CONFIG, RESULT, LOCK = "config.json", "result.json", "lock"


class RunFolder(AbstractContextManager["RunFolder"]):
    """Claims `path` for one run until it is closed; a context manager.

    Attributes:
      path: the folder.
      result: the record of the run if it is finished, or None.

    Raises:
      UserError: the folder holds another run, or this one and `resume` is False, or it cannot be written.
      BusyError: another process uses the folder.
    """

    def __init__(self, path: Path, config: dict[str, Any], *, resume: bool) -> None:
        self.path = path
        with writing_to(path):
            path.mkdir(parents=True, exist_ok=True)
            holds(path / CONFIG, config)  # before the lock is written into a folder of something else
            self._lock = lock(path / LOCK)
        try:
            claim_folder(path / CONFIG, config, "run", resume=resume)
            self.result = read_json(path / RESULT) if (path / RESULT).exists() else None
        except BaseException:
            self.close()
            raise

    def finish(self, record: dict[str, Any]) -> None:
        """Writes the record."""
        write_json(self.path / RESULT, record)

    def close(self) -> None:
        """Lets other processes in."""
        self._lock.close()

    def __exit__(self, *_: object) -> None:
        self.close()


class FollowerFolder(RunFolder):
    """The folder of a run for the processes that do not write it, all but the first of several."""

    def __init__(self, path: Path) -> None:
        self.path, self.result = path, None

    def finish(self, record: dict[str, Any]) -> None:
        """Process 0 writes it."""

    def close(self) -> None:
        """Nothing is locked."""


@contextmanager
def writing_to(path: Path) -> Iterator[None]:
    """Turns an OSError inside into a UserError that names the output folder."""
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
      ValueError: it is damaged.
    """
    if not file.exists():
        if others := sorted(p.name for p in file.parent.iterdir() if p.name != LOCK and p.suffix != TEMPORARY):
            raise UserError(f"{file.parent}: expected an empty folder or {file.name} in it, found {others[:5]}")
        return False
    old, new = flatten(read_json(file)), flatten(json.loads(json.dumps(config)))
    keys = [key for key in sorted(old | new) if key not in EXECUTION and old.get(key) != new.get(key)]
    if differ := [f"{key}: {old.get(key)!r} there, {new.get(key)!r} now" for key in keys]:
        raise UserError(f"{file.parent} holds another run; the configurations differ in " + "; ".join(differ))
    return True


def claim_folder(file: Path, config: dict[str, Any], what: str, *, resume: bool) -> None:
    """Ties the folder of `file` to `config`, which `file` then holds.

    Raises:
      UserError: the folder holds something else, or this and `resume` is False; `what` says what it is.
    """
    with writing_to(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        if not holds(file, config):
            write_json(file, config)
        elif not resume:
            raise UserError(
                f"{file.parent} already holds this {what}; add --resume to continue it, or choose another --out"
            )
