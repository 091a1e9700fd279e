"""Gradient routing: which optimizer moves which leaf, in which pass."""

from fsg_jax.routing.labels import RoutedTransformation, is_weight, routed
from fsg_jax.routing.mask import route
from fsg_jax.routing.means import Mean
from fsg_jax.routing.modes import ROUTINGS, Pass, Point, routed_update

__all__ = [
    "ROUTINGS",
    "Mean",
    "Pass",
    "Point",
    "RoutedTransformation",
    "is_weight",
    "route",
    "routed",
    "routed_update",
]
