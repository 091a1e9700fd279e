"""Folds of polyps, stratified by size; no patient (or video, or polyp) is in two of them."""

import math
import re
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Int64

from fsg_jax._checks import check_choice, check_integer, expect
from fsg_jax.data.extras import import_extra
from fsg_jax.endoscopy.index.schema import Table, key_codes, natural_key

PolypKey: TypeAlias = tuple[str, str]
"""``(dataset, polyp_id)``."""

GROUPS = {"patient": "patient_id", "video": "video_id", "polyp": "polyp_id"}
"""What may be kept together, and the column that names it."""

MAX_FOLDS = 1000
"""More are a mistake, and would take long to count."""

SIZE_GROUPS = ("<= 5 mm", "5 to 10 mm", ">= 10 mm")
"""Names of the size groups that folds are stratified by."""


class SplitError(ValueError):
    """Rows cannot be given roles, or the roles would share what they must not."""


@dataclass(frozen=True)
class Folds:
    """The fold of every polyp.

    Args:
      num_folds: number of folds, 3 to `MAX_FOLDS`: one tests, one validates, the rest train.
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
        expect(self.num_folds <= MAX_FOLDS, "num_folds", f"at most {MAX_FOLDS}", self.num_folds)
        check_choice("group", self.group, GROUPS)
        for (dataset, polyp), fold in self.fold_of.items():
            check_integer(f"fold of {dataset} {polyp}", fold, 0, self.num_folds - 1)


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
    check_choice("group", group, GROUPS)
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
            raise SplitError(f"size of {key[0]} {key[1]}: expected mm above 0 to stratify folds by, found {size}")
        if sizes.setdefault(key, size) != size:
            raise SplitError(f"size of {key[0]} {key[1]}: expected one, found {sizes[key]:g} and {size:g} mm")
    return sizes


def group_counts(table: Table, folds: Folds) -> list[FoldCount]:
    """One count for every fold and size group; a frame with polyps of several counts in each.

    Raises:
      SplitError: a polyp of the table has no fold or no size.
    """
    sizes = polyp_sizes(table)
    codes, keys = key_codes(table, ["dataset", "polyp_id"])
    groups = [size_group(sizes[dataset, polyp]) for dataset, polyp in keys]
    cells = list(zip(folds_of(folds, keys), groups, strict=True))
    frames, _ = key_codes(table, ["dataset", "image_path"])
    shown = {(cells[polyp], frame) for polyp, frame in zip(codes.tolist(), frames.tolist(), strict=True)}
    polyp_counts, frame_counts = Counter(cells), Counter(cell for cell, _ in shown)
    return [
        FoldCount(fold, name, polyp_counts[fold, group], frame_counts[fold, group])
        for fold in range(folds.num_folds)
        for group, name in enumerate(SIZE_GROUPS)
    ]


def folds_of(folds: Folds, keys: list[Any]) -> list[int]:
    """The fold of each ``(dataset, polyp_id)``.

    Raises:
      SplitError: some have none.
    """
    if missing := sorted(set(keys) - folds.fold_of.keys(), key=polyp_order):
        raise SplitError(f"folds: expected a fold for every polyp, found none for {len(missing)}: {name_some(missing)}")
    return [folds.fold_of[key] for key in keys]


def name_some(keys: list[Any], at_most: int = 5) -> str:
    """The first few keys in words."""
    named = ", ".join(" ".join(key) for key in keys[:at_most])
    return named + (f" and {len(keys) - at_most} more" if len(keys) > at_most else "")


def reference_id(dataset: str, text: str) -> str:
    """A polyp or video id as published lists write it: SUN cases are integers there, ``case012`` is ``12``."""
    match = re.fullmatch(r"(?:case)?(\d{1,99})(?:\.0*)?", text) if dataset == "sun" else None
    return str(int(match[1])) if match else text


def whole_id(dataset: str, text: str) -> str:
    """An id as the index writes it: a SUN case that a program has made a decimal, ``12.0``, is ``12``."""
    return reference_id(dataset, text) if text.endswith((".", ".0")) else text


def _reference_order(key: PolypKey) -> tuple[Any, ...]:
    """Integers by their value, then text: how pandas sorts a column that has both."""
    plain = reference_id(*key)
    return not plain.isdecimal(), int(plain) if plain.isdecimal() else 0, plain, key


def _group_numbers(table: Table, keys: list[PolypKey], group: str) -> Int64[np.ndarray, " polyps"]:
    """A number for each polyp; the same where polyps are of one group, directly or by way of a third."""
    above: dict[tuple[str, ...], tuple[str, ...]] = {}  # a forest: what leads to one root is one group

    def root_of(node: tuple[str, ...]) -> tuple[str, ...]:
        while (parent := above.setdefault(node, node)) != node:
            node = parent
        return node

    for row in table.group_by(list(dict.fromkeys(["dataset", "polyp_id", GROUPS[group]]))).aggregate([]).to_pylist():
        above[root_of((row["dataset"], row["polyp_id"]))] = root_of((group, row["dataset"], row[GROUPS[group]]))
    numbers: dict[tuple[str, ...], int] = {}
    return np.array([numbers.setdefault(root_of(key), len(numbers)) for key in keys])


def _check_enough(labels: np.ndarray, groups: np.ndarray, num_folds: int, group: str) -> None:
    if (found := len(np.unique(groups))) < num_folds:
        raise SplitError(f"num_folds: expected at most {found}, a fold for every {group} group, found {num_folds}")
    counts = np.bincount(labels, minlength=len(SIZE_GROUPS))
    if max(counts) < num_folds:
        polyps = ", ".join(f"{n} of {name}" for n, name in zip(counts, SIZE_GROUPS, strict=True))
        raise SplitError(f"num_folds: expected at most {max(counts)}, as there are {polyps}, found {num_folds}")


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
