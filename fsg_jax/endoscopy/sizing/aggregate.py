"""From frames to polyps."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from fsg_jax.endoscopy.index.schema import natural_key


class PolypPredictions(NamedTuple):
    """One row per polyp, in natural order of `polyp`; all values have shape (polyps,).

    `low_mm` and `high_mm` are the quartiles of the predictions of its frames.
    """

    polyp: list[str]
    size_mm: np.ndarray
    num_frames: np.ndarray
    predicted_mm: np.ndarray
    low_mm: np.ndarray
    high_mm: np.ndarray


def aggregate_sizes(
    polyp: Sequence[str], size_mm: Float[np.ndarray, " frames"], predicted_mm: Float[np.ndarray, " frames"]
) -> PolypPredictions:
    """Returns the median prediction over the frames of each polyp. A NaN among them makes it NaN.

    Args:
        polyp: which polyp each frame shows; unique over datasets, as "dataset/polyp_id" is.
        size_mm: true sizes, the same in all frames of a polyp.
        predicted_mm: in mm.

    Raises:
        ValueError: there are no frames, lengths differ, or a polyp has two sizes.
    """
    names, sizes, counts, groups = _polyps(polyp, size_mm, predicted_mm)
    low, median, high = np.array([np.percentile(predicted_mm[rows], (25, 50, 75)) for rows in groups]).T
    return PolypPredictions(names, sizes, counts, median, low, high)


def aggregate_probabilities(
    polyp: Sequence[str], size_mm: Float[np.ndarray, " frames"], probabilities: Mapping[str, np.ndarray]
) -> tuple[list[str], np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Averages the probability of every class over the frames of each polyp.

    Args:
        polyp: as for `aggregate_sizes`.
        size_mm: as for `aggregate_sizes`.
        probabilities: (frames,) by class.

    Returns:
        Polyps in natural order, their sizes in mm, their numbers of frames, and the means by class.

    Raises:
        ValueError: as `aggregate_sizes`.
    """
    names, sizes, counts, groups = _polyps(polyp, size_mm, *probabilities.values())
    means = {name: np.array([values[rows].mean() for rows in groups]) for name, values in probabilities.items()}
    return names, sizes, counts, means


def group_rows(polyp: Sequence[str] | np.ndarray, *columns: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the rows of every polyp; polyps are sorted by name, so the order of the rows does not change theirs.

    Raises:
        ValueError: there are no rows or no columns, or a column has another number of rows than ``polyp``.
    """
    if not len(polyp) or not columns:
        raise ValueError("polyp, columns: expected at least one row and one column, found none")
    if any(len(column) != len(polyp) for column in columns):
        raise ValueError(f"columns: expected {len(polyp)} rows as polyp has, found {[len(each) for each in columns]}")
    found, inverse, counts = np.unique(np.asarray(polyp, dtype=str), return_inverse=True, return_counts=True)
    groups = np.split(np.argsort(inverse, kind="stable"), np.cumsum(counts)[:-1])
    return dict(zip(found.tolist(), groups, strict=True))


def _polyps(
    polyp: Sequence[str], size_mm: np.ndarray, *columns: np.ndarray
) -> tuple[list[str], np.ndarray, np.ndarray, list[np.ndarray]]:
    """Returns names in natural order, the size, the number of frames, and the rows of every polyp."""
    groups = group_rows(polyp, size_mm, *columns)
    names = sorted(groups, key=natural_key)
    for name in names:
        if len(sizes := np.unique(size_mm[groups[name]])) != 1:
            raise ValueError(f"size_mm: expected one size of polyp {name!r}, found {sizes.tolist()[:5]}")
    rows = [groups[name] for name in names]
    return names, np.array([size_mm[each[0]] for each in rows]), np.array([len(each) for each in rows]), rows
