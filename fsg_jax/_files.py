"""Files that are written whole or not at all, and read only if they are what they should be; locks of processes."""

import glob
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

TEMPORARY = ".tmp"
"""Suffix of what is being written; a killed process leaves such a file behind, and nobody reads it."""

CORRUPT = ".corrupt"
"""Suffix of what is set aside because it is damaged."""

LARGEST = 2**28
"""Bytes of a file that is read at once, 256 MiB; a larger one is none of ours."""


_SYSTEM_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "$recycle.bin", "system volume information"}


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


def local(path: str | os.PathLike) -> Path:
    """The path, with ``~`` expanded.

    Raises:
      ValueError: it is a URL, such as ``gs://bucket/x``, or there is no such user.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text := os.fspath(path)):
        raise ValueError(f"{text}: expected a path of a local file system, found a URL")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{text}: expected a path, found a user without a home directory") from error


def is_system_file(name: str) -> bool:
    """Whether an operating system leaves files or folders of this name among others: ``._a.jpg``, ``Thumbs.db``."""
    return name.startswith(".") or name.lower() in _SYSTEM_FILES


def check_file(path: str | os.PathLike, limit: int = LARGEST) -> int:
    """The size of a file in bytes; the file is not opened, so that a pipe does not block.

    Raises:
      ValueError: it is no regular file, or has more bytes than `limit`.
    """
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{path}: expected a regular file, found a folder, a pipe or a device")
    if found.st_size > limit:
        raise ValueError(f"{path}: expected at most {limit} bytes, found {found.st_size}")
    return found.st_size


def read_bytes(path: Path, limit: int = LARGEST) -> bytes:
    """The content of a file; raises as `check_file` does."""
    check_file(path, limit)
    return path.read_bytes()


def read_text(path: Path, limit: int = LARGEST) -> str:
    """The text of a file; raises as `check_file` does, and ValueError unless it is UTF-8."""
    try:
        return read_bytes(path, limit).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged: expected UTF-8, found {error}") from error


def parse_json(text: str | bytes, name: object) -> Any:
    """The value of a JSON text.

    Raises:
      ValueError: it is none, it is too deep, a key occurs twice in one object, or a string is no Unicode; `name`, and
        what was found.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique)
        if "\\ud" in (text if isinstance(text, str) else text.decode()).lower():  # perhaps half of a pair
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is damaged: expected JSON, found {error}") from error
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} twice")
    return found


def read_json(path: Path, limit: int = LARGEST) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
      ValueError: the file holds something else, see `parse_json` and `check_file`; it is named.
    """
    value = parse_json(read_text(path, limit), path)
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged: expected a JSON object, found {type(value).__name__}")
    return value


def digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits; raises as `check_file` does, at any size."""
    check_file(path, limit=2**63)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_digest(value: Any) -> str:
    """The SHA-256 of a value as JSON keeps it, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(json.loads(json.dumps(value)), sort_keys=True).encode()).hexdigest()


def append(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Appends to a file; it is on the disk when the call returns, or unless `durable` in the system's memory."""
    with path.open("ab") as file:
        file.write(content)
        file.flush()
        if durable:
            os.fsync(file.fileno())


def to_disk(path: Path) -> None:
    """Returns when all that was appended to a file is on the disk; nothing is done where there is none."""
    if path.exists():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def set_aside(path: Path) -> str:
    """Renames what is damaged to a new name beside it, ``NAME.corrupt``, ``NAME.corrupt.1`` and so on; the name."""
    others = len(list(path.parent.glob(f"{glob.escape(path.name)}{CORRUPT}*")))
    return path.rename(path.with_name(f"{path.name}{CORRUPT}" + f".{others}" * bool(others))).name


def lock(path: Path, *, wait: bool = False) -> IO[str]:
    """Opens the file `path`, locked until it is closed or the process ends.

    Raises:
      BusyError: another process holds it and `wait` is False.
      ValueError: there is a pipe or a folder of that name.
    """
    import fcntl  # POSIX only; everything else here runs anywhere

    if path.exists():
        check_file(path)
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        file.close()
        raise BusyError(f"{path.parent} is in use by another process") from None
    return file
