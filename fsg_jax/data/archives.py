"""Files of a dataset from elsewhere: downloaded, compared with their digests, and read without trusting them."""

import hashlib
import io
import os
import pickle
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from fsg_jax.data.extras import import_extra

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


def check_digest(path: Path, digest: str) -> None:
    """Compares a file with its digest.

    Args:
      path: the file.
      digest: ``"md5:<hex>"``, ``"sha1:<hex>"`` or ``"sha256:<hex>"``; without the prefix the length decides.

    Raises:
      FileNotFoundError: no such file.
      ValueError: the file differs, or ``digest`` is not one.
    """
    algorithm, _, expected = digest.lower().rpartition(":")
    algorithm = algorithm or _ALGORITHMS.get(len(expected), "")
    if algorithm not in _ALGORITHMS.values() or set(expected) - set("0123456789abcdef"):
        raise ValueError(f"digest: expected 'md5:', 'sha1:' or 'sha256:' and hexadecimal digits, found {digest!r}")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
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
    """
    if not path.is_dir():
        return read_archive(path, names, folder)
    for name in names:
        if not (path / name).is_file():
            raise FileNotFoundError(f"{path / name}: no such file; expected {', '.join(names)} in {path}")
    return {name: (path / name).read_bytes() for name in names}


def read_archive(path: Path, names: Sequence[str], folder: str) -> dict[str, bytes]:
    """Reads files of a ``.tar.gz`` into memory; nothing is written to disk.

    Args:
      path: the archive.
      names: files wanted, relative to ``folder``.
      folder: the one top folder that every member must lie in.

    Raises:
      FileNotFoundError: no such archive.
      ValueError: it is cut short or damaged, lacks a file, or has a member outside ``folder`` or a link.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a .tar.gz archive of {folder}/")
    wanted = {f"{folder}/{name}": name for name in names}
    contents = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                _check_member(path, member, folder)
                name = wanted.get(str(PurePosixPath(member.name)))
                if name and (file := archive.extractfile(member)):
                    contents[name] = file.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path}: expected a whole .tar.gz archive, found {error}: cut short or damaged?") from error
    missing = [name for name in names if name not in contents]
    if missing:
        raise ValueError(f"{path}: expected {', '.join(missing)} in {folder}/, found no such file: cut short?")
    return {name: contents[name] for name in names}


def _check_member(path: Path, member: tarfile.TarInfo, folder: str) -> None:
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts or name.parts[:1] != (folder,) or "\\" in member.name:
        raise ValueError(f"{path}: expected only members inside {folder!r}, found {member.name!r}")
    if not (member.isfile() or member.isdir()):
        raise ValueError(f"{path}: expected only files and folders, found {member.name!r}, a link or a device")


class _ArrayUnpickler(pickle.Unpickler):
    """Resolves the names that a pickled NumPy array needs, and no other."""

    def find_class(self, module: str, name: str) -> Any:
        reconstruct = np.ndarray.__reduce__(np.empty(0))[0]
        known = {
            ("numpy.core.multiarray", "_reconstruct"): reconstruct,
            ("numpy._core.multiarray", "_reconstruct"): reconstruct,
            ("numpy", "ndarray"): np.ndarray,
            # Python 2 stored align and copy as 0 and 1, which NumPy deprecates. The function is new for every call,
            # because a pickle can set attributes on it.
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
      ValueError: the pickle is cut short, damaged, or refers to any other class or function.
    """
    try:
        return _ArrayUnpickler(io.BytesIO(data), encoding="latin1").load()
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise ValueError(f"{name}: expected a pickle of only arrays, strings and numbers, found {error}") from error
