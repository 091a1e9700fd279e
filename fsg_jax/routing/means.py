"""Means over examples, weighted and masked: the same whatever a batch is cut into, and over however many devices."""

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from fsg_jax._checks import expect
from fsg_jax.gates.functions import at_least_float32
from fsg_jax.typing import PyTree


class Mean(NamedTuple):
    """``total / weight``; the means of parts are added part by part before they are divided."""

    total: Any
    weight: Any

    def value(self) -> Array:
        """The mean; 0 where nothing has a weight."""
        empty = self.weight == 0
        return jnp.where(empty, 0.0, self.total / jnp.where(empty, 1, self.weight))


def as_means(loss: Any) -> list[Mean]:
    """The terms of a loss: a scalar, a `Mean`, or a list of both, whose values are added."""
    terms = loss if isinstance(loss, list) else [loss]
    return [term if isinstance(term, Mean) else Mean(term, jnp.ones(())) for term in terms]


def means_of(name: str, function: Any, outputs: Any, batch: Any, size: int, *, whole: bool = True) -> list[Mean]:
    """The means over a batch of what a loss or metric gives; the loss or metric is the sum of their values.

    It gives values (size, ...), which are averaged over all other axes first; or ``(values, weights)`` with weights of
    shape (size,), or of the first axes of the values, for ``sum(weights * values) / sum(weights)``; or a scalar; or a
    mapping of such to names, each with a mean of its own, as the losses of several tasks. ``batch["valid"]``, of shape
    (size,), if it is there, multiplies the weights.

    Args:
      name: of the loss or metric.
      function: ``function(outputs, batch)``.
      outputs: of the model.
      batch: of which a mapping may have ``"valid"``.
      size: number of examples.
      whole: False if the batch is a part of one: then a scalar will not do.

    Raises:
      ValueError: another shape; a scalar where rows are masked or the batch is cut; an empty mapping.
    """
    found, name = function(outputs, batch), f"{name} ({getattr(function, '__name__', type(function).__name__)})"
    parts = {f"{name}[{key!r}]": one for key, one in found.items()} if isinstance(found, Mapping) else {name: found}
    expect(parts, name, "a term or more", "none")
    return [_mean(key, one, batch, size, whole) for key, one in parts.items()]


def _mean(name: str, found: Any, batch: Any, size: int, whole: bool) -> Mean:
    values, weights = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
    values, valid = at_least_float32(values), valid_rows(batch, size)
    if weights is None and values.ndim == 0 and valid is None and whole:
        return Mean(values * size, jnp.float32(size))
    why = ", for rows are masked or the batch is cut" if values.ndim == 0 else ""
    expect(values.shape[:1] == (size,), name, f"a value for each example, shape ({size}, ...){why}", values.shape)
    if weights is None and values.shape == (size, size) and size > 1:
        hint = f"if it came from ({size}, 1) and ({size},), every example was compared with every other"
        warnings.warn(f"{name}: found shape {values.shape}; {hint}", stacklevel=2)
    if weights is None:
        values, weights = values.reshape(size, -1).mean(1), jnp.ones(size)
    weights = at_least_float32(weights)
    fits = weights.ndim > 0 and weights.shape == values.shape[: weights.ndim]
    expect(fits, name, f"weights of shape {values.shape} or ({size},)", weights.shape)
    weights = _spread(weights, values) * (1 if valid is None else _spread(valid, values))
    # A value without weight may be NaN, e.g. that of a missing label.
    return Mean(jnp.sum(jnp.where(weights == 0, 0, weights * values)), jnp.sum(weights))


def total(means: list[Mean]) -> Array:
    """The sum of the values of means."""
    return sum((mean.value() for mean in means[1:]), means[0].value())


def _spread(weights: Array, values: Array) -> Array:
    return jnp.broadcast_to(weights.reshape(*weights.shape, *[1] * (values.ndim - weights.ndim)), values.shape)


def valid_rows(batch: Any, size: int) -> Array | None:
    """``batch["valid"]`` as float32 weights (size,), or None if there is none. Raises ValueError for another shape."""
    if not isinstance(batch, Mapping) or "valid" not in batch:
        return None
    valid = jnp.asarray(batch["valid"])
    expect(valid.shape == (size,), "batch['valid']", f"shape ({size},)", valid.shape)
    return valid.astype(jnp.float32)


def like(new: PyTree, old: PyTree) -> PyTree:
    """`new` with the dtypes of `old`, no leaf weakly typed. Raises ValueError, which names it, where a node differs."""

    def cast(old: Any, new: Any) -> Any:
        right = isinstance(new, jax.Array) and new.dtype == old.dtype and not new.aval.weak_type
        return new if right else jnp.asarray(new).astype(old.dtype)

    return jax.tree.map(cast, old, new)


def strong(leaf: Any, dtype: Any) -> Array:
    """A copy in this dtype, not weakly typed."""
    return leaf.copy() if jnp.issubdtype(dtype, jax.dtypes.prng_key) else jnp.array(leaf, dtype)
