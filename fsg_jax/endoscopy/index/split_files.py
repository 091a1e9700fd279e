"""Folds in CSV files: our own, the reference's official lists, and the audit's patient-stratified folds."""

import csv
import hashlib
import io
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from fsg_jax._files import write_text
from fsg_jax.endoscopy.index.csv_rows import read_rows
from fsg_jax.endoscopy.index.folds import (
    MAX_FOLDS,
    Folds,
    PolypKey,
    SplitError,
    name_some,
    polyp_order,
    reference_id,
    whole_id,
)
from fsg_jax.endoscopy.index.schema import Table, polyp_keys
from fsg_jax.endoscopy.index.seals import check_seal, read_seal, write_seal

COLUMNS = ("dataset", "polyp_id", "fold", "num_folds", "group")
"""Of a file of folds, in this order; the last two have one value each, and `read_folds` can do without them."""

_OFFICIAL = ("database", "unique_id", "frame_id", "kfold_id")
_AUDIT = ("video_id", "label", "dataset", "fold")


def write_folds(folds: Folds, path: str | os.PathLike) -> None:
    """Writes a CSV with the columns of `COLUMNS`, polyps in natural order, whole or not at all; its seal is beside it.

    The seal is there first: no file of ours is ever without one.
    """
    text = _csv(folds.fold_of, folds.num_folds, folds.group)
    write_seal(Path(path), _digest(text))
    write_text(Path(path), text)


def read_folds(path: str | os.PathLike, *, num_folds: int | None = None, group: str | None = None) -> Folds:
    """Reads folds from a CSV with the columns dataset, polyp_id and fold, and checks its seal if it has one.

    The seal is that of the folds: a program that writes the same ones in another way (``0.0`` for ``0``, with columns
    of its own, in another order) breaks none.

    Args:
      path: the file.
      num_folds: the number of folds; None takes the file's, or else its largest fold and one.
      group: ``"patient"``, ``"video"`` or ``"polyp"``: what must be in one role; None takes the file's, or else
        ``"polyp"``.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file lacks columns or rows, holds a value that is no fold, or a polyp twice, or is not as it was
        sealed.
    """
    own = _read(path)
    if (sealed := read_seal(Path(path))) is not None:
        check_seal(Path(path), sealed, _digest(_csv(*own)))
    try:
        return Folds(num_folds or own[1], group or own[2], own[0])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def seal_folds(path: str | os.PathLike) -> None:
    """Seals the folds as they are in the file now, after an edit that is wanted; raises as `read_folds` does."""
    write_seal(Path(path), _digest(_csv(*_read(path))))


def _read(path: str | os.PathLike) -> tuple[dict[PolypKey, int], int, str]:
    """The fold of every polyp, the number of folds and the group, as the file has them or by default."""
    fold_of: dict[PolypKey, int] = {}
    stated: dict[str, set[str]] = {name: set() for name in COLUMNS[3:]}
    for line, row in read_rows(Path(path), COLUMNS[:3], COLUMNS[3:], exact=True):
        key = row["dataset"], whole_id(row["dataset"], row["polyp_id"])
        if key in fold_of:
            raise ValueError(f"{path}, line {line}: expected each polyp once, found {' '.join(key)} again")
        fold_of[key] = _integer(row, "fold", f"{path}, line {line}")
        for name, values in stated.items():
            values.add(row.get(name, ""))
    if not fold_of:
        raise ValueError(f"{path}: expected a row for every polyp, found none")
    for name, values in stated.items():
        if len(values) > 1:
            raise ValueError(f"{path}: {name}: expected one value in all rows, found {sorted(values)[:5]}")
    number, group = (values.pop() for values in stated.values())
    own = _integer({"num_folds": number}, "num_folds", str(path)) if number else max(fold_of.values()) + 1
    return fold_of, own, group or "polyp"


