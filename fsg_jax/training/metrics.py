"""Metrics ``metric(outputs, batch)``: one value per example, so that the caller can mask and average.

Class indices may be of any shape (batch, ...), e.g. per pixel, with outputs (batch, ..., classes).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fsg_jax._checks import check_integer
from fsg_jax.typing import Batch


def accuracy(outputs: Float[Array, "*batch classes"], batch: Batch) -> Float[Array, "*batch"]:
    """1 where the largest logit is that of the label, else 0.

    Args:
        outputs: logits.
        batch: with ``label``, class indices (batch, ...) or probabilities (batch, ..., classes), of which the largest
            counts. Ties go to the lower class.

    Raises:
        ValueError: labels of another shape or dtype.
    """
    return (outputs.argmax(-1) == _classes(outputs, batch, "label")).astype(jnp.float32)


def make_accuracy(*, ignore: int | None = None, key: str = "label") -> Callable[[Array, Batch], Any]:
    """Return `accuracy` of the labels ``batch[key]``, of those that are not `ignore`."""

    def metric(outputs: Float[Array, "*batch classes"], batch: Batch) -> Any:
        return without(ignore, accuracy(outputs, {"label": batch[key]}), batch[key])

    return metric


def top_k_accuracy(k: int, *, ignore: int | None = None, key: str = "label") -> Callable[[Array, Batch], Any]:
    """Return the metric that is 1 where the label is among the ``k`` largest logits, else 0.

    Args:
        k: at least 1 and, when the metric runs, at most the number of classes.
        ignore: a label that does not count.
        key: of the labels in the batch.

    Raises:
        ValueError: k outside its range.
    """
    check_integer("k", k, 1)

    def metric(outputs: Float[Array, "*batch classes"], batch: Batch) -> Any:
        if k > outputs.shape[-1]:
            raise ValueError(f"k: expected at most the {outputs.shape[-1]} classes, found {k}")
        _, best = jax.lax.top_k(outputs, k)
        found = (best == _classes(outputs, batch, key)[..., None]).any(-1).astype(jnp.float32)
        return without(ignore, found, batch[key])

    return metric


def make_invalid_labels(*, ignore: int | None = None, key: str = "label") -> Callable[[Array, Batch], Any]:
    """Return the metric that is 1 where the class index ``batch[key]`` is below 0 or not below the number of classes.

    The cross-entropy is NaN there. `ignore` is a label that does not count.
    """

    def metric(outputs: Float[Array, "*batch classes"], batch: Batch) -> Any:
        labels = get_labels(outputs, batch, key)
        if labels.ndim == outputs.ndim:
            return jnp.zeros(outputs.shape[:-1])
        return without(ignore, outside(labels, outputs.shape[-1]).astype(jnp.float32), labels)

    return metric


def get_labels(outputs: Array, batch: Batch, key: str = "label") -> Array:
    """Returns ``batch[key]``: class indices (batch, ...) or probabilities (batch, ..., classes).

    Raises:
        ValueError: labels of another shape or dtype.
    """
    labels = jnp.asarray(batch[key])
    indices = labels.ndim < outputs.ndim
    kind, shape = (jnp.integer, outputs.shape[:-1]) if indices else (jnp.floating, outputs.shape)
    if not jnp.issubdtype(labels.dtype, kind) or labels.shape != shape:
        raise ValueError(
            f"{key}: expected integers {outputs.shape[:-1]} or probabilities {outputs.shape}, "
            f"found {labels.dtype} of shape {labels.shape}"
        )
    return labels


def outside(labels: Int[Array, "*batch"], classes: int) -> Bool[Array, "*batch"]:
    """Whether a class index is below 0 or not below the number of classes."""
    return (labels < 0) | (labels >= classes)


def without(ignore: int | None, values: Float[Array, "*batch"], labels: Any) -> Any:
    """`values`, or if a label is to be ignored ``(values, weights)`` with a weight of 0 where it stands."""
    return values if ignore is None else (values, (jnp.asarray(labels) != ignore).astype(jnp.float32))


def _classes(outputs: Array, batch: Batch, key: str) -> Int[Array, "*batch"]:
    labels = get_labels(outputs, batch, key)
    return labels if labels.ndim < outputs.ndim else labels.argmax(-1)
