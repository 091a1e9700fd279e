"""Metrics with their intervals over polyps, per frame and per polyp, of arms and baselines alike."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np

from experiments.endoscopy.polyp_report.predictions import Predictions, align
from fsg_jax.endoscopy import sizing
from fsg_jax.endoscopy.sizing import ClassScheme, Interval

Unit = Literal["polyp", "frame"]
UNITS: tuple[Unit, Unit] = ("polyp", "frame")
Estimates = dict[str, Interval]


class Bootstrap(NamedTuple):
    """Options of the intervals."""

    n_resamples: int = 1000
    seed: int = 0


class Predictor(NamedTuple):
    """An arm, or a baseline: then `predicted_mm` is its prediction in place of that of the network."""

    name: str
    data: Predictions
    predicted_mm: np.ndarray | None

    @property
    def scheme(self) -> ClassScheme | None:
        """The classes of a classifier, None for sizes in mm."""
        return self.data.scheme if self.predicted_mm is None else None


class Rows(NamedTuple):
    """Truth and prediction, in mm or class indices, and the polyp that each row belongs to."""

    truth: np.ndarray
    predicted: np.ndarray
    polyp: np.ndarray


def arm(name: str, data: Predictions) -> Predictor:
    """The predictor that is an arm."""
    return Predictor(name, data, data.predicted_mm)


def baselines(data: Predictions) -> list[Predictor]:
    """The baselines on the rows of an arm."""
    return [Predictor(name, data, values) for name, values in data.baselines.items()]


def sizes(predictor: Predictor, unit: Unit) -> Rows:
    """Sizes in mm: of frames, or medians over the frames of a polyp, seed by seed."""
    data, predicted = predictor.data, predictor.predicted_mm
    if predicted is None:
        raise ValueError(f"{predictor.name}: a classifier predicts no sizes")
    if unit == "frame":
        return Rows(data.size_mm, predicted, data.polyp)
    parts = []
    for seed in np.unique(data.seed):
        rows = data.seed == seed
        found = sizing.aggregate_sizes(data.polyp[rows].tolist(), data.size_mm[rows], predicted[rows])
        parts.append(Rows(found.size_mm, found.predicted_mm, np.array(found.polyp)))
    return Rows(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def classes(predictor: Predictor, unit: Unit, scheme: ClassScheme) -> Rows:
    """Class indices: sizes cut at the thresholds, or the class with the largest (mean) probability."""
    if predictor.scheme is None:
        found = sizes(predictor, unit)
        cut = [np.asarray(sizing.class_of(values, scheme)) for values in (found.truth, found.predicted)]
        return Rows(cut[0], cut[1], found.polyp)
    truth, chances, polyp = _chances(predictor.data, unit)
    return Rows(np.asarray(sizing.class_of(truth, scheme)), chances.argmax(1), polyp)


def _chances(data: Predictions, unit: Unit) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if data.probabilities is None:
        raise ValueError("a regression has no class probabilities")
    if unit == "frame":
        return data.size_mm, data.probabilities, data.polyp
    parts = []
    for seed in np.unique(data.seed):
        rows = data.seed == seed
        columns = {str(index): values for index, values in enumerate(data.probabilities[rows].T)}
        names, truth, _, means = sizing.aggregate_probabilities(data.polyp[rows].tolist(), data.size_mm[rows], columns)
        parts.append((truth, np.stack(list(means.values()), 1), np.array(names)))
    truth, chances, polyp = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return truth, chances, polyp


def size_estimates(predictor: Predictor, unit: Unit, options: Bootstrap) -> Estimates:
    """The metrics of sizes; correlations too, per polyp."""
    rows = sizes(predictor, unit)

    def metrics(truth: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
        more = sizing.correlations(truth, predicted) if unit == "polyp" else {}
        return sizing.regression_metrics(truth, predicted) | more

    return _estimates(metrics, (rows.truth, rows.predicted), rows.polyp, options)


def class_estimates(predictor: Predictor, unit: Unit, scheme: ClassScheme, options: Bootstrap) -> Estimates:
    """The metrics of classes."""
    polyp, counts = confusion_by_polyp(classes(predictor, unit, scheme), scheme)
    return _estimates(lambda counts: sizing.scores(counts.sum(0), scheme), (counts,), polyp, options)


def confusion_by_polyp(rows: Rows, scheme: ClassScheme) -> tuple[np.ndarray, np.ndarray]:
    """Polyps, and the confusion matrix (K, K) of the rows of each."""
    polyp, index = np.unique(rows.polyp, return_inverse=True)
    counts = np.zeros((len(polyp), scheme.num_classes, scheme.num_classes), int)
    np.add.at(counts, (index, rows.truth, rows.predicted), 1)
    return polyp, counts


def size_difference(one: Predictor, other: Predictor, unit: Unit, options: Bootstrap) -> Interval | None:
    """MAE of one minus MAE of the other on the frames both have; None without any."""
    pair = _aligned(one, other)
    if pair is None:
        return None
    left, right = (sizes(predictor, unit) for predictor in pair)

    def mae(truth: np.ndarray, predicted: np.ndarray) -> float:
        return float(np.abs(predicted - truth).mean())

    return sizing.paired_difference(mae, left.truth, left.predicted, right.predicted, left.polyp, **options._asdict())


def class_difference(
    one: Predictor, other: Predictor, unit: Unit, scheme: ClassScheme, options: Bootstrap
) -> Estimates | None:
    """Metrics of one minus those of the other on the frames both have; None without any."""
    pair = _aligned(one, other)
    if pair is None:
        return None
    (polyp, left), (_, right) = (confusion_by_polyp(classes(p, unit, scheme), scheme) for p in pair)

    def metrics(left: np.ndarray, right: np.ndarray) -> dict[str, float]:
        first, second = (sizing.scores(counts.sum(0), scheme) for counts in (left, right))
        return {name: first[name] - second[name] for name in first}

    return _estimates(metrics, (left, right), polyp, options)


def _aligned(one: Predictor, other: Predictor) -> tuple[Predictor, Predictor] | None:
    if one.data is other.data:
        return one, other
    left, right = align(one.data, other.data)
    return (arm(one.name, left), arm(other.name, right)) if len(left.polyp) else None


def _estimates(
    metrics: Callable[..., dict[str, float]], columns: tuple[np.ndarray, ...], polyp: np.ndarray, options: Bootstrap
) -> Estimates:
    names: list[str] = list(metrics(*columns))

    def vector(*columns: Any) -> list[float]:
        return list(metrics(*columns).values())

    found = sizing.bootstrap(vector, columns, polyp, **options._asdict())
    return {name: Interval(*ends) for name, *ends in zip(names, *found, strict=True)}
