"""Fixed, stratified splits."""

import numpy as np
from jaxtyping import Int, Int64

from fsg_jax._checks import check_integer
from fsg_jax.data.images import ImageDataset


def _per_class(counts: np.ndarray, size: int) -> np.ndarray:
    """Returns the rows to take of each class: ``size * counts / sum(counts)``, rounded by the largest remainder."""
    quotas, remainders = np.divmod(size * counts.astype(np.int64), counts.sum())
    missing = size - quotas.sum()
    quotas[np.argsort(-remainders, kind="stable")[:missing]] += 1
    return quotas


def stratified_holdout(
    labels: Int[np.ndarray, " examples"], size: int, *, seed: int = 0
) -> tuple[Int64[np.ndarray, " train"], Int64[np.ndarray, " holdout"]]:
    """Splits row numbers in two, the second part with ``size`` rows and the class shares of the whole.

    Each class gives ``size * count / examples`` rows, rounded by the largest remainder (ties: the lower
    class), so balanced classes differ by at most one. Both parts are sorted and disjoint, and cover all rows.
    The choice comes from ``numpy.random.RandomState``, whose stream NumPy has frozen, so it never changes.

    Args:
      labels: the class of each row; at least two rows.
      size: rows held out, 1 to ``examples - 1``.
      seed: 0 to 2**32 - 1.

    Returns:
      ``(train_indices, holdout_indices)``.

    Raises:
      ValueError: ``size`` out of range.
    """
    check_integer("size", size, 1, len(labels) - 1)
    classes, counts = np.unique(labels, return_counts=True)
    random = np.random.RandomState(seed)
    held = np.zeros(len(labels), bool)
    for label, quota in zip(classes, _per_class(counts, size), strict=True):
        held[random.permutation(np.flatnonzero(labels == label))[:quota]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def split_test(dataset: ImageDataset, *, fraction: float = 0.2, seed: int = 0) -> tuple[ImageDataset, ImageDataset]:
    """Splits data without an official split into ``(train, test)``, by `stratified_holdout`.

    Args:
      dataset: all rows.
      fraction: the share of test rows, in (0, 1); their number is rounded.
      seed: 0 to 2**32 - 1; keep it fixed, or the test rows change.
    """
    train, test = stratified_holdout(dataset.labels, round(fraction * len(dataset)), seed=seed)
    return dataset.take(train), dataset.take(test)
