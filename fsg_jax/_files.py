"""Files that are written whole or not at all, and locks between processes."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

TEMPORARY = ".tmp"
"""Suffix of what is being written; a killed process leaves such a file behind, and nobody reads it."""


class BusyError(RuntimeError):
    """Another process holds the lock."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path`; what is written there replaces `path` when the block ends.

    A file is on the disk (fsync) before it gets its name; a folder is renamed as it is. After an error inside the
    block `path` is as it was, and the temporary file or folder is removed.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        yield temporary
        if temporary.is_file():
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file whole or not at all."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
      ValueError: the file holds something else; it is named.
    """
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged: expected a JSON object, found {error}") from error


def append_lines(path: Path, lines: list[str]) -> None:
    """Appends whole lines; they are on the disk when the call returns."""
    with path.open("a") as file:
        file.writelines(f"{line}\n" for line in lines)
        file.flush()
        os.fsync(file.fileno())


def lock(path: Path, *, wait: bool = False) -> IO[str]:
    """Opens the file `path`, locked until it is closed or the process ends.

    Raises:
      BusyError: another process holds it and `wait` is False.
    """
    import fcntl  # POSIX only; everything else here runs anywhere

    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        file.close()
        raise BusyError(f"{path.parent} is in use by another process") from None
    return file
