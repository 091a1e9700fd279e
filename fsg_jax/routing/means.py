"""Means over examples, weighted and masked: the same whatever a batch is cut into, and over however many devices."""

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

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


def mean_of(name: str, found: Any, size: int, valid: Any = None, *, scalar: bool = True) -> Mean:
    """The mean over a batch of what a loss or metric gives.

    Args:
      name: of the loss or metric, for messages.
      found: values (size, ...), which are averaged over all other axes first; or ``(values, weights)`` with weights of
        shape (size,), or of the first axes of the values, for ``sum(weights * values) / sum(weights)``; or a scalar.
      size: number of examples.
      valid: weights (size,) of the examples, or None; they multiply all others.
      scalar: whether a scalar, which cannot be taken apart, will do.

    Raises:
      ValueError: another shape; a scalar where rows are masked or the batch is cut.
    """
    values, weights = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
    values = jnp.asarray(values)
    values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
    if weights is None and values.ndim == 0:
        if valid is not None or not scalar:
            why = "batch['valid'] weighs examples" if valid is not None else "the batch is cut into parts"
            raise ValueError(f"{name}: expected one value per example, shape ({size}, ...), found a scalar; {why}")
        return Mean(values * size, jnp.float32(size))
    if values.ndim == 0 or values.shape[0] != size:
        raise ValueError(f"{name}: expected shape ({size}, ...), an entry for each example, found {values.shape}")
    if weights is None and values.shape == (size, size) and size > 1:
        warnings.warn(
            f"{name}: found shape {values.shape}; if it came from ({size}, 1) and ({size},), every example was "
            "compared with every other",
            stacklevel=2,
        )
    if weights is None:
        values, weights = values.reshape(size, -1).mean(1), jnp.ones(size)
    weights = jnp.asarray(weights).astype(jnp.promote_types(jnp.asarray(weights).dtype, jnp.float32))
    if weights.ndim == 0 or weights.shape != values.shape[: weights.ndim]:
        raise ValueError(f"{name}: expected weights of shape {values.shape} or ({size},), found {weights.shape}")
    weights = jnp.broadcast_to(_pad(weights, values.ndim), values.shape)
    if valid is not None:
        weights = weights * _pad(valid, values.ndim)
    # A value without weight may be NaN, e.g. that of a missing label.
    return Mean(jnp.sum(jnp.where(weights == 0, 0, weights * values)), jnp.sum(weights))


def _pad(weights: Array, ndim: int) -> Array:
    return weights.reshape(*weights.shape, *[1] * (ndim - weights.ndim))


def valid_rows(batch: Any, size: int) -> Array | None:
    """``batch["valid"]`` as float32 weights (size,), or None if the batch has none.

    Raises:
      ValueError: another shape.
    """
    if not isinstance(batch, Mapping) or "valid" not in batch:
        return None
    valid = jnp.asarray(batch["valid"])
    if valid.shape != (size,):
        raise ValueError(f"batch['valid']: expected shape ({size},), found {valid.shape}")
    return valid.astype(jnp.float32)


def like(new: PyTree, old: PyTree, what: str) -> PyTree:
    """`new` with the dtypes of `old`.

    Raises:
      ValueError: another structure or shape, whose leaves are named.
    """
    shapes = [
        {jax.tree_util.keystr(path): jnp.shape(leaf) for path, leaf in jax.tree.leaves_with_path(tree)}
        for tree in (old, new)
    ]
    if not same_structure(new, old) or shapes[0] != shapes[1]:
        differ = [k for k in shapes[0] | shapes[1] if shapes[0].get(k) != shapes[1].get(k)]
        raise ValueError(f"{what}: expected the structure and shapes of before, found others at {differ[:5]}")
    return jax.tree.map(_cast, new, old)


def same_structure(a: PyTree, b: PyTree) -> bool:
    """Whether two trees differ in their leaves alone."""
    structures: list[Any] = [jax.tree.structure(tree) for tree in (a, b)]
    return structures[0] == structures[1]


def _cast(new: Any, old: Any) -> Any:
    if isinstance(new, jax.Array) and new.dtype == old.dtype and not new.aval.weak_type:
        return new
    return jnp.asarray(new).astype(old.dtype)
