"""What a cache of examples was built from, and whether that is still so."""

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
from jaxtyping import Int64

from fsg_jax.endoscopy.frames.source import FrameError, FrameSource

_FILES, LOCK = "files.npy", "lock"
_FORMAT = 1
_IN_EXAMPLES = ("dataset", "image_path", "shape", "box", "size_mm")


class CacheError(ValueError):
    """A cache is unfinished, stale or damaged, or its folder is taken."""


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What the examples of a cache are made of, besides the files, and how they lie on disk."""

    FILE: ClassVar[str] = "manifest.json"

    rows: int
    rows_sha256: str
    size: int
    keep_aspect: bool
    depth: bool
    shard_size: int
    compression: str
    format: int = _FORMAT

    @property
    def shards(self) -> int:
        """How many files the rows are divided among."""
        return -(-self.rows // self.shard_size)

    def rows_of(self, shard: int) -> range:
        """The rows in one of them."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.rows))

    def unfinished(self, directory: Path) -> list[int]:
        """The shards that ``directory`` lacks."""
        return [shard for shard in range(self.shards) if not shard_path(directory, shard).exists()]


def shard_path(directory: Path, shard: int) -> Path:
    """The file of a shard."""
    return directory / f"shard-{shard:05d}.arrayrecord"


class Snapshot(NamedTuple):
    """A source as it is now: the manifest, and size and mtime (ns) of the file, or files, behind every row."""

    source: FrameSource
    manifest: Manifest
    files: Int64[np.ndarray, "rows stats"]


def describe(source: FrameSource, shard_size: int, compression: str) -> Snapshot:
    """The snapshot of ``source`` for a cache of that layout.

    Raises:
      FrameError: a file is missing.
    """
    digest = hashlib.sha256(json.dumps(source.datasets).encode())
    for name in _IN_EXAMPLES:
        values = source.columns[name]
        digest.update(f"{name} {values.dtype.str} {values.shape}".encode() + values.tobytes())
    depth = source.depth_root is not None
    manifest = Manifest(
        len(source), digest.hexdigest(), source.size, source.keep_aspect, depth, shard_size, compression
    )
    stats = [_stat(source, row) for row in range(len(source))]
    return Snapshot(source, manifest, np.array(stats, np.int64).reshape(len(source), 4 if depth else 2))


def _stat(source: FrameSource, row: int) -> list[int]:
    paths = [path for path in (source.frame_path(row), source.depth_path(row)) if path is not None]
    try:
        found = [os.stat(path) for path in paths]
    except FileNotFoundError as error:
        raise FrameError(f"{error.filename}: no such file; expected the frame or depth map of row {row}") from error
    return [value for stat in found for value in (stat.st_size, stat.st_mtime_ns)]


def write_manifest(directory: Path, snapshot: Snapshot) -> None:
    """Writes the snapshot; the manifest, which makes the folder a cache, last.

    Raises:
      CacheError: the folder holds files that are no cache's.
    """
    temporary = directory / (Manifest.FILE + ".tmp")
    if others := sorted({path.name for path in directory.iterdir()} - {_FILES, LOCK, temporary.name}):
        raise CacheError(f"{directory}: expected an empty folder or a cache, found {others[:3]}")
    np.save(directory / _FILES, snapshot.files)
    temporary.write_text(json.dumps(dataclasses.asdict(snapshot.manifest), indent=1) + "\n")
    temporary.replace(directory / Manifest.FILE)


def read_manifest(directory: Path) -> Manifest:
    """The manifest of the cache in ``directory``.

    Raises:
      FileNotFoundError: there is none.
      CacheError: it is damaged or of another version.
    """
    path = directory / Manifest.FILE
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; expected a cache (make one with the cache command)")
    try:
        manifest = Manifest(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise CacheError(f"{path}: damaged ({error}); delete the folder and build the cache again") from error
    if manifest.format != _FORMAT:
        raise CacheError(f"{path}: found format {manifest.format}, expected {_FORMAT}; build the cache again")
    return manifest


def check_same(directory: Path, there: Manifest, snapshot: Snapshot, *, remedy: str) -> None:
    """Raises `CacheError`, which says what differs, unless the cache in ``directory`` is that of the snapshot."""
    here = snapshot.manifest
    reasons = [
        f"{field.name} is {getattr(there, field.name)} there, {getattr(here, field.name)} here"
        for field in dataclasses.fields(Manifest)
        if field.name != "rows_sha256" and getattr(there, field.name) != getattr(here, field.name)
    ]
    if not reasons and there.rows_sha256 != here.rows_sha256:
        reasons = ["the rows of the index have other frames, boxes or sizes now"]
    if not reasons:
        reasons = _changed(directory, snapshot)
    if reasons:
        raise CacheError(f"{directory}: the cache is of other examples: {'; '.join(reasons)}; {remedy}")


def _changed(directory: Path, snapshot: Snapshot) -> list[str]:
    files = snapshot.files
    try:
        recorded = np.load(directory / _FILES)
    except (OSError, ValueError, EOFError) as error:
        return [f"{_FILES} cannot be read ({error})"]
    if recorded.shape != files.shape:
        return [f"{_FILES} has shape {recorded.shape}, expected {files.shape}"]
    rows = np.flatnonzero((recorded != files).any(axis=1))
    if not len(rows):
        return []
    first = snapshot.source.frame_path(rows[0])
    return [f"the files of {len(rows)} rows have changed since, the first {first} or its depth map"]
