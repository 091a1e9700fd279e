"""Confidence intervals from a bootstrap over polyps: frames of one polyp are not independent."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from fsg_jax._checks import check_choice, check_integer
from fsg_jax.data.extras import import_extra
from fsg_jax.endoscopy.sizing.aggregate import group_rows

Polyps: TypeAlias = Sequence[str] | np.ndarray
"""(rows,), which polyp each row belongs to; unique over datasets."""

Metric: TypeAlias = Callable[..., Any]
"""``metric(*columns)``: a number or a vector (k,) from columns of equal length."""

MAX_UNDEFINED = 0.05
"""Share of the resamples that may lack a value."""


class Interval(NamedTuple):
    """The metric of the data and the ends of its interval: floats, or arrays (k,) where the metric is a vector.

    The ends are NaN where there is no interval: fewer than two polyps, or a metric that is NaN on more than 5 % of the
    resamples (on any, for ``bca``). Fewer, which may lack a class for instance, are left out.
    """

    value: Any
    low: Any
    high: Any


def bootstrap(
    metric: Metric,
    columns: Sequence[np.ndarray],
    polyp: Polyps,
    *,
    n_resamples: int = 2000,
    confidence: float = 0.95,
    method: str = "percentile",
    seed: int = 0,
) -> Interval:
    """Returns the interval of ``metric(*columns)`` when polyps, with all their rows, are drawn with replacement.

    The cluster bootstrap (Field and Welsh 2007, section 2) with the intervals of `scipy.stats.bootstrap`. For metrics
    per polyp give one row per polyp. The order of the rows changes nothing if it does not change the metric.

    Args:
        metric: see `Metric`.
        columns: (rows, ...) each: truth, prediction, weight, whatever the metric takes.
        polyp: see `Polyps`.
        n_resamples: at least 1.
        confidence: in (0, 1), two-sided.
        method: ``percentile``, or ``bca``, bias-corrected and accelerated (Efron 1987): nearer to its nominal level,
            but NaN where the resamples are nearly all equal.
        seed: of the resampling; equal seeds draw equal polyps.

    Raises:
        ValueError: there are no rows, lengths differ, or an argument is outside its range.
    """
    check_integer("n_resamples", n_resamples, 1)
    check_choice("method", method, ("percentile", "bca"))
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: expected a number in (0, 1), found {confidence}")
    arrays = [np.asarray(column) for column in columns]
    groups = list(group_rows(polyp, *arrays).values())
    value = np.asarray(metric(*arrays), np.float64)
    if len(groups) < 2:
        missing = np.full(value.shape, np.nan)[()]
        return Interval(value[()], missing, missing)

    def statistic(drawn: np.ndarray) -> np.ndarray:
        rows = np.concatenate([groups[index] for index in drawn])
        return np.asarray(metric(*(array[rows] for array in arrays)), np.float64)

    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # the interval is NaN then, and says so
        result = import_extra("scipy.stats", "endoscopy").bootstrap(
            (np.arange(len(groups)),),
            statistic,
            vectorized=False,
            n_resamples=n_resamples,
            confidence_level=confidence,
            method=method,
            rng=np.random.default_rng(seed),
        )
        low, high = result.confidence_interval
        if method == "percentile" and np.isnan(low).any():
            low, high = _percentiles(result.bootstrap_distribution, confidence)
    return Interval(value[()], low, high)


def paired_difference(
    metric: Metric, truth: np.ndarray, predicted: np.ndarray, other: np.ndarray, polyp: Polyps, **options: Any
) -> Interval:
    """Returns the interval of ``metric(truth, predicted) - metric(truth, other)``, both on the same resampled polyps.

    Args:
        metric: see `Metric`.
        truth: (rows,).
        predicted: predictions of the one predictor.
        other: predictions of the other one, for the same rows.
        polyp: see `Polyps`.
        options: those of `bootstrap`.

    Raises:
        ValueError: as `bootstrap`.
    """

    def difference(truth: np.ndarray, predicted: np.ndarray, other: np.ndarray) -> Any:
        return np.asarray(metric(truth, predicted)) - np.asarray(metric(truth, other))

    return bootstrap(difference, (truth, predicted, other), polyp, **options)


def _percentiles(values: np.ndarray, confidence: float) -> tuple[Any, Any]:
    """Returns percentiles over the last axis of what is not NaN, or NaN where that is too little."""
    tails = ((1 - confidence) / 2, (1 + confidence) / 2)
    low, high = np.nanquantile(values, tails, axis=-1)
    enough = np.isnan(values).mean(-1) <= MAX_UNDEFINED
    return np.where(enough, low, np.nan)[()], np.where(enough, high, np.nan)[()]
