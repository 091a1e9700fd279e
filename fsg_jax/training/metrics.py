"""Metrics ``metric(outputs, batch)``: one value per example, so that the caller can mask and average."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fsg_jax.typing import Batch


def accuracy(outputs: Float[Array, "batch classes"], batch: Batch) -> Float[Array, " batch"]:
    """1 where the largest logit is that of the label, else 0.

    Args:
        outputs: logits.
        batch: with ``label``, class indices (batch,) or probabilities (batch, classes), of which the largest
            counts. Ties go to the lower class.

    Raises:
        ValueError: labels of another shape or dtype.
    """
    return (outputs.argmax(-1) == _classes(outputs, batch)).astype(jnp.float32)


def top_k_accuracy(k: int) -> Callable[[Array, Batch], Array]:
    """Return the metric that is 1 where the label is among the ``k`` largest logits, else 0.

    Args:
        k: at least 1 and, when the metric runs, at most the number of classes.

    Raises:
        ValueError: k outside its range.
    """
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ValueError(f"k: expected an integer >= 1, found {k!r}")

    def metric(outputs: Float[Array, "batch classes"], batch: Batch) -> Float[Array, " batch"]:
        if k > outputs.shape[-1]:
            raise ValueError(f"k: expected at most the {outputs.shape[-1]} classes, found {k}")
        _, best = jax.lax.top_k(outputs, k)
        return (best == _classes(outputs, batch)[:, None]).any(-1).astype(jnp.float32)

    return metric


def get_labels(outputs: Array, batch: Batch) -> Array:
    """Returns ``batch["label"]``: class indices (batch,) or probabilities (batch, classes).

    Raises:
        ValueError: labels of another shape or dtype.
    """
    labels = jnp.asarray(batch["label"])
    kind, shape = (jnp.integer, outputs.shape[:1]) if labels.ndim == 1 else (jnp.floating, outputs.shape)
    if not jnp.issubdtype(labels.dtype, kind) or labels.shape != shape:
        raise ValueError(
            f"label: expected integers {outputs.shape[:1]} or probabilities {outputs.shape}, "
            f"found {labels.dtype} of shape {labels.shape}"
        )
    return labels


def _classes(outputs: Array, batch: Batch) -> Int[Array, " batch"]:
    labels = get_labels(outputs, batch)
    return labels if labels.ndim == 1 else labels.argmax(-1)
