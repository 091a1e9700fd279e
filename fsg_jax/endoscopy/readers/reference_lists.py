"""The CSV lists of the reference code (Roffo et al. 2024), from an index and back into one."""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from fsg_jax.data.extras import import_extra
from fsg_jax.endoscopy.index.csv_rows import plain_id, read_rows, writing_rows
from fsg_jax.endoscopy.index.schema import Table, from_rows, sort_index
from fsg_jax.endoscopy.index.split_files import reference_dataset
from fsg_jax.endoscopy.readers.boxes import CORNERS, fit_box, parse_pixels
from fsg_jax.endoscopy.readers.layout import Frame, Part, is_synthetic
from fsg_jax.endoscopy.readers.reports import Event, Note, Reason, RefusedError
from fsg_jax.endoscopy.readers.sizes import parse_size

_BOX = ("xmin", "xmax", "ymin", "ymax", "width", "height")
_BOX_COLUMNS = ("bbox_xmin", "bbox_xmax", "bbox_ymin", "bbox_ymax", "width", "height")
LIST_COLUMNS = ("database", "unique_id", "frame_id", *_BOX_COLUMNS, "frame_path", "gt")
ROWS_PER_PART = 5000


class _Database(NamedTuple):
    """How the lists call a dataset."""

    name: str
    file: str
    macro: str


_DATABASES = {
    "real_colon": _Database("REALC", "real", "$REAL_COLON_PATH/"),
    "sun": _Database("SUN", "sun", "$SUN_DATA_PATH/"),
}


def export_lists(table: Table, out: Path) -> list[Path]:
    """Writes ``polypsizing_{real,sun}_part{k}.csv``, at most 5000 rows each, k from 1.

    The lists have no place for video, patient, mask, histology, site, and whether a size is censored or the data
    synthetic. Frame paths begin with the reference's macro for the root, and go on as on disk (also for SUN as
    distributed). The cells are as in the index even where a spreadsheet would take one for a formula, for programs read
    them back.

    Raises:
      ValueError: a dataset is neither REAL-Colon nor SUN by its name, two are the same one, or a polyp has no size.
      FileExistsError: there are such lists in `out`, which would be read along with these.
    """
    pc = import_extra("pyarrow.compute", "endoscopy")
    datasets = table.column("dataset").unique().to_pylist()
    databases = {name: _DATABASES[reference_dataset(name, "the index")] for name in datasets}
    if len(set(databases.values())) < len(databases):
        raise ValueError(f"dataset: expected at most one REAL-Colon and one SUN in the lists, found {datasets}")
    if table.column("size_mm").null_count:
        raise ValueError("size_mm: expected a size for every polyp in the lists, found polyps without")
    out.mkdir(parents=True, exist_ok=True)
    if old := sorted(path.name for path in out.glob("polypsizing_*.csv")):
        raise FileExistsError(f"{out}: expected a folder without lists, found {old[:3]}")
    paths = []
    for name, database in databases.items():
        rows = sort_index(table.filter(pc.equal(table.column("dataset"), name)))
        for part, start in enumerate(range(0, len(rows), ROWS_PER_PART), start=1):
            paths.append(out / f"polypsizing_{database.file}_part{part}.csv")
            with writing_rows(paths[-1], LIST_COLUMNS) as writer:
                writer.writerows(_cells(row, database) for row in rows.slice(start, ROWS_PER_PART).to_pylist())
    return paths


def _cells(row: Mapping[str, Any], database: _Database) -> list[Any]:
    box = [row[name] for name in _BOX]
    path, size = database.macro + row["image_path"], str(np.float32(row["size_mm"]))
    return [database.name, row["polyp_id"], row["frame_id"], *box, path, size]


def read_lists(paths: Sequence[Path], roots: Mapping[str, Path]) -> tuple[Table, list[Event]]:
    """Returns an index table from ``polypsizing_*.csv``, and what was dropped.

    The order of files and rows has no effect, but for the first of several boxes of one polyp in one frame being kept.
    The video is the `unique_id` up to its first ``_`` and the patient is the video; no size is censored, for the lists
    do not say; images are not looked at.

    Args:
      paths: the parts.
      roots: the folder of each dataset, ``real_colon`` and ``sun``, in place of the macros.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a column is missing, or a row is of another dataset than those of `roots`.
    """
    pa = import_extra("pyarrow", "endoscopy")
    synthetic = {dataset: is_synthetic(root) for dataset, root in roots.items()}
    seen: set[tuple[str, str, str]] = set()
    events: list[Event] = []
    tables = [from_rows([])]
    for path in sorted(paths, key=lambda path: path.name):
        part = Part()
        for line, cells in read_rows(path, LIST_COLUMNS):
            dataset = reference_dataset(cells["database"], f"{path}, line {line}")
            if dataset not in roots:
                raise ValueError(f"{path}, line {line}: expected a row of {list(roots)}, found one of {dataset}")
            with part.dropping(path.name, f"line {line}"):
                row, clipped = _row(cells, dataset, roots[dataset])
                key = dataset, row["polyp_id"], row["frame_id"]
                if key in seen:
                    raise RefusedError(Reason.DUPLICATE_BOX, f"{key[1]} in frame {key[2]}, after another")
                seen.add(key)
                part.rows.append(row | {"synthetic": synthetic[dataset]})
                if clipped:
                    box = tuple(row[name] for name in CORNERS)
                    part.events.append(Event(path.name, f"line {line}", Note.CLIPPED, f"to {box}"))
        events += part.events
        tables.append(from_rows(part.rows))
    return sort_index(pa.concat_tables(tables)), events


def _row(cells: Mapping[str, str], dataset: str, root: Path) -> tuple[dict[str, Any], bool]:
    """A row of the index without `synthetic`, and whether its box was clipped."""
    polyp, frame = plain_id(cells["unique_id"]), plain_id(cells["frame_id"])
    if not polyp or not frame:
        raise RefusedError(Reason.NO_ID, f"unique_id {cells['unique_id'][:40]!r}, frame_id {cells['frame_id'][:40]!r}")
    if dataset == "sun" and polyp.isdecimal() and frame.isdecimal():
        polyp, frame = str(int(polyp)), str(int(frame))
    video, size = polyp.split("_")[0], parse_size(cells["gt"])
    width, height = (parse_pixels(cells[name], name) for name in ("width", "height"))
    box, notes = fit_box([cells[f"bbox_{name}"] for name in CORNERS], width, height)
    image = Frame(video, frame, _relative(cells["frame_path"], dataset, root), width, height)
    return image.row(polyp, box, size, dataset=dataset, patient_id=video), Note.CLIPPED in notes


def _relative(text: str, dataset: str, root: Path) -> str:
    """The path below the root, from one with the macro or one below the root."""
    if text.startswith(macro := _DATABASES[dataset].macro):
        text = text.removeprefix(macro).lstrip("/")
    path = PurePosixPath(text)
    if path.is_absolute() and path.is_relative_to(root.as_posix()):
        path = path.relative_to(root.as_posix())
    if not path.parts or path.is_absolute() or ".." in path.parts or path.parts[0].startswith("$"):
        raise RefusedError(Reason.FRAME_PATH, f"{text!r} is not below {root}")
    return path.as_posix()
