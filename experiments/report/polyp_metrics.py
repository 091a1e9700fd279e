"""Metrics with their intervals over polyps, per frame and per polyp, of arms and baselines alike."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np

from experiments.report.polyp_predictions import Predictions, align
from fsg_jax.endoscopy import sizing
from fsg_jax.endoscopy.sizing import ClassScheme, Interval

Unit = Literal["polyp", "frame"]
UNITS: tuple[Unit, Unit] = ("polyp", "frame")
Estimates = dict[str, Interval]


class Predictor(NamedTuple):
    """An arm or a baseline: the columns of `data` that hold its predictions."""

    name: str
    data: Predictions
    columns: tuple[str, ...]

    @property
    def classifies(self) -> bool:
        """Whether the columns are probabilities of classes, not sizes in mm."""
        return len(self.columns) > 1


class Rows(NamedTuple):
    """Truth and prediction, in mm or class indices (or probabilities), and the polyp that each row belongs to."""

    truth: np.ndarray
    predicted: np.ndarray
    polyp: np.ndarray


def baselines(data: Predictions) -> list[Predictor]:
    """The baselines on the rows of an arm."""
    return [Predictor(name, data, (name,)) for name in data.baselines]


def predicted(predictor: Predictor, unit: Unit) -> Rows:
    """True sizes in mm, and predicted sizes (rows,) in mm or probabilities (rows, K).

    Of frames; or of polyps, seed by seed: the median of the sizes, the mean of the probabilities over its frames.
    """
    data, columns = predictor.data, predictor.columns
    if unit == "frame":
        values = np.stack([data[name] for name in columns], 1) if predictor.classifies else data[columns[0]]
        return Rows(data["size_mm"], values, data["polyp"])
    parts: list[tuple[Any, ...]] = []
    for seed in np.unique(data["seed"]):
        part = data.take(data["seed"] == seed)
        polyp, size_mm = part["polyp"].tolist(), part["size_mm"]
        if predictor.classifies:
            names, truth, _, means = sizing.aggregate_probabilities(polyp, size_mm, {n: part[n] for n in columns})
            parts.append((truth, np.stack(list(means.values()), 1), names))
        else:
            found = sizing.aggregate_sizes(polyp, size_mm, part[columns[0]])
            parts.append((found.size_mm, found.predicted_mm, found.polyp))
    return Rows(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def classes(predictor: Predictor, unit: Unit, scheme: ClassScheme) -> Rows:
    """Class indices: sizes cut at the thresholds, or the class with the largest (mean) probability."""
    truth, values, polyp = predicted(predictor, unit)
    chosen = values.argmax(1) if predictor.classifies else np.asarray(sizing.class_of(values, scheme))
    return Rows(np.asarray(sizing.class_of(truth, scheme)), chosen, polyp)


def estimates(predictor: Predictor, unit: Unit, scheme: ClassScheme | None, resamples: int) -> Estimates:
    """The metrics of classes; without a scheme those of sizes, correlations too per polyp."""
    if scheme is not None:
        polyp, counts = confusion_by_polyp(classes(predictor, unit, scheme), scheme)
        return _estimates(lambda counts: sizing.scores(counts.sum(0), scheme), (counts,), polyp, resamples)
    rows = predicted(predictor, unit)

    def metrics(truth: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
        more = sizing.correlations(truth, predicted) if unit == "polyp" else {}
        return sizing.regression_metrics(truth, predicted) | more

    return _estimates(metrics, rows[:2], rows.polyp, resamples)


def confusion_by_polyp(rows: Rows, scheme: ClassScheme) -> tuple[np.ndarray, np.ndarray]:
    """Polyps, and the confusion matrix (K, K) of the rows of each."""
    polyp, index = np.unique(rows.polyp, return_inverse=True)
    counts = np.zeros((len(polyp), scheme.num_classes, scheme.num_classes), int)
    np.add.at(counts, (index, rows.truth, rows.predicted), 1)
    return polyp, counts


def difference(one: Predictor, other: Predictor, unit: Unit, scheme: ClassScheme | None, resamples: int) -> Estimates:
    """Metrics of one minus those of the other on the frames both have, ``mae`` of sizes if there is no scheme.

    Empty without any such frame.
    """
    if one.data is not other.data:
        shared = align(one.data, other.data)
        one, other = one._replace(data=shared[0]), other._replace(data=shared[1])
    if not len(one.data["polyp"]):
        return {}
    if scheme is None:
        first, second = predicted(one, unit), predicted(other, unit)
        return _estimates(_mae_difference, (*first[:2], second.predicted), first.polyp, resamples)
    (polyp, left), (_, right) = (confusion_by_polyp(classes(p, unit, scheme), scheme) for p in (one, other))

    def differences(left: np.ndarray, right: np.ndarray) -> dict[str, float]:
        first, second = (sizing.scores(counts.sum(0), scheme) for counts in (left, right))
        return {name: first[name] - second[name] for name in first}

    return _estimates(differences, (left, right), polyp, resamples)


def _mae_difference(truth: np.ndarray, one: np.ndarray, other: np.ndarray) -> dict[str, float]:
    return {"mae": float(np.abs(one - truth).mean()) - float(np.abs(other - truth).mean())}


def _estimates(
    metrics: Callable[..., dict[str, float]], columns: tuple[np.ndarray, ...], polyp: np.ndarray, resamples: int
) -> Estimates:
    names = list(metrics(*columns))

    def vector(*columns: Any) -> list[float]:
        return list(metrics(*columns).values())

    found = sizing.bootstrap(vector, columns, polyp, n_resamples=resamples)
    return {name: Interval(*ends) for name, *ends in zip(names, *found, strict=True)}
