"""Sizing of polyps: scale, size classes, losses, tasks, metrics, intervals and baselines."""

from fsg_jax.endoscopy.sizing.aggregate import PolypPredictions, aggregate_probabilities, aggregate_sizes
from fsg_jax.endoscopy.sizing.baselines import fit_box_area, fit_mean, relative_area
from fsg_jax.endoscopy.sizing.bootstrap import Interval, bootstrap, paired_difference
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
from fsg_jax.endoscopy.sizing.losses import ordinal_loss, size_cross_entropy, weighted_regression_loss
from fsg_jax.endoscopy.sizing.metrics import (
    classification_metrics,
    confusion_matrix,
    correlations,
    regression_metrics,
    scores,
)
from fsg_jax.endoscopy.sizing.scaling import CLAMP_MM, RANGE_MM, scale, unscale
from fsg_jax.endoscopy.sizing.targets import TASKS, SizeTask, make_task

__all__ = [
    "BINARY_5",
    "BINARY_10",
    "CLAMP_MM",
    "RANGE_MM",
    "REFERENCE_CUTS_MM",
    "SCHEMES",
    "TASKS",
    "TRI_CLASS",
    "ClassScheme",
    "Interval",
    "PolypPredictions",
    "SizeTask",
    "aggregate_probabilities",
    "aggregate_sizes",
    "bootstrap",
    "class_of",
    "classification_metrics",
    "confusion_matrix",
    "correlations",
    "fit_box_area",
    "fit_mean",
    "get_scheme",
    "make_scheme",
    "make_task",
    "ordinal_loss",
    "paired_difference",
    "regression_metrics",
    "relative_area",
    "scale",
    "scores",
    "size_cross_entropy",
    "unscale",
    "weighted_regression_loss",
]