def _csv(fold_of: Mapping[PolypKey, int], num_folds: int, group: str) -> str:
    """The text of the file; equal folds have equal texts."""
    file = io.StringIO()
    rows = ((*key, fold_of[key], num_folds, group) for key in sorted(fold_of, key=polyp_order))
    csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
    return file.getvalue()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class ImportedFolds(NamedTuple):
    """Folds of the polyps that the list has, those that it lacks, and what was found, in words and numbers."""

    folds: Folds
    unlisted: tuple[PolypKey, ...]
    report: Mapping[str, int]


def import_official(path: str | os.PathLike, table: Table, *, drop_unlisted: bool = False) -> ImportedFolds:
    """Reads folds from the reference's ``kfold_polypsizing_lists_per_object.csv``, by polyp; ``group="polyp"``.

    Rows are joined by (unique_id, frame_id), never by their position. A database whose name contains ``REAL`` is our
    ``real_colon``, ``SUN`` is ``sun``, where ids are integers. Frames that only the list or only the index has are
    counted; those of the index get the fold of their polyp.

    Args:
      path: CSV with the columns database, unique_id, frame_id, kfold_id, and gt (mm) if there.
      table: an index.
      drop_unlisted: leave polyps that the list lacks without a fold, and count them, instead of raising.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is damaged, lacks columns, or names an unknown database.
      SplitError: the list gives a polyp two folds, or lacks polyps of the index.
    """
    listed: dict[PolypKey, int] = {}
    listed_frames: Counter[tuple[PolypKey, int | str]] = Counter()
    sizes: dict[PolypKey, set[str]] = defaultdict(set)
    for line, row in read_rows(Path(path), _OFFICIAL, ("gt",), exact=True):
        where = f"{path}, line {line}"
        key = _reference_key(reference_dataset(row["database"], where), row["unique_id"])
        _set_fold(listed, key, _integer(row, "kfold_id", where), path)
        listed_frames[key, _frame_number(row["frame_id"])] += 1
        if "gt" in row:
            sizes[key].add(row["gt"])
    polyps = {key: _reference_key(*key) for key in polyp_keys(table)}
    ours = [polyps[key] for key in polyp_keys(table)]
    frames = {(key, _frame_number(text)) for key, text in zip(ours, table.column("frame_id").to_pylist(), strict=True)}
    our_sizes = set(zip(ours, table.column("size_mm").to_pylist(), strict=True))
    alike = {key for key, size in our_sizes if any(_same_size(text, size) for text in sizes.get(key, ()))}
    report = {
        "listed polyps that the index lacks": len(listed.keys() - set(ours)),
        "listed frames that the index lacks": len(listed_frames.keys() - frames),
        "frames of the index that the list lacks": len(frames - listed_frames.keys()),
        "rows of the list that repeat a frame": listed_frames.total() - len(listed_frames),
        "polyps of another size in the list": len((sizes.keys() & set(ours)) - alike),
    }
    fold_of = {polyp: listed[key] for polyp, key in polyps.items() if key in listed}
    folds = Folds(max(listed.values(), default=0) + 1, "polyp", fold_of)
    return _imported(folds, polyps, report, drop_unlisted, path)


