"""What a network must beat: the mean size of the training polyps, and a regression on the area of the box."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Int, Real

from fsg_jax._checks import check_choice
from fsg_jax.data.extras import import_extra
from fsg_jax.endoscopy.sizing.scaling import check_sizes

Areas: TypeAlias = Float[np.ndarray, " frames"]
Predictor: TypeAlias = Callable[[Areas], np.ndarray]
"""Relative box areas of frames to sizes in mm."""


def relative_area(
    box: Real[np.ndarray, "frames 4"], width: Int[np.ndarray, " frames"], height: Int[np.ndarray, " frames"]
) -> Areas:
    """Returns the share of the frame that the box covers, in (0, 1].

    Args:
        box: xmin, ymin, xmax, ymax in pixels, half-open.
        width: of the frame, pixels.
        height: of the frame, pixels.

    Raises:
        ValueError: a box is empty or larger than its frame.
    """
    area = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]) / (np.asarray(width, np.float64) * height)
    return _check_area(area)


def fit_mean(size_mm: Float[np.ndarray, " frames"], polyp: Sequence[str]) -> Predictor:
    """Returns a predictor of the mean training size, with each polyp counted once whatever its number of frames.

    Args:
        size_mm: of every training frame.
        polyp: which polyp each frame shows; unique over datasets.

    Raises:
        ValueError: there are no frames, or a size is not finite and above 0.
    """
    mean = float(np.average(check_sizes("size_mm", size_mm), weights=_one_per_polyp(polyp)))
    return lambda area: np.full(len(area), mean)


def fit_box_area(
    size_mm: Float[np.ndarray, " frames"], area: Areas, polyp: Sequence[str], kind: str = "linear"
) -> Predictor:
    """Regresses log size on log area over training frames; every polyp has the same weight in total.

    Args:
        size_mm: of every training frame.
        area: relative to the frame; see `relative_area`.
        polyp: which polyp each frame shows; unique over datasets.
        kind: ``linear``, or ``isotonic``: rising, constant beyond the areas seen.

    Raises:
        ValueError: as `fit_mean`; an area is outside (0, 1]; or the kind is unknown.
    """
    target, weights = np.log(check_sizes("size_mm", size_mm)), _one_per_polyp(polyp)
    check_choice("kind", kind, ("linear", "isotonic"))
    if kind == "linear":
        model = import_extra("sklearn.linear_model", "endoscopy").LinearRegression()
    else:
        model = import_extra("sklearn.isotonic", "endoscopy").IsotonicRegression(out_of_bounds="clip")
    model.fit(_column(area), target, sample_weight=weights)
    return lambda area: np.exp(model.predict(_column(area)))


def _column(area: Areas) -> np.ndarray:
    return np.log(_check_area(np.asarray(area, np.float64)))[:, None]


def _one_per_polyp(polyp: Sequence[str]) -> np.ndarray:
    _, inverse, counts = np.unique(np.asarray(polyp, dtype=str), return_inverse=True, return_counts=True)
    return 1 / counts[inverse]


def _check_area(area: np.ndarray) -> np.ndarray:
    if len(wrong := area[~((area > 0) & (area <= 1))]):
        raise ValueError(f"area: expected shares of the frame in (0, 1], found {wrong[:3]}")
    return area
