"""Decoded examples on disk, in ArrayRecord shards: built once, read in place of the frames."""

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, SupportsIndex

from fsg_jax.data.extras import import_extra
from fsg_jax.endoscopy.frames.cache_manifest import (
    LOCK,
    CacheError,
    Manifest,
    check_same,
    describe,
    read_manifest,
    shard_path,
    write_manifest,
)
from fsg_jax.endoscopy.frames.cache_writer import WRITER_OPTIONS, write_shards
from fsg_jax.endoscopy.frames.source import FrameSource
from fsg_jax.endoscopy.readers.records import decode_example

_SHARDS, _SMALLEST = 256, 256
_REMEDY = "build the cache again"


class _Part(NamedTuple):
    """The rows of one file, as ArrayRecord's data source wants them told; it then opens no file at the start."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


class CachedSource:
    """The examples of a cache: those of the `FrameSource` it was built from, bit for bit.

    Can be pickled and read from several threads.

    Args:
      directory: that `build_cache` filled.
      source: what the cache must agree with; None trusts it.

    Raises:
      FileNotFoundError: there is no cache.
      CacheError: it is not finished, or not that of ``source`` or of its files as they are now (the message says why).
        Reading: a record is damaged (the message names shard and row).
    """

    def __init__(self, directory: Path, source: FrameSource | None = None) -> None:
        self.directory = Path(directory)
        self.manifest = read_manifest(self.directory)
        self.size, self.keep_aspect = self.manifest.size, self.manifest.keep_aspect
        if missing := self.manifest.unfinished(self.directory):
            total = self.manifest.shards
            raise CacheError(f"{directory}: {len(missing)} of {total} shards are missing; run the same build again")
        if source is not None:
            layout = self.manifest.shard_size, self.manifest.compression
            check_same(self.directory, self.manifest, describe(source, *layout), remedy=_REMEDY)
        self._records: Any = _open(self.directory, self.manifest) if len(self) else None

    def __len__(self) -> int:
        return self.manifest.rows

    def __getitem__(self, row: SupportsIndex) -> dict[str, Any]:
        index = row.__index__()
        if not 0 <= index < len(self):
            raise IndexError(f"row is {index}; expected 0 to {len(self) - 1}")
        try:
            example = decode_example(self._records[index])
            if example["row"] != index:
                raise ValueError(f"found row {example['row']}")
        except (RuntimeError, ValueError, IndexError) as error:
            path = shard_path(self.directory, index // self.manifest.shard_size)
            raise CacheError(f"{path}: row {index} is damaged ({error}); delete the file and {_REMEDY}") from error
        return example


def _open(directory: Path, manifest: Manifest) -> Any:
    module = import_extra("array_record.python.array_record_data_source", "endoscopy")
    counts = [len(manifest.rows_of(shard)) for shard in range(manifest.shards)]
    parts = [_Part(str(shard_path(directory, shard)), 0, count, count) for shard, count in enumerate(counts)]
    return module.ArrayRecordDataSource(parts)


def build_cache(
    source: FrameSource,
    directory: Path,
    *,
    workers: int = 1,
    shard_size: int | None = None,
    compression: Literal["none", "snappy", "zstd"] = "snappy",
    on_row: Callable[[int], object] | None = None,
) -> None:
    """Writes every example of ``source`` to ``directory``; shards that are there already are kept.

    An example takes 3 (with depth 7) bytes a pixel before compression; measured on colonoscopy frames, snappy takes a
    sixth of that off and zstd a quarter, at more time a read.

    Args:
      source: the examples.
      directory: made if missing; finished shards of the same examples in it are kept.
      workers: threads, each on a shard of its own. Decoding and writing run outside the interpreter's lock.
      shard_size: rows of a shard; None gives 256 or as many as make 256 shards.
      compression: of every record; the examples read back are the same.
      on_row: called with the number of rows done since the last call.

    Raises:
      CacheError: ``directory`` holds other examples (the message says what differs), or another process builds there.
      FrameError: a frame or depth map cannot be read. What was finished stays.
      ValueError: ``workers`` or ``shard_size`` below 1, or an unknown ``compression``.
    """
    shard_size = max(_SMALLEST, -(-len(source) // _SHARDS)) if shard_size is None else shard_size
    for name, value in (("workers", workers), ("shard_size", shard_size)):
        if value < 1:
            raise ValueError(f"{name} is {value}; expected 1 or more")
    if compression not in WRITER_OPTIONS:
        raise ValueError(f"compression is {compression!r}; expected one of {list(WRITER_OPTIONS)}")
    snapshot = describe(source, shard_size, compression)
    with _sole_builder(directory):
        if (directory / Manifest.FILE).exists():
            remedy = "choose another folder or delete this one"
            check_same(directory, read_manifest(directory), snapshot, remedy=remedy)
        else:
            write_manifest(directory, snapshot)
        write_shards(source, directory, snapshot.manifest, workers, on_row)


@contextmanager
def _sole_builder(directory: Path) -> Iterator[None]:
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CacheError(f"{directory}: another process builds a cache there") from None
        yield
