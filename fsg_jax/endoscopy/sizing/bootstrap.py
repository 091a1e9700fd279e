"""Confidence intervals from a bootstrap over polyps: frames of one polyp are not independent."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fsg_jax._checks import look_up
from fsg_jax.data.extras import import_extra

Metric = Callable[..., Any]
"""``metric(*columns)``: a number or a vector (k,) from columns of equal length."""

METHODS = {"percentile": "percentile", "bca": "BCa"}
"""Kinds of intervals and their names in SciPy."""

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
    polyp: Sequence[str] | np.ndarray,
    *,
    n_resamples: int = 2000,
    confidence: float = 0.95,
    method: str = "percentile",
    seed: int = 0,
) -> Interval:
    """The interval of ``metric(*columns)`` when polyps, with all their rows, are drawn with replacement.

    The cluster bootstrap (Field and Welsh 2007, section 2) with the intervals of `scipy.stats.bootstrap`. For metrics
    per polyp give one row per polyp. The order of the rows changes nothing if it does not change the metric.

    Args:
        metric: see `Metric`.
        columns: (rows, ...) each: truth, prediction, weight, whatever the metric takes.
        polyp: (rows,), which polyp each row belongs to; unique over datasets.
        n_resamples: at least 1.
        confidence: in (0, 1), two-sided.
        method: ``percentile``, or ``bca``, bias-corrected and accelerated (Efron 1987): nearer to its nominal level,
            but NaN where the resamples are nearly all equal.
        seed: of the resampling; equal seeds draw equal polyps.

    Raises:
        ValueError: no rows, unequal lengths, or an argument outside its range.
    """
    _check(n_resamples, confidence, method)
    arrays = [np.asarray(column) for column in columns]
    groups = _rows_by_polyp(np.asarray(polyp, dtype=str), arrays)
    value = np.asarray(metric(*arrays), np.float64)
    if len(groups) < 2:
        missing = np.full(value.shape, np.nan)
        return Interval(value[()], missing[()], missing[()])

    def statistic(drawn: np.ndarray) -> np.ndarray:
        rows = np.concatenate([groups[index] for index in drawn])
        return np.asarray(metric(*(array[rows] for array in arrays)), np.float64)

    low, high = _interval(statistic, len(groups), n_resamples, confidence, method, seed)
    return Interval(value[()], low, high)


def paired_difference(
    metric: Metric,
    truth: np.ndarray,
    predicted: np.ndarray,
    other: np.ndarray,
    polyp: Sequence[str] | np.ndarray,
    **options: Any,
) -> Interval:
    """The interval of ``metric(truth, predicted) - metric(truth, other)``, both on the same resampled polyps.

    Args:
        metric: see `Metric`.
        truth: (rows,).
        predicted, other: predictions of two predictors for the same rows.
        polyp: (rows,).
        options: those of `bootstrap`.

    Raises:
        ValueError: as `bootstrap`.
    """

    def difference(truth: np.ndarray, predicted: np.ndarray, other: np.ndarray) -> Any:
        return np.asarray(metric(truth, predicted)) - np.asarray(metric(truth, other))

    return bootstrap(difference, (truth, predicted, other), polyp, **options)


def _interval(
    statistic: Callable[[np.ndarray], np.ndarray],
    count: int,
    n_resamples: int,
    confidence: float,
    method: str,
    seed: int,
) -> tuple[Any, Any]:
    stats = import_extra("scipy.stats", "endoscopy")
    with warnings.catch_warnings():
        # The interval is NaN then, which says as much.
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        result = stats.bootstrap(
            (np.arange(count),),
            statistic,
            vectorized=False,
            n_resamples=n_resamples,
            confidence_level=confidence,
            method=METHODS[method],
            rng=np.random.default_rng(seed),
        )
        low, high = result.confidence_interval
        if method == "percentile" and np.isnan(low).any():
            return _percentiles(result.bootstrap_distribution, confidence)
    return low, high


def _percentiles(values: np.ndarray, confidence: float) -> tuple[Any, Any]:
    """Percentiles over the last axis of what is not NaN, where that is enough."""
    tails = ((1 - confidence) / 2, (1 + confidence) / 2)
    low, high = np.nanquantile(values, tails, axis=-1)
    enough = np.isnan(values).mean(-1) <= MAX_UNDEFINED
    return np.where(enough, low, np.nan)[()], np.where(enough, high, np.nan)[()]


def _rows_by_polyp(polyp: np.ndarray, columns: list[np.ndarray]) -> list[np.ndarray]:
    """The rows of each polyp, polyps sorted by name so that the draws do not depend on the order of the rows."""
    if not len(polyp) or not columns:
        raise ValueError("columns, polyp: expected at least one column and one row, found none")
    if any(len(column) != len(polyp) for column in columns):
        raise ValueError(f"columns: expected {len(polyp)} rows as polyp has, found {[len(c) for c in columns]}")
    _, inverse, counts = np.unique(polyp, return_inverse=True, return_counts=True)
    return np.split(np.argsort(inverse, kind="stable"), np.cumsum(counts)[:-1])


def _check(n_resamples: int, confidence: float, method: str) -> None:
    if n_resamples < 1:
        raise ValueError(f"n_resamples: expected at least 1, found {n_resamples}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: expected a number in (0, 1), found {confidence}")
    look_up(METHODS, method, "method")
