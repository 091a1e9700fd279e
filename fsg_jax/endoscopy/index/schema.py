"""The index of polyp boxes: its columns, the order of its rows, and its file."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Int64

from fsg_jax._checks import expect
from fsg_jax._files import check_file, parse_json, replacing
from fsg_jax.data.extras import import_extra
from fsg_jax.endoscopy.index.label_codes import LABELS, label_codes
from fsg_jax.endoscopy.index.seals import COMMAND, check_seal, table_digest

Table: TypeAlias = Any
"""A `pyarrow.Table` with the columns of `COLUMNS`."""

Rows = Int64[np.ndarray, " rows"]
"""Row numbers, or one number a row."""

_TEXTS = ("dataset", "video_id", "patient_id", "polyp_id", "frame_id", "image_path", "mask_path")
_BOX = ("xmin", "ymin", "xmax", "ymax")
COLUMNS = dict.fromkeys(_TEXTS, "string") | dict.fromkeys(("width", "height", *_BOX), "int32")
COLUMNS |= {"size_mm": "float32", "size_censored": "bool", "synthetic": "bool"} | dict.fromkeys(LABELS, "string")
"""Name and Arrow type of every column; one row is one polyp in one frame.

Paths are relative to the dataset's root, with forward slashes. `mask_path` is null where there is no segmentation,
`size_mm` where no size is known (which only a dataset without sizes has). The box is half-open, ``xmin <= x < xmax``,
in pixels of the frame, inside it. `size_censored`: the polyp is `size_mm` or larger. `histology` and `site` are of
`LABELS`, null where they are not known; an index of before they were columns is read as one that knows none.
"""

METADATA = b"fsg_jax.index"
LARGEST = 2**24
"""Rows of an index; one with more is refused before it is read."""
_NULLABLE = ("mask_path", "size_mm", *LABELS)
_SEPARATOR = "\0"


def index_schema() -> Any:
    """The `pyarrow.Schema` of an index."""
    pa = import_extra("pyarrow", "endoscopy")
    return pa.schema([pa.field(name, kind, nullable=name in _NULLABLE) for name, kind in COLUMNS.items()])


def natural_key(text: str) -> tuple[tuple[int, int, str], ...]:
    """A sort key by which digits compare as numbers: ``case2`` before ``case10``."""
    parts = re.split(r"(\d+)", text)
    return tuple((1, int(part[-4000:]), part) if part.isdecimal() else (0, 0, part) for part in parts if part)


def key_codes(table: Table, columns: Sequence[str]) -> tuple[Rows, list[tuple[str, ...]]]:
    """Numbers the distinct values of string columns.

    Args:
      table: an index.
      columns: names of string columns without nulls.

    Returns:
      ``(codes, keys)``: row ``i`` holds the values ``keys[codes[i]]``; keys are in order of first appearance.
    """
    pa, pc = import_extra("pyarrow", "endoscopy"), import_extra("pyarrow.compute", "endoscopy")
    joined = pc.binary_join_element_wise(*(table.column(name) for name in columns), _SEPARATOR)
    encoded = pa.concat_arrays(joined.chunks or [pa.array([], pa.string())]).dictionary_encode()
    keys = [tuple(text.split(_SEPARATOR)) for text in encoded.dictionary.to_pylist()]
    return encoded.indices.to_numpy().astype(np.int64), keys


def natural_order(table: Table) -> Rows:
    """Row numbers by dataset, polyp and frame in natural order, then by box; the same frames for any order of rows."""
    texts = [_ranks(table, name) for name in ("dataset", "polyp_id", "frame_id", "image_path")]
    return np.lexsort([*texts, *(table.column(name).to_numpy() for name in _BOX)][::-1])


def _ranks(table: Table, name: str) -> Rows:
    codes, keys = key_codes(table, [name])
    ranks = np.empty(len(keys), np.int64)
    ranks[sorted(range(len(keys)), key=lambda i: natural_key(keys[i][0]))] = np.arange(len(keys))
    return ranks[codes]


def sort_index(table: Table) -> Table:
    """The rows in `natural_order`."""
    return table.take(natural_order(table))


def write_index(table: Table, path: Path, roots: Mapping[str, str]) -> None:
    """Writes `table`, sorted, as Parquet, whole or not at all, with its seal and the root folder of every dataset.

    Raises:
      ValueError: the columns are not those of `COLUMNS`, or a dataset has no root.
    """
    pq = import_extra("pyarrow.parquet", "endoscopy")
    table = check_index(table, str(path))
    if missing := set(table.column("dataset").unique().to_pylist()) - set(roots):
        raise ValueError(f"roots: expected the folder of every dataset, found none for {sorted(missing)}")
    table = sort_index(table)
    metadata = {"roots": dict(roots), "sha256": table_digest(table, dict(roots))}
    with replacing(path) as temporary:
        table = table.replace_schema_metadata({METADATA: json.dumps(metadata)})
        pq.write_table(table, temporary, write_page_checksum=True)


def read_index(*paths: Path) -> tuple[Table, dict[str, Path]]:
    """The rows of one index or several, sorted, and the root folder of each dataset.

    Raises:
      FileNotFoundError: a path does not exist.
      ValueError: a file is no index, is damaged or was edited since it was sealed, or two indexes hold one dataset.
    """
    if not paths:
        raise ValueError("read_index: expected at least one path, found none")
    pa = import_extra("pyarrow", "endoscopy")
    tables: list[Table] = []
    roots: dict[str, Path] = {}
    for path in paths:
        file = index_file(path)
        table, metadata = _read(file)
        found = _parse(metadata, file)
        sealed = [name for name in COLUMNS if name in table.column_names]
        table = check_index(table, str(file)).replace_schema_metadata(None)
        if "sha256" in found:
            check_seal(file, found["sha256"], table_digest(table.select(sealed), found["roots"]))
        if twice := sorted(found["roots"].keys() & roots.keys()):
            raise ValueError(f"{path}: expected each dataset in one index, found {twice[0]!r} again")
        tables.append(table)
        roots |= {name: Path(root) for name, root in found["roots"].items()}
    return sort_index(pa.concat_tables(tables)), roots


def seal_index(path: Path, roots: Mapping[str, str]) -> None:
    """Writes an index anew, sealed as it is now, after an edit that is wanted.

    Args:
      path: the file, or its folder.
      roots: of datasets that have another root, or none any more since a program dropped the metadata.

    Raises:
      FileNotFoundError, ValueError: as `read_index`, but for the seal; or a dataset has no root.
    """
    file = index_file(path)
    table, metadata = _read(file)
    known = _parse(metadata, file)["roots"] if METADATA in (metadata or ()) else {}
    write_index(table, file, known | dict(roots))


def is_sealed(path: Path) -> bool:
    """Whether an index, which can be read, has a seal."""
    file = index_file(path)
    return "sha256" in _parse(import_extra("pyarrow.parquet", "endoscopy").read_metadata(file).metadata, file)


def index_file(path: Path) -> Path:
    """The file of an index; of a folder, its ``index.parquet``.

    Raises:
      FileNotFoundError: there is none.
    """
    file = path / "index.parquet" if path.is_dir() else path
    if not file.exists():
        raise FileNotFoundError(f"{file}: no such file; expected an index (make one with the index command)")
    return file


def _read(file: Path) -> tuple[Table, Any]:
    """The table of a Parquet file and its metadata, if any; a damaged page is an error."""
    pa, pq = import_extra("pyarrow", "endoscopy"), import_extra("pyarrow.parquet", "endoscopy")
    check_file(file)
    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as opened:
            expect(opened.metadata.num_rows <= LARGEST, "rows", f"at most {LARGEST}", opened.metadata.num_rows)
            table, metadata = opened.read(), opened.metadata.metadata
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, KeyError, MemoryError) as error:
        raise ValueError(f"{file}: expected an index of polyps, found {type(error).__name__}: {error}") from error
    return table, metadata


def _parse(metadata: Any, file: Path) -> dict[str, Any]:
    """``roots`` and, if it is sealed, ``sha256`` of an index."""
    try:
        if METADATA not in (metadata or ()):
            raise TypeError("a table without what an index says of itself")
        found = parse_json(metadata[METADATA], METADATA.decode())
        if not {"roots"} <= found.keys() <= {"roots", "sha256"}:
            raise ValueError(f"the keys {sorted(found)}")
        if not all(isinstance(root, str) for root in found["roots"].values()):
            raise ValueError(f"the roots {found['roots']}")
    except (TypeError, AttributeError, ValueError) as error:
        remedy = f"if another program wrote it: {COMMAND} {file} --root DATASET=FOLDER"
        found = f"{type(error).__name__}: {error}; {remedy}"
        raise ValueError(f"{file}: expected an index of polyps, found {found}") from error
    return found


def check_index(table: Table, origin: str) -> Table:
    """`table` cast to the schema; where it has none of the columns `LABELS`, as of earlier code, they are null.

    Raises:
      ValueError: columns are missing, twice there or of another type, a value is null that must not be, or a label is
        none of `LABELS`.
    """
    pa = import_extra("pyarrow", "endoscopy")
    if not LABELS.keys() & set(table.column_names):
        for name in LABELS:
            table = table.append_column(name, pa.nulls(len(table), pa.string()))
    if missing := [name for name in COLUMNS if name not in table.column_names]:
        raise ValueError(f"{origin}: expected columns {missing}, found {table.column_names}")
    if twice := [name for name in COLUMNS if table.column_names.count(name) > 1]:
        raise ValueError(f"{origin}: expected each column once, found {twice} again")
    if nulls := [name for name in COLUMNS if name not in _NULLABLE and table.column(name).null_count]:
        raise ValueError(f"{origin}: expected empty values in {list(_NULLABLE)} only, found some in {nulls}")
    try:
        table = table.select(list(COLUMNS)).cast(index_schema())
        for name in LABELS:
            label_codes(table, name)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{origin}: expected the types of an index, found {error}") from error
    except ValueError as error:
        raise ValueError(f"{origin}: {error}") from error
    return table


def polyp_keys(table: Table, column: str = "polyp_id") -> list[tuple[str, str]]:
    """``(dataset, polyp_id)`` of every row, or ``(dataset, another column)``."""
    return list(zip(table.column("dataset").to_pylist(), table.column(column).to_pylist(), strict=True))


def from_rows(rows: Iterable[Mapping[str, Any]]) -> Table:
    """An index table from row mappings with the keys of `COLUMNS`."""
    pa = import_extra("pyarrow", "endoscopy")
    return pa.Table.from_pylist([dict(row) for row in rows], schema=index_schema())
