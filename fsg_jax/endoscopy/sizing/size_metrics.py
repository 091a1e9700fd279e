"""Metrics of sizes and of size classes. Frames or polyps: rows are whatever is given; see `aggregate_sizes`."""

import numpy as np
from jaxtyping import Float, Int

from fsg_jax.data.extras import import_extra
from fsg_jax.endoscopy.sizing.classes import ClassScheme
from fsg_jax.endoscopy.sizing.scaling import check_sizes

Sizes = Float[np.ndarray, " rows"]
Classes = Int[np.ndarray, " rows"]


def regression_metrics(truth: Sizes, predicted: Sizes) -> dict[str, float]:
    """Returns errors of sizes in mm.

    ``mae``, ``rmse`` and ``bias`` (mean of predicted - true) in mm; ``within_1mm`` and ``within_2mm``, the shares with
    |error| strictly below; ``percentage_error``, the mean of 100 (true - predicted) / true, signed as in Roffo et al.
    (2024); ``absolute_percentage_error``, the mean of its absolute values.

    Args:
        truth: mm, finite and above 0.
        predicted: mm; a NaN makes the metrics NaN.

    Raises:
        ValueError: there are no rows, or a true size is not finite and above 0.
    """
    truth = check_sizes("truth", truth)
    error = np.asarray(predicted, np.float64) - truth
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
    """Returns ``pearson`` and ``spearman``; NaN where a side is constant or not finite, or there are fewer than 3 rows.

    Raises:
        ValueError: as `regression_metrics`.
    """
    stats = import_extra("scipy.stats", "endoscopy")
    truth = check_sizes("truth", truth)
    values = truth + (np.asarray(predicted, np.float64) - truth)  # rounded as the errors of `regression_metrics`
    if len(truth) < 3 or not np.isfinite(values).all() or np.ptp(truth) == 0 or np.ptp(values) == 0:
        return {"pearson": float("nan"), "spearman": float("nan")}
    ranks = stats.rankdata(np.stack([truth, values]), axis=1)
    return {"pearson": float(np.corrcoef(truth, values)[0, 1]), "spearman": float(np.corrcoef(ranks)[0, 1])}


def classification_metrics(truth: Classes, predicted: Classes, scheme: ClassScheme) -> dict[str, float]:
    """Returns the `scores` of class indices.

    Args:
        truth: class indices of the scheme.
        predicted: class indices of the scheme.
        scheme: of K classes.

    Raises:
        ValueError: there are no rows, or an index is of no class.
    """
    return scores(confusion_matrix(truth, predicted, scheme), scheme)


def confusion_matrix(truth: Classes, predicted: Classes, scheme: ClassScheme) -> np.ndarray:
    """Returns counts (K, K), rows true and columns predicted, of all classes of the scheme whether or not they occur.

    Raises:
        ValueError: as `classification_metrics`.
    """
    if not truth.size:
        raise ValueError("truth: expected at least one class, found none")
    for name, values in (("truth", truth), ("predicted", predicted)):
        if values.min() < 0 or values.max() >= scheme.num_classes:
            found = f"{values.min()} to {values.max()}"
            raise ValueError(f"{name}: expected classes 0 to {scheme.num_classes - 1}, found {found}")
    metrics = import_extra("sklearn.metrics", "endoscopy")
    return metrics.confusion_matrix(truth, predicted, labels=np.arange(scheme.num_classes))


def balanced_accuracy(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Returns the mean sensitivity of the classes in the truth; NaN without rows.

    The value is scikit-learn's, whose function warns of classes that only the prediction has and checks its input at
    every call, which a bootstrap makes thousands of times.
    """
    kinds = np.unique(truth)
    return float(np.mean([np.mean(predicted[truth == kind] == kind) for kind in kinds])) if len(kinds) else float("nan")


def scores(counts: Int[np.ndarray, "classes classes"], scheme: ClassScheme) -> dict[str, float]:
    """Returns averages over the classes, and the sensitivity of each, from a confusion matrix.

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
    negatives, others = total - support, present & (support < total)
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
    false_positives = (chosen - hits)[others] / negatives[others]
    found["specificity"] = float(1 - false_positives.mean()) if others.any() else float("nan")
    found["legacy_specificity"] = found["precision_macro"]
    found["legacy_balanced_performance"] = (found["balanced_accuracy"] + found["precision_macro"]) / 2
    return found


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Returns the quotient, 0 where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.zeros(len(numerator)), where=denominator > 0)
