"""Metrics of sizes and of size classes. Frames or polyps: rows are whatever is given; see `aggregate_sizes`."""

import numpy as np
from jaxtyping import Float, Int

from fsg_jax.data.extras import import_extra
from fsg_jax.endoscopy.sizing.classes import ClassScheme

Sizes = Float[np.ndarray, " rows"]
Classes = Int[np.ndarray, " rows"]


def regression_metrics(truth: Sizes, predicted: Sizes) -> dict[str, float]:
    """Errors of sizes in mm.

    ``mae``, ``rmse`` and ``bias`` (mean of predicted - true) in mm; ``within_1mm`` and ``within_2mm``, the shares with
    |error| strictly below; ``percentage_error``, the mean of 100 (true - predicted) / true, signed as in Roffo et al.
    (2024); ``absolute_percentage_error``, the mean of its absolute values.

    Args:
        truth: mm, finite and above 0.
        predicted: mm; a NaN makes the metrics NaN.

    Raises:
        ValueError: no rows, or a true size that is not finite and above 0.
    """
    truth, error = _truth_and_error(truth, predicted)
    absolute, percentage = np.abs(error), -100 * error / truth
    valid = 1.0 if np.isfinite(error).all() else np.nan
    return {
        "mae": float(absolute.mean()),
        "rmse": float(np.sqrt(np.square(error).mean())),
        "bias": float(error.mean()),
        "within_1mm": float((absolute < 1).mean() * valid),
        "within_2mm": float((absolute < 2).mean() * valid),
        "percentage_error": float(percentage.mean()),
        "absolute_percentage_error": float(np.abs(percentage).mean()),
    }


def correlations(truth: Sizes, predicted: Sizes) -> dict[str, float]:
    """``pearson`` and ``spearman``; NaN where either side is constant or not finite, or there are fewer than 3 rows.

    Raises:
        ValueError: as `regression_metrics`.
    """
    stats = import_extra("scipy.stats", "endoscopy")
    truth, error = _truth_and_error(truth, predicted)
    values = truth + error
    if len(truth) < 3 or not np.isfinite(error).all() or np.ptp(truth) == 0 or np.ptp(values) == 0:
        return {"pearson": float("nan"), "spearman": float("nan")}
    ranks = stats.rankdata(np.stack([truth, values]), axis=1)
    return {"pearson": float(np.corrcoef(truth, values)[0, 1]), "spearman": float(np.corrcoef(ranks)[0, 1])}


def classification_metrics(truth: Classes, predicted: Classes, scheme: ClassScheme) -> dict[str, float]:
    """The `scores` of class indices.

    Args:
        truth, predicted: class indices of the scheme.
        scheme: of K classes.

    Raises:
        ValueError: no rows, or an index that is no class.
    """
    return scores(confusion_matrix(truth, predicted, scheme), scheme)


def confusion_matrix(truth: Classes, predicted: Classes, scheme: ClassScheme) -> np.ndarray:
    """Counts (K, K), rows true and columns predicted, of all classes of the scheme whether or not they occur.

    Raises:
        ValueError: as `classification_metrics`.
    """
    metrics = import_extra("sklearn.metrics", "endoscopy")
    _check_classes(truth, predicted, scheme)
    return metrics.confusion_matrix(truth, predicted, labels=np.arange(scheme.num_classes))


def scores(counts: Int[np.ndarray, "classes classes"], scheme: ClassScheme) -> dict[str, float]:
    """Averages over the classes, and the sensitivity of each, from a confusion matrix.

    ``accuracy``; ``balanced_accuracy``, the mean sensitivity (recall) of the classes in the truth; ``f1_weighted``,
    ``precision_weighted``, ``recall_weighted`` by support (F1 as in Roffo et al. 2024); ``f1_macro``,
    ``precision_macro``, ``recall_macro``, plain means over the classes in the truth or the prediction; ``specificity``,
    the mean of TN / (TN + FP) over the classes in the truth; ``sensitivity_<class>``, NaN without such rows.
    ``legacy_specificity`` is what the code of Roffo et al. calls specificity and is the macro precision;
    ``legacy_balanced_performance`` its mean with the sensitivity. A precision without predictions is 0.

    The values are scikit-learn's. They come from the matrix because a bootstrap needs them thousands of times, for
    which sums of the matrices of polyps are enough.

    Args:
        counts: rows true, columns predicted; not all 0.
        scheme: of these classes.
    """
    hits, support, chosen = counts.diagonal(), counts.sum(1), counts.sum(0)
    total, present = support.sum(), support > 0
    by_class = {
        "precision": _ratio(hits, chosen),
        "recall": _ratio(hits, support),
        "f1": _ratio(2 * hits, support + chosen),
    }
    found = {"accuracy": float(hits.sum() / total), "balanced_accuracy": float(by_class["recall"][present].mean())}
    for name, values in by_class.items():
        found[f"{name}_weighted"] = float(values @ support / total)
        found[f"{name}_macro"] = float(values[present | (chosen > 0)].mean())
    for name, recall, there in zip(scheme.classes, by_class["recall"], present, strict=True):
        found[f"sensitivity_{name}"] = float(recall) if there else float("nan")
    legacy = found["precision_macro"]
    return found | {
        "specificity": _specificity(hits, support, chosen),
        "legacy_specificity": legacy,
        "legacy_balanced_performance": (found["balanced_accuracy"] + legacy) / 2,
    }


def _specificity(hits: np.ndarray, support: np.ndarray, chosen: np.ndarray) -> float:
    negatives = support.sum() - support
    usable = (support > 0) & (negatives > 0)
    if not usable.any():
        return float("nan")
    return float(1 - ((chosen - hits)[usable] / negatives[usable]).mean())


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """0 where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.zeros(len(numerator)), where=denominator > 0)


def _truth_and_error(truth: Sizes, predicted: Sizes) -> tuple[np.ndarray, np.ndarray]:
    truth, predicted = np.asarray(truth, np.float64), np.asarray(predicted, np.float64)
    if not truth.size:
        raise ValueError("truth: expected at least one size, found none")
    if not (np.isfinite(truth) & (truth > 0)).all():
        raise ValueError(f"truth: expected finite sizes above 0 mm, found {truth[~(truth > 0)][:3]}")
    return truth, predicted - truth


def _check_classes(truth: Classes, predicted: Classes, scheme: ClassScheme) -> None:
    if not truth.size:
        raise ValueError("truth: expected at least one class, found none")
    for name, values in (("truth", truth), ("predicted", predicted)):
        if values.min() < 0 or values.max() >= scheme.num_classes:
            raise ValueError(
                f"{name}: expected classes 0 to {scheme.num_classes - 1}, found {values.min()} to {values.max()}"
            )
