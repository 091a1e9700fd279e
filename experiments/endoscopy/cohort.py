"""Index, roles and examples of the polyp-sizing experiments; the same for every arm and seed."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import closing
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.endoscopy.polyp_config import PolypData
from fsg_jax._checks import check_integer
from fsg_jax._files import read_json
from fsg_jax.data.batches import BatchOrder, in_order
from fsg_jax.data.loader import Loader, pad_batch
from fsg_jax.endoscopy.frames.depth_maps import check_depth
from fsg_jax.endoscopy.frames.frame_cache import CachedSource, read_manifest
from fsg_jax.endoscopy.frames.source import FrameSource
from fsg_jax.endoscopy.index.folds import group_counts
from fsg_jax.endoscopy.index.label_codes import LABELS, label_codes
from fsg_jax.endoscopy.index.roles import ROLES, roles
from fsg_jax.endoscopy.index.sampling import epoch_length, rows_by_polyp, sample_epoch, sample_fixed
from fsg_jax.endoscopy.index.schema import Table, is_sealed, polyp_keys, read_index
from fsg_jax.endoscopy.index.seals import seal_file
from fsg_jax.endoscopy.index.split_files import read_folds

Rows = np.ndarray


class Cohort(NamedTuple):
    """All rows of the indexes, their roles in one fold, and what the record of a run says of them."""

    table: Table
    roots: Mapping[str, Path]
    polyps: list[np.ndarray]
    """Rows of every training polyp."""
    validation: Rows
    test: Rows
    test_polyps: list[np.ndarray]
    """Rows of every test polyp, of which `test` are some or all."""
    digest: str
    """Of rows and roles: another index or other folds give another one."""
    info: dict[str, Any]


@cache
def load_index(paths: tuple[Path, ...]) -> tuple[Table, dict[str, Path], list[np.ndarray]]:
    """The rows of all indexes, the folder of each dataset, and the rows of every polyp."""
    table, roots = read_index(*paths)
    return table, roots, rows_by_polyp(table)


@cache
def load_cohort(config: PolypData) -> Cohort:
    """Rows and roles; polyps without a fold have none and are counted.

    Raises:
      ValueError: index or splits are not set, do not fit each other, or share what they must not.
      FileNotFoundError: a file is missing.
    """
    if not config.index or config.splits is None:
        raise ValueError("data.index and data.splits: expected index folders and the file of folds, found None")
    table, roots, everything = load_index(config.index)
    folds = read_folds(config.splits)
    keys = polyp_keys(table)
    listed = np.array([key in folds.fold_of for key in keys])
    kept = np.flatnonzero(listed)
    parts = roles(table.take(kept), folds, config.fold)
    role = np.full(table.num_rows, -1)
    for number, rows in enumerate((parts.train, parts.validation, parts.test)):
        role[kept[rows]] = number
    polyps = [[rows for rows in everything if role[rows[0]] == number] for number in range(3)]
    validation = sample_fixed(polyps[1], config.validation_frames)
    test = sample_fixed(polyps[2], config.test_frames)
    unmatched = {
        "boxes without a fold": int((~listed).sum()),
        "polyps with a fold and no box": len(folds.fold_of.keys() - set(keys)),
    }
    counts = [count._asdict() for count in group_counts(table.take(kept), folds)]
    unverified = [str(path) for path in config.index if not is_sealed(path)]
    unverified += [] if seal_file(config.splits).exists() else [str(config.splits)]
    info = {
        "synthetic": any(table.column("synthetic").to_pylist()),
        "data": describe_data(config, table) | unmatched | {"unverified": unverified},
        "split": {"group": folds.group, "num_folds": folds.num_folds, "counts": counts},
        "shared": parts.shared._asdict(),
        "num_polyps": {name: len(found) for name, found in zip(ROLES, polyps, strict=True)},
        "num_frames": {"train": int((role == 0).sum()), "validation": len(validation), "test": len(test)},
    }
    return Cohort(table, roots, polyps[0], validation, test, polyps[2], digest_of(table, role), info)


def digest_of(table: Table, role: Rows) -> str:
    """SHA-256 of the rows, without paths, and their roles."""
    digest = hashlib.sha256(role.astype(np.int8).tobytes())
    for name in ("dataset", "polyp_id", "frame_id", "xmin", "ymin", "xmax", "ymax", "size_mm"):
        digest.update(repr(table.column(name).to_pylist()).encode())
    for name in LABELS:  # a table without labels has the digest that it had before there were any
        if table.column(name).null_count < len(table):
            digest.update(name.encode() + label_codes(table, name).tobytes())
    return digest.hexdigest()[:16]


def describe_data(config: PolypData, table: Table) -> dict[str, Any]:
    """Datasets, how much there is, and what the indexing dropped, by reason."""
    dropped: dict[str, Any] = {}
    for path in config.index:
        summary = (path if path.is_dir() else path.parent) / "summary.json"
        if summary.exists():
            found = read_json(summary)
            dropped[str(found.get("dataset", path.name))] = found.get("dropped", {})
    censored = set(polyp_keys(table.filter(table.column("size_censored"))))
    return {
        "datasets": sorted(table.column("dataset").unique().to_pylist()),
        "polyps": len(load_index(config.index)[2]),
        "boxes": table.num_rows,
        "polyps whose size is a lower bound": len(censored),
        "boxes outside the field of view": int(outside(table, config.circle).sum()),
        "dropped": dropped,
    }


def outside(table: Table, circle: float | None) -> np.ndarray:
    """Boxes of which no point lies in the circular field of view; the network is given a blank for them."""
    if circle is None:
        return np.zeros(table.num_rows, bool)
    column = {name: table.column(name).to_numpy().astype(float) for name in ("xmin", "xmax", "ymin", "ymax")}
    width, height = (table.column(name).to_numpy() for name in ("width", "height"))
    x = np.clip(0, 2 * column["xmin"] / width - 1, 2 * column["xmax"] / width - 1)
    y = np.clip(0, 2 * column["ymin"] / height - 1, 2 * column["ymax"] / height - 1)
    return np.hypot(x, y) > circle


def num_folds(splits: Path | None) -> int:
    """How many folds the file has."""
    if splits is None:
        raise ValueError("data.splits: expected the file of folds, found None")
    return read_folds(splits).num_folds


def open_source(config: PolypData, depth: bool) -> FrameSource | CachedSource:
    """Examples by row of the indexes, from the frames or from the cache.

    Raises:
      ValueError, FileNotFoundError: depth maps are asked for and missing, or the cache is not that of the frames.
    """
    if depth and config.depth_root is None:
        raise ValueError("data.depth_root: expected depth maps, for the stream 'depth' needs them, found None")
    # A cache with depth maps also serves runs without them.
    depth = depth or (config.cache is not None and read_manifest(config.cache).depth)
    root = config.depth_root if depth else None
    frames = _open_frames(config.index, config.frame_size, config.keep_aspect, root)
    return frames if config.cache is None else _open_cache(config.cache, frames)


@cache
def _open_frames(index: tuple[Path, ...], size: int, keep_aspect: bool, depth_root: Path | None) -> FrameSource:
    table, roots, _ = load_index(index)
    if depth_root is not None:
        check_depth(table, depth_root)
    return FrameSource(table, roots, size, keep_aspect=keep_aspect, depth_root=depth_root)


_open_cache = cache(CachedSource)


def read_rows(source: FrameSource | CachedSource, rows: Rows) -> dict[str, np.ndarray]:
    """The batch of these rows."""
    examples = [source[int(row)] for row in rows]
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def train_order(polyps: list[Rows], digest: str, frames_per_polyp: int, batch_size: int, seed: int) -> BatchOrder:
    """Some frames of every polyp in each epoch."""
    length = epoch_length(polyps, frames_per_polyp)
    check_integer("train.batch_size", batch_size, 1, length)
    fingerprint = {"seed": seed, "frames_per_polyp": frames_per_polyp, "rows": digest}
    return BatchOrder(partial(sample_epoch, polyps, frames_per_polyp, seed), length, batch_size, True, fingerprint)


def eval_batches(
    source: FrameSource | CachedSource, rows: Rows, batch_size: int, threads: int
) -> Iterator[dict[str, np.ndarray]]:
    """These rows in order, each once; batches of one size, the last one padded, see `fsg_jax.data.pad_batch`."""
    size = min(batch_size, len(rows))
    order = in_order(len(rows), size, drop_remainder=False)
    loader = Loader(order, lambda places: read_rows(source, rows[places]), threads=threads, num_epochs=1)
    with closing(iter(loader)) as iterator:
        for batch in iterator:
            yield pad_batch(batch, size)
