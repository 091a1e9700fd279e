"""Builds the index of a dataset from its chunks: streaming, in parallel, and resumable."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from fsg_jax._files import read_json, write_text
from fsg_jax.data.extras import import_extra
from fsg_jax.endoscopy.index.label_codes import LABELS
from fsg_jax.endoscopy.index.schema import Table, from_rows, natural_key, write_index
from fsg_jax.endoscopy.readers.layout import Chunk, Layout
from fsg_jax.endoscopy.readers.parallel import map_bounded
from fsg_jax.endoscopy.readers.reports import Event, Note, write_reports

INDEX, PARTS = "index.parquet", "parts"


def build_index(
    layout: Layout, out: Path, *, workers: int = 1, progress: Callable[[int], object] = lambda files: None
) -> dict[str, Any]:
    """Writes ``index.parquet``, ``dropped.csv`` and ``notes.csv`` to `out`, and returns the counts.

    Every chunk is kept in ``parts`` as soon as it is read: its key, rows, events and counts in one JSON. A call after
    an interrupted one reads only what is left, with the same result. A chunk is read again if its part is damaged, or
    if its annotation files changed meanwhile (the images are not looked at for that). The caller makes sure that one
    process at a time works in `out`, with one `layout`.

    Args:
      layout: the dataset, such as from `open_real_colon`.
      out: the output folder.
      workers: processes; with 1 all is done in this one.
      progress: called with the number of files of every finished chunk.

    Raises:
      OSError: a folder cannot be read, or `out` cannot be written.
    """
    started = time.monotonic()
    (out / PARTS).mkdir(parents=True, exist_ok=True)
    parts: list[Path] = []
    fresh = 0
    for read in map_bounded(partial(_read_chunk, layout, out), _left(layout, out, parts, progress), workers):
        progress(read)
        fresh += read
    counts: Counter[str] = Counter()
    tables = [from_rows([])]
    dropped, notes = write_reports(_merge(layout, parts, tables, counts), out)
    table = import_extra("pyarrow", "endoscopy").concat_tables(tables)
    write_index(table, out / INDEX, {layout.name: str(layout.root)})
    distinct = {"frames": "image_path", "polyps": "polyp_id", "videos": "video_id"}
    seconds = time.monotonic() - started
    return {
        **{"dataset": layout.name, "root": str(layout.root), "synthetic": layout.synthetic},
        **{name: counts[name] for name in ("files", "frames with boxes", "frames without lesion", "images")},
        "rows": len(table),
        **{name: len(table.column(column).unique()) for name, column in distinct.items()},
        **{name: count_labels(table, name) for name in LABELS},
        **{"dropped": dropped, "notes": notes},
        **{"seconds": round(seconds, 2), "files_read_now": fresh, "files_per_second": round(fresh / seconds, 1)},
    }


def count_labels(table: Table, name: str) -> dict[str, int]:
    """How many polyps of one dataset have each value of ``LABELS[name]`` that occurs, and how many have none."""
    found = Counter(
        dict(zip(table.column("polyp_id").to_pylist(), table.column(name).to_pylist(), strict=True)).values()
    )
    return {value or "not known": found[value] for value in (*LABELS[name], None) if found[value]}


def _part(out: Path, chunk: Chunk) -> Path:
    return out / PARTS / f"{chunk.name}.json"


def _left(layout: Layout, out: Path, parts: list[Path], progress: Callable[[int], object]) -> Iterator[Chunk]:
    """The chunks without a finished part; the parts of all go to `parts`."""
    for chunk in layout.chunks():
        parts.append(_part(out, chunk))
        if _is_done(parts[-1], chunk):
            progress(len(chunk.files))
        else:
            yield chunk


def _is_done(part: Path, chunk: Chunk) -> bool:
    """Whether the part is of the chunk as it is; parts of older versions lack rows or labels, and are made again."""
    try:
        found = read_json(part)
    except (FileNotFoundError, ValueError):
        return False
    return (
        found.get("key") == chunk.key and "rows" in found and all(row.keys() >= LABELS.keys() for row in found["rows"])
    )


def _read_chunk(layout: Layout, out: Path, chunk: Chunk) -> int:
    """Reads a chunk into a part, and returns the number of its files; in a worker process."""
    part = layout.read(chunk)
    part.counts["files"] = len(chunk.files)
    write_text(_part(out, chunk), json.dumps({"key": chunk.key, **vars(part)}))
    return len(chunk.files)


def _merge(layout: Layout, parts: list[Path], tables: list[Table], counts: Counter[str]) -> Iterator[Event]:
    """All events, of one part at a time; rows and counts of the parts are added to `tables` and `counts`."""
    yield from layout.events
    indexed: set[str] = set()
    for part in parts:
        found = read_json(part)
        counts.update(found["counts"])
        tables.append(from_rows(found["rows"]))
        indexed.update(row["polyp_id"] for row in found["rows"])
        yield from (Event(*event) for event in found["events"])
    for polyp in sorted(layout.sizes.polyps.keys() - indexed, key=natural_key):
        yield Event(layout.sizes.table, polyp, Note.NO_BOX, "")
