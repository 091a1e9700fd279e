"""Builds the index of a dataset from its chunks: streaming, in parallel, and resumable."""

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from fsg_jax.data.extras import import_extra
from fsg_jax.endoscopy.index.schema import Table, from_rows, natural_key, write_index
from fsg_jax.endoscopy.readers.layout import Chunk, Layout
from fsg_jax.endoscopy.readers.parallel import map_bounded
from fsg_jax.endoscopy.readers.reasons import Event, Reason
from fsg_jax.endoscopy.readers.reports import write_reports

INDEX, PARTS = "index.parquet", "parts"


def build_index(
    layout: Layout, out: Path, *, workers: int = 1, progress: Callable[[int], object] = lambda files: None
) -> dict[str, Any]:
    """Writes ``index.parquet``, ``dropped.csv`` and ``notes.csv`` to `out`, and returns the counts.

    Every chunk is kept in ``parts`` as soon as it is read, so that a call after an interrupted one reads only what is
    left, with the same result; a chunk whose annotation files changed meanwhile is read again (the images are not
    looked at for that). The caller sees to it that one process at a time works in `out`, with one `layout`.

    Args:
      layout: the dataset, from `open_real_colon` or `open_sun`.
      out: the output folder.
      workers: processes; with 1 all is done in this one.
      progress: called with the number of files of every finished chunk.

    Raises:
      OSError: a folder cannot be read, or `out` cannot be written.
      ValueError: a part in `out` is damaged.
    """
    started = time.monotonic()
    parts = out / PARTS
    parts.mkdir(parents=True, exist_ok=True)
    names: list[str] = []
    fresh = 0
    for read in map_bounded(partial(_read_chunk, layout, parts), _left(layout, parts, names, progress), workers):
        progress(read)
        fresh += read
    counts = _merge(layout, out, names)
    seconds = time.monotonic() - started
    speed = {"seconds": round(seconds, 2), "files_read_now": fresh, "files_per_second": round(fresh / seconds, 1)}
    return {"dataset": layout.name, "root": str(layout.root), "synthetic": layout.synthetic, **counts, **speed}


def _left(layout: Layout, parts: Path, names: list[str], progress: Callable[[int], object]) -> Iterator[Chunk]:
    """The chunks without a finished part; the names of all go to `names`."""
    for chunk in layout.chunks():
        names.append(chunk.name)
        if _is_done(parts / chunk.name, chunk):
            progress(len(chunk.files))
        else:
            yield chunk


def _is_done(part: Path, chunk: Chunk) -> bool:
    """The record is written after the rows, so it tells that both are there."""
    try:
        return bool(json.loads(_record_file(part).read_bytes())["key"] == chunk.key)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False


def _read_chunk(layout: Layout, parts: Path, chunk: Chunk) -> int:
    """Reads a chunk into a part; in a worker process."""
    pq = import_extra("pyarrow.parquet", "endoscopy")
    part = layout.read(chunk)
    _write(_rows_file(parts / chunk.name), partial(pq.write_table, from_rows(part.rows)))
    record = {"key": chunk.key, "counts": part.counts, "events": part.events}
    _write(_record_file(parts / chunk.name), lambda path: path.write_text(json.dumps(record)))
    return len(chunk.files)


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Whole or not at all, also when the machine goes down."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _rows_file(part: Path) -> Path:
    return part.with_name(part.name + ".parquet")


def _record_file(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _merge(layout: Layout, out: Path, names: list[str]) -> dict[str, Any]:
    """The parts in the order of the chunks become the index and the reports."""
    pa = import_extra("pyarrow", "endoscopy")
    paths = [out / PARTS / name for name in names]
    table = pa.concat_tables([_read_rows(path) for path in paths]) if paths else from_rows([])
    counts: Counter[str] = Counter()
    dropped, notes = write_reports(_events(layout, paths, table, counts), out)
    write_index(table, out / INDEX, {layout.name: str(layout.root)})
    return {
        **{name: counts[name] for name in ("files", "frames with boxes", "frames without lesion", "images")},
        "rows": len(table),
        "frames": len(table.column("image_path").unique()),
        "polyps": len(table.column("polyp_id").unique()),
        "videos": len(table.column("video_id").unique()),
        "dropped": dropped,
        "notes": notes,
    }


def _read_rows(part: Path) -> Table:
    pa, pq = import_extra("pyarrow", "endoscopy"), import_extra("pyarrow.parquet", "endoscopy")
    try:
        return pq.read_table(_rows_file(part))
    except (pa.ArrowInvalid, FileNotFoundError) as error:
        _record_file(part).unlink(missing_ok=True)
        raise ValueError(f"{_rows_file(part)} is damaged ({error}); the same call again mends it") from error


def _events(layout: Layout, parts: list[Path], table: Table, counts: Counter[str]) -> Iterator[Event]:
    """All events, of one part at a time; the counts of the parts are added to `counts`."""
    yield from layout.events()
    for part in parts:
        record = json.loads(_record_file(part).read_bytes())
        counts.update(record["counts"])
        for file, item, reason, detail in record["events"]:
            yield Event(file, item, Reason(reason), detail)
    found = set(table.column("polyp_id").unique().to_pylist())
    for polyp in sorted((layout.sizes.sizes.keys() | layout.sizes.refused.keys()) - found, key=natural_key):
        yield Event(layout.sizes.table, polyp, Reason.NO_BOX, "")
