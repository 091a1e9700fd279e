"""The CSV lists of the reference code (Roffo et al. 2024), from an index and back into one."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from fsg_jax.data.extras import import_extra
from fsg_jax.endoscopy.index.schema import Table, from_rows, sort_index
from fsg_jax.endoscopy.readers.boxes import fit_box, parse_pixels
from fsg_jax.endoscopy.readers.csv_files import read_rows
from fsg_jax.endoscopy.readers.layout import Frame, index_row, is_synthetic
from fsg_jax.endoscopy.readers.reasons import Event, Reason, RefusedError
from fsg_jax.endoscopy.readers.sizes import parse_size

LIST_COLUMNS = (
    "database",
    "unique_id",
    "frame_id",
    "bbox_xmin",
    "bbox_xmax",
    "bbox_ymin",
    "bbox_ymax",
    "width",
    "height",
    "frame_path",
    "gt",
)
ROWS_PER_PART = 5000


class _Database(NamedTuple):
    """How the lists call a dataset."""

    dataset: str
    name: str
    file: str
    macro: str


_DATABASES = {
    "REAL": _Database("real_colon", "REALC", "real", "$REAL_COLON_PATH/"),
    "SUN": _Database("sun", "SUN", "sun", "$SUN_DATA_PATH/"),
}


def _database(name: str) -> _Database:
    """By the letters in the name, as the reference does."""
    for letters, database in _DATABASES.items():
        if letters in name.upper():
            return database
    raise ValueError(f"dataset {name!r} has no place in the reference's lists; expected REAL or SUN in its name")


def export_lists(table: Table, out: Path) -> list[Path]:
    """Writes ``polypsizing_{real,sun}_part{k}.csv``, at most 5000 rows each, k from 1.

    The lists have no place for video, patient, mask, and whether a size is censored or the data synthetic. Frame paths
    begin with the reference's macro for the root, and go on as on disk (also for SUN as distributed).

    Raises:
      ValueError: a dataset is neither REAL-Colon nor SUN by its name, two are the same one, or a polyp has no size.
      FileExistsError: there are such lists in `out`, which would be read along with these.
    """
    pc = import_extra("pyarrow.compute", "endoscopy")
    datasets = table.column("dataset").unique().to_pylist()
    databases = {name: _database(name) for name in datasets}
    if len(set(databases.values())) < len(databases):
        raise ValueError(f"datasets {datasets} would share the reference's lists; export them one by one")
    if table.column("size_mm").null_count:
        raise ValueError("the index has polyps without size; the reference's lists have none")
    out.mkdir(parents=True, exist_ok=True)
    if old := sorted(path.name for path in out.glob("polypsizing_*.csv")):
        raise FileExistsError(f"{out} holds lists already: {old[:3]}; expected a folder without")
    paths = []
    for name, database in databases.items():
        rows = sort_index(table.filter(pc.equal(table.column("dataset"), name)))
        for part, start in enumerate(range(0, len(rows), ROWS_PER_PART), start=1):
            paths.append(out / f"polypsizing_{database.file}_part{part}.csv")
            _write_part(rows.slice(start, ROWS_PER_PART), database, paths[-1])
    return paths


def _write_part(rows: Table, database: _Database, path: Path) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(LIST_COLUMNS)
        for row in rows.to_pylist():
            box = (row["xmin"], row["xmax"], row["ymin"], row["ymax"], row["width"], row["height"])
            size = str(np.float32(row["size_mm"]))
            path_text = database.macro + row["image_path"]
            writer.writerow([database.name, row["polyp_id"], row["frame_id"], *box, path_text, size])
    temporary.replace(path)


def read_lists(paths: Sequence[Path], roots: Mapping[str, Path]) -> tuple[Table, list[Event]]:
    """An index table from ``polypsizing_*.csv``, and what was dropped.

    The order of files and rows has no effect, but for the first of several boxes of one polyp in one frame being kept.
    The video is the `unique_id` up to its first ``_`` and the patient is the
    video; no size is censored, for the lists do not say; images are not looked at.

    Args:
      paths: the parts.
      roots: the folder of each dataset, ``real_colon`` and ``sun``, in place of the macros.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a column is missing, or a row is of another dataset than those of `roots`.
    """
    pa = import_extra("pyarrow", "endoscopy")
    reader = _ListReader(roots)
    tables = [from_rows(reader.read(path)) for path in sorted(paths, key=lambda path: path.name)]
    return sort_index(pa.concat_tables([from_rows([]), *tables])), reader.events


class _ListReader:
    """Rows of an index from the parts; remembers the boxes of parts before."""

    def __init__(self, roots: Mapping[str, Path]) -> None:
        self.roots = roots
        self.synthetic = {dataset: is_synthetic(root) for dataset, root in roots.items()}
        self.events: list[Event] = []
        self.seen: set[tuple[str, str, str]] = set()

    def read(self, path: Path) -> list[dict[str, Any]]:
        rows = []
        for line, cells in read_rows(path, LIST_COLUMNS):
            try:
                dataset = _database(cells["database"]).dataset
                if dataset not in self.roots:
                    raise ValueError(f"no root is given for {dataset}")
                rows.append(self._row(cells, dataset, path.name, f"line {line}"))
            except RefusedError as error:
                self.events.append(error.event(path.name, f"line {line}"))
            except ValueError as error:
                raise ValueError(f"{path}, line {line}: {error}") from error
        return rows

    def _row(self, cells: Mapping[str, str], dataset: str, file: str, item: str) -> dict[str, Any]:
        polyp, frame = cells["unique_id"], cells["frame_id"]
        if not polyp or not frame:
            raise RefusedError(Reason.NO_ID, f"unique_id {polyp!r}, frame_id {frame!r}")
        if dataset == "sun" and polyp.isdecimal() and frame.isdecimal():
            polyp, frame = str(int(polyp)), str(int(frame))
        video, size = polyp.split("_")[0], parse_size(cells["gt"])
        width, height = (parse_pixels(cells[name], name) for name in ("width", "height"))
        corners = [cells[f"bbox_{name}"] for name in ("xmin", "ymin", "xmax", "ymax")]
        fitted = fit_box(corners, width, height)
        image_path = _relative(cells["frame_path"], dataset, self.roots[dataset])
        if (dataset, polyp, frame) in self.seen:
            raise RefusedError(Reason.DUPLICATE_BOX, f"{polyp} in frame {frame}, after another")
        self.seen.add((dataset, polyp, frame))
        if fitted.clipped:
            self.events.append(Event(file, item, Reason.CLIPPED, f"to {tuple(fitted.box)}"))
        row = Frame(video, frame, image_path, width, height)
        ids = {"dataset": dataset, "patient_id": video, "polyp_id": polyp}
        return index_row(row, fitted, size, **ids, synthetic=self.synthetic[dataset])


def _relative(text: str, dataset: str, root: Path) -> str:
    """The path below the root, from one with the macro or one below the root."""
    for database in _DATABASES.values():
        if database.dataset == dataset and text.startswith(database.macro):
            text = text.removeprefix(database.macro).lstrip("/")
    path = PurePosixPath(text)
    if path.is_absolute() and path.is_relative_to(root.as_posix()):
        path = path.relative_to(root.as_posix())
    if not path.parts or path.is_absolute() or ".." in path.parts or path.parts[0].startswith("$"):
        raise RefusedError(Reason.FRAME_PATH, f"{text!r} is not below {root}")
    return path.as_posix()
