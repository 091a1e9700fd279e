"""Files of a dataset from elsewhere: downloaded, compared with their digests, and read without trusting them."""

import gzip
import hashlib
import io
import os
import pickle
import tarfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from fsg_jax._files import LARGEST, check_file, is_system_file, read_bytes
from fsg_jax.data.extras import import_extra

MEMBERS = 1000
"""The most that an archive may have."""

_ALGORITHMS = {32: "md5", 40: "sha1", 64: "sha256"}


def download(url: str, folder: str | os.PathLike, *, known_hash: str | None, progress: bool = True) -> Path:
    """Downloads a file into ``folder``, unless it is there with the right digest; needs the ``data`` extra.

    The file appears under its name only when it is complete and its digest is right.

    Args:
      url: its last part names the file.
      folder: created if missing.
      known_hash: ``"md5:<hex>"``, ``"sha256:<hex>"``; None to take the file as it comes.
      progress: show a progress bar on standard error.

    Returns:
      The path of the file.

    Raises:
      ValueError: the downloaded file has another digest.
      OSError: the server cannot be reached or refuses.
      ImportError: pooch or tqdm is not installed.
    """
    pooch = import_extra("pooch", "data")
    if progress:
        import_extra("tqdm", "data")
    return Path(pooch.retrieve(url, known_hash, PurePosixPath(url).name, folder, progressbar=progress))


def check_digest(path: Path, digest: str, limit: int = 2**63) -> None:
    """Compares a file with its digest.

    Args:
      path: the file.
      digest: ``"md5:<hex>"``, ``"sha1:<hex>"`` or ``"sha256:<hex>"``; without the prefix the length decides.
      limit: the most bytes that the file may have.

    Raises:
      FileNotFoundError: no such file.
      ValueError: the file differs, is no regular file or too large, or ``digest`` is not one.
    """
    algorithm, _, expected = digest.lower().rpartition(":")
    algorithm = algorithm or _ALGORITHMS.get(len(expected), "")
    if algorithm not in _ALGORITHMS.values() or set(expected) - set("0123456789abcdef"):
        raise ValueError(f"digest: expected 'md5:', 'sha1:' or 'sha256:' and hexadecimal digits, found {digest!r}")
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    check_file(path, limit)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, algorithm).hexdigest()
    if found != expected:
        raise ValueError(
            f"{path}: expected {algorithm} {expected}, found {found}; the file is damaged or is another version "
            "(checksum=False skips this test)"
        )


def read_files(path: Path, names: Sequence[str], folder: str) -> dict[str, bytes]:
    """Reads the files ``names`` of the folder ``path``, or of an archive of ``folder``, see `read_archive`.

    Raises:
      FileNotFoundError: a file is missing; it is named.
      ValueError: a file is no regular file, or too large.
    """
    if not path.is_dir():
        return read_archive(path, names, folder)
    for name in names:
        if not (path / name).exists():
            raise FileNotFoundError(f"{path / name}: no such file; expected {', '.join(names)} in {path}")
    return {name: read_bytes(path / name) for name in names}


