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
    """The median prediction over the frames of each polyp. A NaN among them makes it NaN.

    Args:
        polyp: which polyp each frame shows; unique over datasets, as "dataset/polyp_id" is.
        size_mm: true sizes, the same in all frames of a polyp.
        predicted_mm: in mm.

    Raises:
        ValueError: no frames, unequal lengths, or a polyp of two sizes.
    """
    names, groups = _group(polyp, size_mm, predicted_mm)
    quartiles = np.array([np.percentile(predicted_mm[rows], (25, 50, 75)) for rows in groups])
    low, median, high = quartiles.T
    counts = np.array([len(rows) for rows in groups])
    return PolypPredictions(names, _one_size(names, groups, size_mm), counts, median, low, high)


def aggregate_probabilities(
    polyp: Sequence[str], size_mm: Float[np.ndarray, " frames"], probabilities: Mapping[str, np.ndarray]
) -> tuple[list[str], np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """The mean probability of every class over the frames of each polyp.

    Args:
        polyp, size_mm: as for `aggregate_sizes`.
        probabilities: (frames,) by class.

    Returns:
        Polyps in natural order, their sizes in mm, their numbers of frames, and the means by class.

    Raises:
        ValueError: as `aggregate_sizes`.
    """
    names, groups = _group(polyp, size_mm, *probabilities.values())
    means = {name: np.array([values[rows].mean() for rows in groups]) for name, values in probabilities.items()}
    return names, _one_size(names, groups, size_mm), np.array([len(rows) for rows in groups]), means


def _group(polyp: Sequence[str], *columns: np.ndarray) -> tuple[list[str], list[np.ndarray]]:
    """Names of the polyps, in natural order, and the rows of each."""
    if not len(polyp):
        raise ValueError("polyp: expected at least one frame, found none")
    if any(len(column) != len(polyp) for column in columns):
        raise ValueError(f"expected {len(polyp)} values in every column, found {[len(column) for column in columns]}")
    found, inverse, counts = np.unique(np.asarray(polyp, dtype=str), return_inverse=True, return_counts=True)
    groups = np.split(np.argsort(inverse, kind="stable"), np.cumsum(counts)[:-1])
    order = sorted(range(len(found)), key=lambda index: natural_key(str(found[index])))
    return [str(found[index]) for index in order], [groups[index] for index in order]


def _one_size(names: list[str], groups: list[np.ndarray], size_mm: np.ndarray) -> np.ndarray:
    for name, rows in zip(names, groups, strict=True):
        if len(sizes := np.unique(size_mm[rows])) != 1:
            raise ValueError(f"size_mm: expected one size of polyp {name!r}, found {sizes.tolist()[:5]}")
    return np.array([size_mm[rows[0]] for rows in groups])
