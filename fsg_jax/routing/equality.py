"""Functions compared by what they compute: two ``optax.sgd(0.1)`` written out anew are equal.

JAX compiles a function again if an argument of it that is not an array, such as the optimizer, is not equal to the one
before. Optimizers are closures, which Python compares by identity.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import jax
import numpy as np


class Identity:
    """Equal only to itself: what cannot be compared by content."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def content(value: Any, within: tuple[int, ...] = ()) -> Any:
    """A hashable that is equal for values which compute the same.

    Functions are equal if their code, their module, their defaults and what they close over are. Numbers, strings,
    containers and concrete arrays are compared by value, everything else by its own ``==`` if it can be hashed, else by
    identity. What is mutable counts as it is now.

    Args:
      value: anything.
      within: ids of the functions that contain `value`.
    """
    if id(value) in within:
        return ("itself", len(within) - within.index(id(value)))
    inside: Callable[[Any], Any] = partial(content, within=(*within, id(value)))
    if isinstance(value, FunctionType):
        cells = tuple(_content_of_cell(cell, inside) for cell in value.__closure__ or ())
        parts = (value.__defaults__, value.__kwdefaults__, vars(value))
        return (value.__code__, id(value.__globals__), cells, *map(inside, parts))
    if isinstance(value, MethodType):
        return (inside(value.__func__), inside(value.__self__))
    if isinstance(value, partial):
        return (partial, inside(value.func), inside(value.args), inside(value.keywords))
    if isinstance(value, tuple | list):
        return (type(value), *map(inside, value))
    if isinstance(value, Mapping):
        return (type(value), *((inside(k), inside(v)) for k, v in value.items()))
    if isinstance(value, np.ndarray | jax.Array) and not isinstance(value, jax.core.Tracer):
        array = np.asarray(value)
        return (type(value), array.shape, array.dtype, array.tobytes())
    try:
        hash(value)
    except TypeError:
        return Identity(value)
    return (type(value), value)


def _content_of_cell(cell: Any, inside: Callable[[Any], Any]) -> Any:
    try:
        return inside(cell.cell_contents)
    except ValueError:  # not yet bound
        return Identity(cell)
