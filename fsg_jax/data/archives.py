"""Downloading, checking and safely reading the files of a dataset."""

import hashlib
import os
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from fsg_jax.data.extras import import_extra

_ALGORITHMS = {32: "md5", 40: "sha1", 64: "sha256"}


def _parse_digest(digest: str) -> tuple[str, str]:
    """``"md5:<hex>"``, or hex digits alone, as (algorithm, hex)."""
    algorithm, _, digits = digest.lower().rpartition(":")
    algorithm = algorithm or _ALGORITHMS.get(len(digits), "")
    if algorithm not in _ALGORITHMS.values() or set(digits) - set("0123456789abcdef"):
        raise ValueError(f"digest is {digest!r}; expected 'md5:', 'sha1:' or 'sha256:' and hexadecimal digits")
    return algorithm, digits


def check_digest(path: Path, digest: str) -> None:
    """Compare a file with its digest.

    Args:
      path: the file.
      digest: ``"md5:<hex>"``, ``"sha1:<hex>"`` or ``"sha256:<hex>"``; without the prefix the length decides.

    Raises:
      FileNotFoundError: no such file.
      ValueError: the file differs, or ``digest`` is not one.
    """
    algorithm, expected = _parse_digest(digest)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, algorithm).hexdigest()
    if found != expected:
        raise ValueError(
            f"{path}: its {algorithm} is {found}, expected {expected}; the file is damaged or is another "
            "version (checksum=False skips this test)"
        )


def read_folder(path: Path, names: Sequence[str]) -> dict[str, bytes]:
    """The contents of the files ``names`` in a folder; FileNotFoundError names the first that is missing."""
    for name in names:
        if not (path / name).is_file():
            raise FileNotFoundError(f"{path / name}: no such file; expected {', '.join(names)} in {path}")
    return {name: (path / name).read_bytes() for name in names}


def _check_member(path: Path, member: tarfile.TarInfo, folder: str) -> None:
    """Refuse a member outside ``folder``, and anything that is neither a file nor a folder."""
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts or name.parts[:1] != (folder,) or "\\" in member.name:
        raise ValueError(f"{path}: member {member.name!r} is outside the folder {folder!r}; refused")
    if not (member.isfile() or member.isdir()):
        raise ValueError(f"{path}: member {member.name!r} is a link or a device; expected only files; refused")


def _read_members(path: Path, names: Sequence[str], folder: str) -> dict[str, bytes]:
    wanted = {f"{folder}/{name}": name for name in names}
    contents = {}
    with tarfile.open(path, "r:gz") as archive:
        for member in archive:
            _check_member(path, member, folder)
            key = wanted.get(str(PurePosixPath(member.name)))
            file = archive.extractfile(member) if key else None
            if key and file:
                contents[key] = file.read()
    return contents


def read_archive(path: Path, names: Sequence[str], folder: str) -> dict[str, bytes]:
    """Read files of a ``.tar.gz`` into memory; nothing is written to disk.

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
    try:
        contents = _read_members(path, names, folder)
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path}: the archive is cut short or damaged: {error}") from error
    missing = [name for name in names if name not in contents]
    if missing:
        raise ValueError(f"{path}: the archive lacks {', '.join(missing)} in {folder}/; is it cut short?")
    return {name: contents[name] for name in names}


def download(url: str, folder: str | os.PathLike, *, known_hash: str | None, progress: bool = True) -> Path:
    """Download a file into ``folder``, unless it is there with the right digest; needs the ``data`` extra.

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
    name = PurePosixPath(url).name
    return Path(pooch.retrieve(url, known_hash=known_hash, fname=name, path=folder, progressbar=bool(progress)))
