"""Folds of polyps, stratified by size, with no patient, video or polyp in two of them."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Int64

from fsg_jax._checks import check_integer
from fsg_jax.data.extras import import_extra
from fsg_jax.endoscopy.index.schema import Table, natural_key
from fsg_jax.endoscopy.index.sort import key_codes, reference_id

PolypKey: TypeAlias = tuple[str, str]
"""``(dataset, polyp_id)``."""

GROUPS = {"patient": "patient_id", "video": "video_id", "polyp": "polyp_id"}
"""What may be kept together, and the column that names it."""

SIZE_GROUPS = ("<= 5 mm", "5 to 10 mm", ">= 10 mm")
"""Names of the size groups that folds are stratified by."""


class SplitError(ValueError):
    """Rows cannot be given roles, or the roles would share what they must not."""


@dataclass(frozen=True)
class Folds:
    """The fold of every polyp.

    Args:
      num_folds: number of folds, 3 or more: one tests, one validates, the rest train.
      group: what is in one fold only: ``"patient"``, ``"video"`` or ``"polyp"``.
      fold_of: the fold, 0 to ``num_folds - 1``, of each ``(dataset, polyp_id)``.

    Raises:
      ValueError: a value out of its range.
    """

    num_folds: int
    group: str
    fold_of: Mapping[PolypKey, int]

    def __post_init__(self) -> None:
        check_integer("num_folds", self.num_folds, 3)
        _check_group(self.group)
        for (dataset, polyp), fold in self.fold_of.items():
            check_integer(f"fold of {dataset} {polyp}", fold, 0, self.num_folds - 1)

    def table(self) -> Table:
        """Columns dataset, polyp_id and fold, polyps in natural order."""
        pa = import_extra("pyarrow", "endoscopy")
        keys = sorted(self.fold_of, key=polyp_order)
        columns = {"dataset": [k[0] for k in keys], "polyp_id": [k[1] for k in keys]}
        return pa.table(columns | {"fold": pa.array([self.fold_of[k] for k in keys], pa.int32())})


class FoldCount(NamedTuple):
    """Polyps, and frames that show one of them, of one size group in one fold."""

    fold: int
    size_group: str
    polyps: int
    frames: int


def make_folds(table: Table, num_folds: int = 6, group: str = "patient", seed: int = 1) -> Folds:
    """Deals polyps to folds so that each has its share of the three size groups; deterministic.

    With ``group="polyp"`` it is scikit-learn's `StratifiedKFold`, shuffled, over the polyps sorted by id, integers
    (SUN) first: the way of the reference implementation, which lets a patient or video with two polyps be in two
    folds. Otherwise `StratifiedGroupKFold` over the groups in an order by `seed`; a polyp in two groups joins them.
    The order of rows is never used. Another version of scikit-learn may deal otherwise: keep the folds in a file.

    Args:
      table: an index; every polyp has one size in mm. A censored size counts as its bound.
      num_folds: number of folds, 3 or more.
      group: ``"patient"``, ``"video"`` or ``"polyp"``: what is kept in one fold.
      seed: 0 to 2**32 - 1.

    Raises:
      ValueError: an argument out of its range.
      SplitError: a polyp without a size or with two, or too few polyps or groups for the folds.
    """
    check_integer("num_folds", num_folds, 3)
    check_integer("seed", seed, 0, 2**32 - 1)
    _check_group(group)
    sizes = polyp_sizes(table)
    keys = sorted(sizes, key=_reference_order if group == "polyp" else polyp_order)
    labels = np.array([size_group(sizes[key]) for key in keys])
    groups = _group_numbers(table, keys, group)
    _check_enough(labels, groups, num_folds, group)
    fold_of: dict[PolypKey, int] = {}
    for fold, rows in enumerate(_deal(labels, None if group == "polyp" else groups, num_folds, seed)):
        fold_of |= {keys[row]: fold for row in rows}
    return Folds(num_folds, group, fold_of)


def size_group(size_mm: float) -> int:
    """0 for 5 mm or less, 2 for 10 mm or more, 1 between; the number is that of `SIZE_GROUPS`."""
    return 0 if size_mm <= 5 else 1 if size_mm < 10 else 2


def polyp_order(key: PolypKey) -> tuple[Any, ...]:
    """Sort key: datasets and polyps in natural order."""
    return natural_key(key[0]), natural_key(key[1])


def polyp_sizes(table: Table) -> dict[PolypKey, float]:
    """The size in mm of every polyp.

    Raises:
      SplitError: a polyp has none, one that is not above 0, or two.
    """
    distinct = table.group_by(["dataset", "polyp_id", "size_mm"]).aggregate([])
    sizes: dict[PolypKey, float] = {}
    for row in sorted(distinct.to_pylist(), key=lambda row: polyp_order((row["dataset"], row["polyp_id"]))):
        key, size = (row["dataset"], row["polyp_id"]), row["size_mm"]
        if size is None or not 0 < size < math.inf:
            raise SplitError(f"{key[0]} {key[1]}: the size is {size}; expected mm above 0, folds are stratified by it")
        if sizes.setdefault(key, size) != size:
            raise SplitError(f"{key[0]} {key[1]}: sizes {sizes[key]:g} and {size:g} mm; expected one")
    return sizes


def group_counts(table: Table, folds: Folds) -> list[FoldCount]:
    """One count for every fold and size group; a frame with polyps of several counts in each.

    Raises:
      SplitError: a polyp of the table has no fold or no size.
    """
    sizes = polyp_sizes(table)
    polyps, keys = key_codes(table, ["dataset", "polyp_id"])
    cells = np.array(
        [folds_of(folds, keys), [size_group(sizes[dataset, polyp]) for dataset, polyp in keys]], np.int64
    ).reshape(2, -1)
    frames, _ = key_codes(table, ["dataset", "image_path"])
    shown = np.unique(np.stack([*cells[:, polyps], frames]), axis=1)[:2]
    return [
        FoldCount(fold, name, _count(cells, fold, i), _count(shown, fold, i))
        for fold in range(folds.num_folds)
        for i, name in enumerate(SIZE_GROUPS)
    ]


def folds_of(folds: Folds, keys: list[Any]) -> list[int]:
    """The fold of each ``(dataset, polyp_id)``.

    Raises:
      SplitError: some have none.
    """
    missing = sorted((key for key in keys if key not in folds.fold_of), key=polyp_order)
    if missing:
        raise SplitError(f"{len(missing)} polyps of the index have no fold: {name_some(missing)}")
    return [folds.fold_of[key] for key in keys]


def name_some(keys: list[Any], at_most: int = 5) -> str:
    """The first few keys in words."""
    named = ", ".join(" ".join(key) for key in keys[:at_most])
    return named + (f" and {len(keys) - at_most} more" if len(keys) > at_most else "")


def _count(cells: Int64[np.ndarray, "2 items"], fold: int, group: int) -> int:
    return int(np.sum((cells[0] == fold) & (cells[1] == group)))


def _check_group(group: str) -> None:
    if group not in GROUPS:
        raise ValueError(f"group is {group!r}; expected one of {', '.join(map(repr, GROUPS))}")


def _reference_order(key: PolypKey) -> tuple[Any, ...]:
    """Integers by their value, then text: how pandas sorts a column that has both."""
    plain = reference_id(*key)
    return not plain.isdecimal(), int(plain) if plain.isdecimal() else 0, plain, key


def _group_numbers(table: Table, keys: list[PolypKey], group: str) -> Int64[np.ndarray, " polyps"]:
    """A number for each polyp; the same where polyps are of one group, directly or by way of a third."""
    sparse = import_extra("scipy.sparse", "endoscopy")
    pairs = table.group_by(list(dict.fromkeys(["dataset", "polyp_id", GROUPS[group]]))).aggregate([]).to_pylist()
    polyps = {key: i for i, key in enumerate(keys)}
    names: dict[PolypKey, int] = {}
    ends = [
        (polyps[row["dataset"], row["polyp_id"]], names.setdefault((row["dataset"], row[GROUPS[group]]), len(names)))
        for row in pairs
    ]
    left, right = np.array(ends, np.int64).reshape(-1, 2).T
    size = len(keys) + len(names)
    graph = sparse.coo_array((np.ones(len(left)), (left, right + len(keys))), shape=(size, size))
    _, parts = sparse.csgraph.connected_components(graph, directed=False)
    _, first, numbers = np.unique(parts[: len(keys)], return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[numbers]  # by first polyp, whatever the order of rows


def _check_enough(labels: np.ndarray, groups: np.ndarray, num_folds: int, group: str) -> None:
    if (found := len(np.unique(groups))) < num_folds:
        raise SplitError(f"num_folds is {num_folds}, but there are {found} {group} groups; expected one a fold or more")
    counts = np.bincount(labels, minlength=len(SIZE_GROUPS))
    if max(counts) < num_folds:
        found_text = ", ".join(f"{n} of {name}" for n, name in zip(counts, SIZE_GROUPS, strict=True))
        raise SplitError(f"num_folds is {num_folds}, but there are {found_text}; one size group needs a polyp a fold")


def _deal(labels: np.ndarray, groups: np.ndarray | None, num_folds: int, seed: int) -> list[np.ndarray]:
    """The polyps of each fold."""
    selection = import_extra("sklearn.model_selection", "endoscopy")
    if groups is None:
        splitter = selection.StratifiedKFold(num_folds, shuffle=True, random_state=int(seed))
    else:  # shuffled here: in older versions the splitter's own shuffle loses the stratification (scikit-learn #32540)
        splitter = selection.StratifiedGroupKFold(num_folds)
        groups = np.argsort(np.random.RandomState(seed).permutation(groups.max() + 1))[groups]
    with warnings.catch_warnings():  # a size group with fewer polyps than folds: `group_counts` shows it
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        return [rows for _, rows in splitter.split(labels, labels, groups)]
