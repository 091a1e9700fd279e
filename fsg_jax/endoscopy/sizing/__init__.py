"""Sizing of polyps: scale, size classes, losses, targets, metrics, intervals and baselines."""

from fsg_jax.endoscopy.sizing.aggregate import PolypPredictions, aggregate_probabilities, aggregate_sizes
from fsg_jax.endoscopy.sizing.baselines import fit_box_area, fit_mean, relative_area
from fsg_jax.endoscopy.sizing.classes import (
    BINARY_5,
    BINARY_10,
    REFERENCE_CUTS_MM,
    SCHEMES,
    TRI_CLASS,
    ClassScheme,
    class_of,
    get_scheme,
    make_scheme,
)
from fsg_jax.endoscopy.sizing.intervals import Interval, bootstrap, paired_difference
from fsg_jax.endoscopy.sizing.scaling import CLAMP_MM, RANGE_MM, mm_to_unit, unit_to_mm
from fsg_jax.endoscopy.sizing.size_losses import ordinal_loss, size_cross_entropy, weighted_regression_loss
from fsg_jax.endoscopy.sizing.size_metrics import (
    balanced_accuracy,
    classification_metrics,
    confusion_matrix,
    correlations,
    regression_metrics,
    scores,
)
from fsg_jax.endoscopy.sizing.targets import TARGETS, SizeTarget, make_target

__all__ = [
    "BINARY_5",
    "BINARY_10",
    "CLAMP_MM",
    "RANGE_MM",
    "REFERENCE_CUTS_MM",
    "SCHEMES",
    "TARGETS",
    "TRI_CLASS",
    "ClassScheme",
    "Interval",
    "PolypPredictions",
    "SizeTarget",
    "aggregate_probabilities",
    "aggregate_sizes",
    "balanced_accuracy",
    "bootstrap",
    "class_of",
    "classification_metrics",
    "confusion_matrix",
    "correlations",
    "fit_box_area",
    "fit_mean",
    "get_scheme",
    "make_scheme",
    "make_target",
    "mm_to_unit",
    "ordinal_loss",
    "paired_difference",
    "regression_metrics",
    "relative_area",
    "scores",
    "size_cross_entropy",
    "unit_to_mm",
    "weighted_regression_loss",
]
