"""Decoded examples on disk, in ArrayRecord shards beside a manifest that says what they were made from."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Literal, SupportsIndex

import numpy as np

from fsg_jax._checks import check_choice, check_integer, expect
from fsg_jax._files import TEMPORARY, check_file, lock, read_json, replacing, write_json
from fsg_jax.data.extras import import_extra
from fsg_jax.endoscopy.frames.example_bytes import decode_example, encode_example
from fsg_jax.endoscopy.frames.source import FrameError, FrameSource, check_row
from fsg_jax.endoscopy.index.label_codes import LABELS
from fsg_jax.endoscopy.index.schema import LARGEST

_MANIFEST, _LOCK = "manifest.json", "lock"
_FILES = "files.npy"
"""Size and mtime (ns) of the frame, and of the depth map, behind every row."""
_FORMAT = 2
"""1 had no labels in the examples."""
_IN_EXAMPLES = ("dataset", "image_path", "shape", "box", "size_mm", *LABELS)
_OPTIONS = {"none": "group_size:1,uncompressed", "snappy": "group_size:1,snappy", "zstd": "group_size:1,zstd:1"}
_SHARDS, _SMALLEST = 256, 256
_MOST_SHARDS, _LARGEST_SIZE = 2**16, 2**13
_AHEAD = 8
"""Examples a thread that are decoded before the first of them is written; they are held in memory."""
_REMEDY = "build the cache again"


class CacheError(ValueError):
    """A cache is unfinished, stale or damaged, or its folder holds something else."""


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What the examples of a cache are made of, besides the files, and how they lie on disk.

    Raises:
      ValueError: a value is out of its range.
    """

    rows: int
    rows_sha256: str
    size: int
    keep_aspect: bool
    depth: bool
    shard_size: int
    compression: str
    format: int = _FORMAT

    def __post_init__(self) -> None:
        check_integer("rows", self.rows, 0, LARGEST)
        check_integer("size", self.size, 1, _LARGEST_SIZE)
        check_integer("shard_size", self.shard_size, max(1, -(-self.rows // _MOST_SHARDS)), 2**63)
        check_choice("compression", self.compression, list(_OPTIONS))
        for name in ("keep_aspect", "depth"):
            expect(isinstance(getattr(self, name), bool), name, "true or false", getattr(self, name))
        expect(isinstance(self.rows_sha256, str), "rows_sha256", "a SHA-256", self.rows_sha256)

    def shards(self, directory: Path) -> dict[Path, range]:
        """Returns the rows in every shard of a cache in ``directory``."""
        return {
            directory / f"shard-{shard:05d}.arrayrecord": range(start, min(start + self.shard_size, self.rows))
            for shard, start in enumerate(range(0, self.rows, self.shard_size))
        }


class CachedSource:
    """The examples of a cache: those of the `FrameSource` it was built from, bit for bit.

    Can be pickled and read from several threads. ArrayRecord keeps a digest of every record and checks it at each read.

    Args:
      directory: the folder that `build_cache` filled.
      source: what the cache must agree with; None trusts it.

    Raises:
      FileNotFoundError: there is no cache.
      CacheError: it is not finished, or not that of ``source`` or of its files as they are now (the message says why).
        When a row is read: its record is damaged (the message names the shard and the row).
    """

    def __init__(self, directory: Path, source: FrameSource | None = None) -> None:
        self.directory = Path(directory)
        self.manifest = read_manifest(self.directory)
        self.size = self.manifest.size
        self._shards = self.manifest.shards(self.directory)
        if missing := sum(not path.exists() for path in self._shards):
            raise CacheError(f"{directory}: {missing} of {len(self._shards)} shards are missing; run the build again")
        for path in self._shards:
            check_file(path, 2**63)
        if source is not None:
            here = _describe(source, self.manifest.shard_size, self.manifest.compression)
            _check_same(self.directory, source, *here, remedy=_REMEDY)
        # With the number of its records given, a shard is not opened before it is read.
        counted = [f"{path}[0:{len(rows)}]" for path, rows in self._shards.items()]
        module = import_extra("array_record.python.array_record_data_source", "endoscopy")
        self._records: Any = module.ArrayRecordDataSource(counted) if counted else []

    def __len__(self) -> int:
        return self.manifest.rows

    def __getitem__(self, row: SupportsIndex) -> dict[str, Any]:
        index = check_row(row, len(self))
        try:
            example = decode_example(self._records[index])
            if example["row"] != index:
                raise ValueError(f"found row {example['row']}")
            if (len(example["frame"]), "depth" in example) != (self.size, self.manifest.depth):
                raise ValueError(f"found {len(example['frame'])} pixels a side, or depth where there is none")
        except (RuntimeError, ValueError, IndexError) as error:
            path = list(self._shards)[index // self.manifest.shard_size]
            raise CacheError(f"{path}: row {index} is damaged ({error}); delete the file and {_REMEDY}") from error
        return example


def read_manifest(directory: Path) -> Manifest:
    """Reads the manifest of the cache in ``directory``.

    Raises:
      FileNotFoundError: there is none.
      CacheError: it is damaged or of another version.
    """
    path = directory / _MANIFEST
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; expected a cache (make one with the cache command)")
    try:
        values = read_json(path)
        if values.get("format") != _FORMAT:
            raise ValueError(f"expected format {_FORMAT}, found {values.get('format')!r}")
        return Manifest(**values)
    except (ValueError, TypeError) as error:
        raise CacheError(
            f"{path} is damaged or of another version ({error}); delete the folder and {_REMEDY}"
        ) from error


def build_cache(
    source: FrameSource,
    directory: Path,
    *,
    workers: int = 1,
    shard_size: int | None = None,
    compression: Literal["none", "snappy", "zstd"] = "snappy",
    on_row: Callable[[int], object] = lambda rows: None,
) -> None:
    """Writes every example of ``source`` to ``directory``; shards that are there already are kept.

    An example takes 3 (with depth 7) bytes a pixel before compression; measured on colonoscopy frames, snappy takes a
    sixth of that off and zstd a quarter, at more time a read.

    Args:
      source: the examples.
      directory: made if missing; finished shards of the same examples in it are kept.
      workers: threads that decode, which runs outside the interpreter's lock.
      shard_size: rows of a shard; None gives 256 or as many as make 256 shards.
      compression: of every record; the examples read back are the same.
      on_row: called with the number of rows done since the last call.

    Raises:
      BusyError: another process builds there.
      CacheError: ``directory`` holds other examples (the message says what differs) or files that are no cache's.
      FrameError: a frame or depth map cannot be read. The finished shards stay.
      ValueError: ``workers`` or ``shard_size`` is below 1, or ``compression`` is unknown.
    """
    shard_size = max(_SMALLEST, -(-len(source) // _SHARDS)) if shard_size is None else shard_size
    check_integer("workers", workers, 1)
    check_integer("shard_size", shard_size, 1)
    check_choice("compression", compression, _OPTIONS)
    manifest, files = _describe(source, shard_size, compression)
    directory.mkdir(parents=True, exist_ok=True)
    with lock(directory / _LOCK), ThreadPoolExecutor(workers) as pool:
        _enter(source, directory, manifest, files)
        todo = {path: rows for path, rows in manifest.shards(directory).items() if not path.exists()}
        on_row(manifest.rows - sum(map(len, todo.values())))
        for path, rows in todo.items():
            with _writer(path, compression) as writer:
                for record in _encoded(source, rows, pool, _AHEAD * workers):
                    writer.write(record)
                    on_row(1)


def _describe(source: FrameSource, shard_size: int, compression: str) -> tuple[Manifest, np.ndarray]:
    """Returns the manifest of a cache of ``source`` as it is now, and what belongs in its `_FILES`.

    Raises:
      FrameError: a file is missing.
    """
    digest = hashlib.sha256(json.dumps(source.datasets).encode())
    for name in _IN_EXAMPLES:
        values = source.columns[name]
        digest.update(f"{name} {values.dtype.str} {values.shape}".encode() + values.tobytes())
    count, depth = len(source), source.depth_root is not None
    manifest = Manifest(count, digest.hexdigest(), source.size, source.keep_aspect, depth, shard_size, compression)
    paths = (path for row in range(count) for path in (source.frame_path(row), source.depth_path(row)) if path)
    try:
        stats = [(stat.st_size, stat.st_mtime_ns) for stat in map(os.stat, paths)]
    except FileNotFoundError as error:
        raise FrameError(f"{error.filename}: no such file; expected a frame or depth map of the index") from error
    return manifest, np.array(stats, np.int64).reshape(count, 4 if depth else 2)


def _check_same(directory: Path, source: FrameSource, here: Manifest, files: np.ndarray, *, remedy: str) -> None:
    """Raises `CacheError`, which says what differs, unless the cache in ``directory`` is that of the description."""
    there = dataclasses.asdict(read_manifest(directory))
    differ = {name: value for name, value in dataclasses.asdict(here).items() if value != there[name]}
    settings = [f"{name} {there[name]} (here {value})" for name, value in differ.items() if name != "rows_sha256"]
    if differ:
        found = ", ".join(settings) or "other frames, boxes, sizes or labels in the rows of the index"
    else:
        found = _changed(directory, source, files)
    if found:
        raise CacheError(f"{directory}: expected the cache of these examples, found one with {found}; {remedy}")


def _changed(directory: Path, source: FrameSource, files: np.ndarray) -> str:
    """Says how the files behind the rows have changed since the cache was built; nothing if they have not."""
    try:
        before = check_file(directory / _FILES) - files.nbytes
        expect(
            0 < before < 2**12 and before % 64 == 0,
            "size in bytes",
            f"that of {len(files)} rows",
            files.nbytes + before,
        )
        there = np.fromfile(directory / _FILES, np.int64, files.size, offset=before)  # the header is of no use
    except (OSError, ValueError) as error:
        return f"a damaged {_FILES} ({error})"
    changed = (there.reshape(files.shape) != files).any(axis=1)
    if not changed.any():
        return ""
    first = source.frame_path(changed.argmax())
    return f"files of {changed.sum()} rows that have changed since, the first {first} or its depth map"


def _enter(source: FrameSource, directory: Path, manifest: Manifest, files: np.ndarray) -> None:
    """Makes the folder a cache of this description, the manifest last, or checks that it is one.

    Raises:
      CacheError: it is another cache, or holds files that are no cache's.
    """
    if (directory / _MANIFEST).exists():
        _check_same(directory, source, manifest, files, remedy="choose another folder or delete this one")
    else:
        names = {path.name for path in directory.iterdir() if not path.name.startswith(_MANIFEST)}
        if others := sorted(names - {_FILES, _LOCK}):
            raise CacheError(f"{directory}: expected an empty folder or a cache, found {others[:3]}")
        np.save(directory / _FILES, files)
        write_json(directory / _MANIFEST, dataclasses.asdict(manifest))
    for left_by_a_killed_build in directory.glob(f"shard-*{TEMPORARY}"):
        left_by_a_killed_build.unlink()


def _encoded(source: FrameSource, rows: range, pool: ThreadPoolExecutor, ahead: int) -> Iterator[bytes]:
    """Yields the records of ``rows`` in their order; at most ``ahead`` of them are held."""
    for start in range(0, len(rows), ahead):
        yield from pool.map(lambda row: encode_example(source[row]), rows[start : start + ahead])


@contextmanager
def _writer(path: Path, compression: str) -> Iterator[Any]:
    """Gives a writer of a shard, which appears under its name when it is whole."""
    make_writer = import_extra("array_record.python.array_record_module", "endoscopy").ArrayRecordWriter
    try:
        with replacing(path) as temporary, closing(make_writer(str(temporary), _OPTIONS[compression])) as writer:
            yield writer
    except RuntimeError as error:
        raise OSError(f"{path}: cannot be written ({error})") from error
