"""Published folds, joined by key: the reference's official lists and the audit's patient-stratified folds."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from fsg_jax.endoscopy.index.folds import Folds, PolypKey, SplitError, name_some, polyp_order
from fsg_jax.endoscopy.index.schema import Table, polyp_keys
from fsg_jax.endoscopy.index.sort import reference_id
from fsg_jax.endoscopy.index.split_files import integers, read_text_columns

_OFFICIAL = ("database", "unique_id", "frame_id", "kfold_id")
_AUDIT = ("video_id", "label", "dataset", "fold")


class ImportedFolds(NamedTuple):
    """Folds of the polyps that the list has, those that it lacks, and what was found, in words and numbers."""

    folds: Folds
    unlisted: tuple[PolypKey, ...]
    report: Mapping[str, int]


def import_official(path: str | os.PathLike, table: Table, *, drop_unlisted: bool = False) -> ImportedFolds:
    """Folds from the reference's ``kfold_polypsizing_lists_per_object.csv``, polyp by polyp; ``group="polyp"``.

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
    listed = read_text_columns(path, _OFFICIAL, optional=("gt",))
    databases = {name: _dataset_of(name, path) for name in listed.column("database").unique().to_pylist()}
    names = [databases[name] for name in listed.column("database").to_pylist()]
    keys = [_plain(*key) for key in zip(names, listed.column("unique_id").to_pylist(), strict=True)]
    numbers = integers(listed, "kfold_id", path)
    fold_of_listed = _one_fold_each(zip(keys, numbers, strict=True), path)
    ours = [_plain(*key) for key in polyp_keys(table)]
    listed_frames, our_frames = Counter(_frames(keys, listed)), set(_frames(ours, table))
    report = {
        "listed polyps that the index lacks": len(fold_of_listed.keys() - set(ours)),
        "listed frames that the index lacks": len(listed_frames.keys() - our_frames),
        "frames of the index that the list lacks": len(our_frames - listed_frames.keys()),
        "rows of the list that repeat a frame": sum(listed_frames.values()) - len(listed_frames),
        "polyps of another size in the list": _other_sizes(keys, listed, table),
    }
    polyps = dict.fromkeys(polyp_keys(table))
    found = {key: fold_of_listed[_plain(*key)] for key in polyps if _plain(*key) in fold_of_listed}
    return _imported(Folds(_num_folds(numbers), "polyp", found), polyps, report, drop_unlisted, path)


def import_audit(path: str | os.PathLike, table: Table, *, drop_unlisted: bool = False) -> ImportedFolds:
    """Patient-stratified folds of the MICCAI 2026 audit (``fold_assignments.csv``), video by video; ``group="video"``.

    The list's label, 1 above 5 mm, is compared with the sizes of the index for every video whose polyps agree.

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
    listed = read_text_columns(path, _AUDIT)
    keys = [_plain(*key) for key in zip(*(listed.column(n).to_pylist() for n in ("dataset", "video_id")), strict=True)]
    numbers = integers(listed, "fold", path)
    fold_of_video = _one_fold_each(zip(keys, numbers, strict=True), path)
    videos = [_plain(*key) for key in polyp_keys(table, "video_id")]
    pairs = dict.fromkeys(zip(polyp_keys(table), videos, strict=True))
    found = _one_fold_each(((polyp, fold_of_video[video]) for polyp, video in pairs if video in fold_of_video), path)
    labels = dict(zip(keys, integers(listed, "label", path), strict=True))
    report = {
        "listed videos that the index lacks": len(fold_of_video.keys() - set(videos)),
        "videos of the index that the list lacks": len(set(videos) - fold_of_video.keys()),
        **_compare_labels(labels, videos, table.column("size_mm").to_pylist()),
    }
    polyps = dict.fromkeys(polyp for polyp, _ in pairs)
    return _imported(Folds(_num_folds(numbers), "video", found), polyps, report, drop_unlisted, path)


def keep_listed(table: Table, folds: Folds) -> Table:
    """The rows whose polyp has a fold."""
    return table.filter([key in folds.fold_of for key in polyp_keys(table)])


def _imported(
    folds: Folds, polyps: Iterable[PolypKey], report: dict[str, int], drop_unlisted: bool, path: str | os.PathLike
) -> ImportedFolds:
    unlisted = tuple(sorted((key for key in polyps if key not in folds.fold_of), key=polyp_order))
    if unlisted and not drop_unlisted:
        raise SplitError(
            f"{path}: has no fold for {len(unlisted)} polyps of the index: {name_some(list(unlisted), 20)}; "
            "drop_unlisted leaves them out"
        )
    return ImportedFolds(folds, unlisted, {**report, "polyps dropped, not in the list": len(unlisted)})


def _one_fold_each(pairs: Iterable[tuple[PolypKey, int]], path: str | os.PathLike) -> dict[PolypKey, int]:
    fold_of: dict[PolypKey, int] = {}
    for key, fold in pairs:
        if fold_of.setdefault(key, fold) != fold:
            raise SplitError(f"{path}: {' '.join(key)} is in folds {fold_of[key]} and {fold}; expected one")
    return fold_of


def _num_folds(numbers: list[int]) -> int:
    return max(numbers, default=0) + 1


def _dataset_of(database: str, path: str | os.PathLike) -> str:
    for part, dataset in (("REAL", "real_colon"), ("SUN", "sun")):
        if part in database.upper():
            return dataset
    raise ValueError(f"{path}: the database {database!r} is unknown; expected a name with REAL or SUN in it")


def _plain(dataset: str, text: str) -> PolypKey:
    return dataset, reference_id(dataset, text)


def _frames(keys: list[PolypKey], table: Table) -> list[tuple[Any, ...]]:
    """Polyp and frame of every row; a frame is the number that its id ends in, for zeros in front are lost in CSV."""
    frames = table.column("frame_id").to_pylist()
    return [
        (*key, int(m[0]) if (m := re.search(r"\d+$", text)) else text) for key, text in zip(keys, frames, strict=True)
    ]


def _other_sizes(keys: list[PolypKey], listed: Table, table: Table) -> int:
    if "gt" not in listed.column_names:
        return 0
    theirs, ours = defaultdict(set), defaultdict(set)
    for key, text in zip(keys, listed.column("gt").to_pylist(), strict=True):
        theirs[key].add(text)
    for key, size in zip(polyp_keys(table), table.column("size_mm").to_pylist(), strict=True):
        ours[_plain(*key)].add(size)
    return sum(not any(_same(a, b) for a in theirs[key] for b in ours[key]) for key in ours.keys() & theirs.keys())


def _same(text: str, size: float | None) -> bool:
    try:
        return size is not None and abs(float(text) - size) < 1e-3
    except ValueError:
        return size is None


def _compare_labels(
    labels: Mapping[PolypKey, int], videos: list[PolypKey], sizes: list[float | None]
) -> dict[str, int]:
    above: dict[PolypKey, set[bool]] = defaultdict(set)
    for video, size in zip(videos, sizes, strict=True):
        if video in labels and size is not None:
            above[video].add(size > 5)
    agreed = {video: values.pop() for video, values in above.items() if len(values) == 1}
    return {
        "videos whose label differs from our sizes (5 mm)": sum(labels[v] != value for v, value in agreed.items()),
        "videos with polyps on both sides of 5 mm, label not compared": len(above) - len(agreed),
    }
