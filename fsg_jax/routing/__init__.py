"""Gradient routing: which optimizer moves which leaf, in which pass."""

from fsg_jax.routing.labels import RoutedTransformation, is_weight, routed
from fsg_jax.routing.mask import route
from fsg_jax.routing.modes import ROUTINGS, Pass, Point, take_passes

__all__ = ["ROUTINGS", "Pass", "Point", "RoutedTransformation", "is_weight", "route", "routed", "take_passes"]
