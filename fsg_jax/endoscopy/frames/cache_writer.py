"""The writing of a cache's shards, several at a time."""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fsg_jax.data.extras import import_extra
from fsg_jax.endoscopy.frames.cache_manifest import Manifest, shard_path
from fsg_jax.endoscopy.frames.source import FrameSource
from fsg_jax.endoscopy.readers.records import encode_example

WRITER_OPTIONS = {
    "none": "group_size:1,uncompressed",
    "snappy": "group_size:1,snappy",
    "zstd": "group_size:1,zstd:1",
}


def _one_at_a_time(on_row: Callable[[int], object] | None) -> Callable[[int], None]:
    lock = threading.Lock()

    def report(rows: int) -> None:
        if on_row is not None:
            with lock:
                on_row(rows)

    return report


def write_shards(
    source: FrameSource,
    directory: Path,
    manifest: Manifest,
    workers: int,
    on_row: Callable[[int], object] | None,
) -> None:
    """Writes the shards that ``directory`` lacks; the first error, or an interruption, stops all of them."""
    report = _one_at_a_time(on_row)
    stop = threading.Event()
    todo = manifest.unfinished(directory)
    report(manifest.rows - sum(len(manifest.rows_of(shard)) for shard in todo))
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(_write_shard, source, directory, manifest, shard, stop, report) for shard in todo]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _write_shard(
    source: FrameSource,
    directory: Path,
    manifest: Manifest,
    shard: int,
    stop: threading.Event,
    report: Callable[[int], None],
) -> None:
    """One shard, whole or not at all."""
    path = shard_path(directory, shard)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with _writer(temporary, manifest.compression) as writer:
            for row in manifest.rows_of(shard):
                if stop.is_set():
                    return
                writer.write(encode_example(source[row]))
                report(1)
    except BaseException:
        stop.set()  # here, before this thread takes the next shard
        raise
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


@contextmanager
def _writer(path: Path, compression: str) -> Iterator[Any]:
    module = import_extra("array_record.python.array_record_module", "endoscopy")
    try:
        writer = module.ArrayRecordWriter(str(path), WRITER_OPTIONS[compression])
        try:
            yield writer
        finally:
            writer.close()
    except RuntimeError as error:
        raise OSError(f"{path}: cannot be written ({error})") from error
