"""Which rows train, validate and test."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from fsg_jax._checks import check_integer
from fsg_jax.endoscopy.index.folds import GROUPS, Folds, SplitError, folds_of, name_some
from fsg_jax.endoscopy.index.schema import Table
from fsg_jax.endoscopy.index.sort import key_codes, natural_order

ROLES = ("train", "validation", "test")


class Shared(NamedTuple):
    """How many patients, videos and frames have polyps in two roles or three; none where patients are kept together."""

    patients: int
    videos: int
    frames: int


class Roles(NamedTuple):
    """Row numbers of each role, in natural order, and what the roles share."""

    train: Int64[np.ndarray, " train"]
    validation: Int64[np.ndarray, " validation"]
    test: Int64[np.ndarray, " test"]
    shared: Shared


def roles(table: Table, folds: Folds, fold: int) -> Roles:
    """Test rows are of fold `fold`, validation rows of the one after it (fold 0 after the last), the rest train.

    Args:
      table: an index, its rows in any order.
      folds: the fold of every polyp of the index.
      fold: 0 to ``folds.num_folds - 1``.

    Raises:
      ValueError: `fold` out of range.
      SplitError: a polyp has no fold; a polyp, or what `folds.group` keeps together, is in two roles; a role has no
        rows.
    """
    check_integer("fold", fold, 0, folds.num_folds - 1)
    polyps, keys = key_codes(table, ["dataset", "polyp_id"])
    role = _role_of(np.array(folds_of(folds, keys), np.int64), folds.num_folds, fold)[polyps]
    for group in dict.fromkeys(["polyp", folds.group]):
        if both := _shared(table, GROUPS[group], role):
            raise SplitError(f"fold {fold}: {len(both)} of group {group!r} are in two roles: {name_some(both)}")
    order = natural_order(table)
    parts = train, validation, test = tuple(order[role[order] == i] for i in range(3))
    for name, part in zip(ROLES, parts, strict=True):
        if not len(part):
            raise SplitError(f"fold {fold}: no row of the index has the role {name!r}; expected rows in every role")
    if not np.array_equal(np.sort(np.concatenate(parts)), np.arange(table.num_rows)):
        raise SplitError(f"fold {fold}: a row has two roles or none")
    counts = (len(_shared(table, column, role)) for column in ("patient_id", "video_id", "image_path"))
    return Roles(train, validation, test, Shared(*counts))


def _role_of(fold_of: Int64[np.ndarray, " polyps"], num_folds: int, fold: int) -> Int64[np.ndarray, " polyps"]:
    role = np.zeros_like(fold_of)
    role[fold_of == (fold + 1) % num_folds] = 1
    role[fold_of == fold] = 2
    return role


def _shared(table: Table, column: str, role: Int64[np.ndarray, " rows"]) -> list[tuple[str, ...]]:
    """The ``(dataset, value)`` that have rows in more than one role."""
    codes, keys = key_codes(table, ["dataset", column])
    seen = np.zeros((len(keys), len(ROLES)), bool)
    seen[codes, role] = True
    return [keys[i] for i in np.flatnonzero(seen.sum(axis=1) > 1)]