def import_audit(path: str | os.PathLike, table: Table, *, drop_unlisted: bool = False) -> ImportedFolds:
    """Reads the folds of the MICCAI 2026 audit (``fold_assignments.csv``), video by video; ``group="video"``.

    They are stratified by patient. The list's label, 1 above 5 mm, is compared with the sizes of the index for every
    video whose polyps agree.

    Args:
      path: CSV with the columns video_id, label, dataset (``real_colon`` or ``sun``) and fold.
      table: an index.
      drop_unlisted: leave polyps of videos that the list lacks without a fold, and count them, instead of raising.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is damaged or lacks columns.
      SplitError: the list gives a video or polyp two folds, or lacks videos of the index.

    Source: arXiv 2605.20461, github anaxqx/polyp-sizing-audit.
    """
    listed: dict[PolypKey, int] = {}
    labels: dict[PolypKey, int] = {}
    for line, row in read_rows(Path(path), _AUDIT, exact=True):
        where = f"{path}, line {line}"
        key = _reference_key(row["dataset"], row["video_id"])
        _set_fold(listed, key, _integer(row, "fold", where), path)
        labels[key] = _integer(row, "label", where)
    videos = [_reference_key(*key) for key in polyp_keys(table, "video_id")]
    polyps = dict.fromkeys(zip(polyp_keys(table), videos, strict=True))
    fold_of: dict[PolypKey, int] = {}
    for polyp, video in polyps:
        if video in listed:
            _set_fold(fold_of, polyp, listed[video], path)
    above: dict[PolypKey, set[bool]] = defaultdict(set)
    for video, size in zip(videos, table.column("size_mm").to_pylist(), strict=True):
        if video in labels and size is not None:
            above[video].add(size > 5)
    agreed = {video: values.pop() for video, values in above.items() if len(values) == 1}
    report = {
        "listed videos that the index lacks": len(listed.keys() - set(videos)),
        "videos of the index that the list lacks": len(set(videos) - listed.keys()),
        "videos whose label differs from our sizes (5 mm)": sum(labels[v] != value for v, value in agreed.items()),
        "videos with polyps on both sides of 5 mm, label not compared": len(above) - len(agreed),
    }
    folds = Folds(max(listed.values(), default=0) + 1, "video", fold_of)
    return _imported(folds, [polyp for polyp, _ in polyps], report, drop_unlisted, path)


def keep_listed(table: Table, folds: Folds) -> Table:
    """The rows whose polyp has a fold."""
    return table.filter([key in folds.fold_of for key in polyp_keys(table)])


def reference_dataset(name: str, where: str) -> str:
    """The dataset of a database by the letters in its name, as the reference does: ``real_colon`` or ``sun``.

    Raises:
      ValueError: it is neither.
    """
    for letters, dataset in (("REAL", "real_colon"), ("SUN", "sun")):
        if letters in name.upper():
            return dataset
    raise ValueError(f"{where}: database: expected a name with REAL or SUN in it, found {name!r}")


def _imported(
    folds: Folds, polyps: Iterable[PolypKey], report: dict[str, int], drop_unlisted: bool, path: str | os.PathLike
) -> ImportedFolds:
    unlisted = tuple(sorted(set(polyps) - folds.fold_of.keys(), key=polyp_order))
    if unlisted and not drop_unlisted:
        found = f"none for {len(unlisted)}: {name_some(list(unlisted), 20)}"
        raise SplitError(f"{path}: expected a fold for every polyp, found {found} (drop_unlisted leaves them out)")
    return ImportedFolds(folds, unlisted, {**report, "polyps dropped, not in the list": len(unlisted)})


def _set_fold(fold_of: dict[PolypKey, int], key: PolypKey, fold: int, path: str | os.PathLike) -> None:
    if fold_of.setdefault(key, fold) != fold:
        raise SplitError(f"{path}: expected one fold for {' '.join(key)}, found {fold_of[key]} and {fold}")


def _reference_key(dataset: str, text: str) -> PolypKey:
    return dataset, reference_id(dataset, text)


def _frame_number(text: str) -> int | str:
    """The number that a frame's id ends in, for zeros in front are lost in CSV; the id if there is none."""
    match = re.fullmatch(r"(\d{1,99})\.0*", text) or re.search(r"(\d{1,99})$", text)
    return int(match[1]) if match else text


def _same_size(text: str, size: float | None) -> bool:
    try:
        return size is not None and abs(float(text) - size) < 1e-3
    except ValueError:
        return size is None


def _integer(row: Mapping[str, str], name: str, where: str) -> int:
    """The integer in a cell, ``3`` or ``3.0``, below `MAX_FOLDS` or that."""
    whole, _, rest = row[name].partition(".")
    if not (whole.isascii() and whole.isdecimal()) or rest.strip("0"):
        raise ValueError(f"{where}: {name}: expected an integer >= 0, found {row[name][:30]!r}")
    if len(whole.lstrip("0")) > len(str(MAX_FOLDS)) or int(whole) > MAX_FOLDS:
        raise ValueError(f"{where}: {name}: expected an integer from 0 to {MAX_FOLDS}, found {row[name][:30]}")
    return int(whole)
