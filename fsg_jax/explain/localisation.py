"""Maps over space against masks: made binary, overlap, and whether the largest value lies inside."""

import numpy as np
from jaxtyping import Bool, Float

from fsg_jax._checks import expect
from fsg_jax.data.extras import import_extra

Mask = Bool[np.ndarray, "_height _width"]
Map = Float[np.ndarray, "_height _width"]


def binarise(values: Map, how: float | None = None) -> Mask:
    """The pixels above a threshold.

    Args:
      values: finite.
      how: None takes Otsu's threshold (1979), which parts the values into two classes of the largest variance between
        them, by scikit-image; a share in (0, 1) takes that share of the pixels, those of the largest values, or fewer
        where values are equal.

    Returns:
      A mask; none of the pixels where all values are equal.

    Raises:
      ValueError: values that are not finite, or a share outside (0, 1).
      ImportError: scikit-image is not installed, for Otsu's threshold.
    """
    expect(np.isfinite(values).all(), "values", "finite ones", "NaN or Inf")
    if values.min() == values.max():
        return np.zeros(values.shape, bool)
    if how is None:
        return values > import_extra("skimage.filters", "experiments").threshold_otsu(values)
    expect(0 < how < 1, "how", "None or a share in (0, 1)", how)
    return values > np.quantile(values, 1 - how)


def jaccard(found: Mask, truth: Mask) -> float:
    """``|found and truth| / |found or truth|``, in [0, 1]; 1 of two empty masks.

    Raises:
      ValueError: the shapes differ.
    """
    expect(found.shape == truth.shape, "found", f"shape {truth.shape}", found.shape)
    either = np.count_nonzero(found | truth)
    return np.count_nonzero(found & truth) / either if either else 1.0


def points_inside(values: Map, truth: Mask) -> float:
    """The pointing game (Zhang et al. 2018) without tolerance: the share of the largest values inside the mask.

    0 or 1, or between where several pixels have the largest value.

    Raises:
      ValueError: the shapes differ.
    """
    expect(values.shape == truth.shape, "values", f"shape {truth.shape}", values.shape)
    return float(truth[values == values.max()].mean())