def read_archive(path: Path, names: Sequence[str], folder: str) -> dict[str, bytes]:
    """Reads files of a ``.tar.gz`` into memory; nothing is written to disk.

    The archive is read to its end, where its checksum is compared. What an operating system added is passed over.

    Args:
      path: the archive.
      names: files wanted, relative to ``folder``.
      folder: the one top folder that every member must lie in.

    Raises:
      FileNotFoundError: no such archive.
      ValueError: it is cut short, damaged or too large, lacks a file or has one twice, or has a member outside
        ``folder``, a link or a sparse file.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; expected a .tar.gz archive of {folder}/")
    check_file(path)
    wanted = {f"{folder}/{name}": name for name in names}
    members: list[tarfile.TarInfo] = []
    contents = {}
    try:
        with _Unpacked(path) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            for member in archive:
                members.append(member)
                if member.size < 0 or len(members) > MEMBERS:
                    raise tarfile.ReadError(f"a negative size, or more than {MEMBERS} members")
                name = wanted.get(_plain(member))
                if name and member.isfile() and not member.issparse() and (file := archive.extractfile(member)):
                    contents[name] = file.read()
            stream.seek(archive.offset)  # the end, or a header that cannot be read, which tarfile takes for the end
            while rest := stream.read(2**20):
                if rest.strip(b"\0"):
                    raise tarfile.ReadError("a damaged header, or bytes after the end")
    except Exception as error:  # a damaged archive can raise nearly anything
        raise ValueError(f"{path}: expected a whole .tar.gz archive, found {error}: cut short or damaged?") from error
    _check_members(path, members, folder)
    missing = [name for name in names if name not in contents]
    if missing:
        raise ValueError(f"{path}: expected {', '.join(missing)} in {folder}/, found no such file: cut short?")
    return {name: contents[name] for name in names}


class _Unpacked(gzip.GzipFile):
    """What is in a .gz, of which no more than a limit is read, whatever size a header claims."""

    def read(self, size: int | None = -1) -> bytes:
        self._check(self.tell(), -1 if size is None else size)
        return super().read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._check(0, offset)
        return super().seek(offset, whence)

    def _check(self, start: int, size: int) -> None:
        if not 0 <= size <= 2 * LARGEST - start:
            raise OSError(f"more than the {2 * LARGEST} bytes that are unpacked at most")


def _plain(member: tarfile.TarInfo) -> str:
    return str(PurePosixPath(member.name))


def _check_members(path: Path, members: Sequence[tarfile.TarInfo], folder: str) -> None:
    seen: set[str] = set()
    for member in members:
        name = PurePosixPath(member.name)
        if ".." not in name.parts and any(map(is_system_file, name.parts)):
            continue
        if name.is_absolute() or ".." in name.parts or name.parts[:1] != (folder,) or "\\" in member.name:
            raise ValueError(f"{path}: expected only members inside {folder!r}, found {member.name!r}")
        if not (member.isfile() or member.isdir()) or member.issparse():
            found = f"{member.name!r}, a link or a device, or sparse"
            raise ValueError(f"{path}: expected only files and folders, found {found}")
        if member.isfile() and _plain(member) in seen:
            raise ValueError(f"{path}: expected every file once, found {member.name!r} twice")
        seen.add(_plain(member))


class _ArrayUnpickler(pickle.Unpickler):
    """Resolves the names that a pickled NumPy array needs, and no other."""

    def find_class(self, module: str, name: str) -> Any:
        # The functions are new for every call, because a pickle can set attributes on them. An array is made empty, of
        # whatever shape it is to be, and gets shape and content together.
        known = {
            ("numpy.core.multiarray", "_reconstruct"): lambda kind, shape, dtype: np.empty(0, np.uint8),
            ("numpy._core.multiarray", "_reconstruct"): lambda kind, shape, dtype: np.empty(0, np.uint8),
            ("numpy", "ndarray"): lambda: None,  # the `kind` above
            # Python 2 stored align and copy as 0 and 1, which NumPy deprecates.
            ("numpy", "dtype"): lambda name, align=0, copy=0: np.dtype(name, align=bool(align), copy=bool(copy)),
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"a reference to {module}.{name}")
        return known[module, name]


def load_pickle(data: bytes, name: str) -> Any:
    """Unpickles plain containers, strings, numbers and NumPy arrays; anything else is refused, not run.

    Strings of Python 2 are decoded as latin-1, which keeps every byte.

    Args:
      data: the pickle.
      name: the file it comes from, for errors.

    Raises:
      ValueError: the pickle is cut short, damaged, followed by other bytes, or refers to any other class or function.
    """
    try:
        stream = io.BytesIO(data)
        value = _ArrayUnpickler(stream, encoding="latin1").load()
        if stream.read(1):
            raise pickle.UnpicklingError("bytes after its end")
        return value
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise ValueError(f"{name}: expected a pickle of only arrays, strings and numbers, found {error}") from error
