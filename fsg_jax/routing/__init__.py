"""Gradient routing: which optimizer moves which leaf, in which pass."""

from fsg_jax.routing.labels import RoutedTransformation, routed
from fsg_jax.routing.modes import ROUTINGS, route

__all__ = ["ROUTINGS", "RoutedTransformation", "route", "routed"]
