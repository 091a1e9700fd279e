"""Losses ``loss(outputs, batch)``: one value per example, computed in at least float32."""

from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from fsg_jax._checks import check_rates
from fsg_jax.training.metrics import get_labels, outside, without
from fsg_jax.typing import Batch, Loss


def cross_entropy(outputs: Float[Array, "*batch classes"], batch: Batch) -> Float[Array, "*batch"]:
    """-Σ_k p_k log softmax(outputs)_k, where p is ``batch["label"]``.

    Args:
        outputs: logits.
        batch: with ``label``, class indices (batch, ...) or probabilities (batch, ..., classes).

    Returns:
        The loss of every example in nats; NaN where an index is below 0 or not below the number of classes.

    Raises:
        ValueError: labels of another shape or dtype.
    """
    return _cross_entropy(outputs, batch, "label")


def make_cross_entropy(label_smoothing: float = 0.0, *, ignore: int | None = None, key: str = "label") -> Loss:
    """Return the cross-entropy with the labels (1 - s) p + s / classes: Szegedy et al. (2016), section 7.

    Computed as (1 - s) CE(p) + s CE(uniform), which is equal and also takes class indices.

    Args:
        label_smoothing: s in [0, 1).
        ignore: a class index, e.g. -1, that marks a missing label: it has no loss and no weight in the mean.
        key: of the labels in the batch.

    Raises:
        ValueError: s outside [0, 1).
    """
    check_rates(label_smoothing=label_smoothing)

    def loss(outputs: Float[Array, "*batch classes"], batch: Batch) -> Any:
        labels = get_labels(outputs, batch, key)
        target = _cross_entropy(
            outputs, {key: labels if ignore is None else jnp.where(labels == ignore, 0, labels)}, key
        )
        if label_smoothing:
            uniform = jnp.full(outputs.shape, 1 / outputs.shape[-1], jnp.float32)
            spread = _cross_entropy(outputs, {key: uniform}, key)
            target = (1 - label_smoothing) * target + label_smoothing * spread
        return without(ignore, target, labels)

    return cross_entropy if (label_smoothing, ignore, key) == (0, None, "label") else loss


def _cross_entropy(outputs: Array, batch: Batch, key: str) -> Float[Array, "*batch"]:
    logits, labels = _widen(outputs), get_labels(outputs, batch, key)
    if labels.ndim == outputs.ndim:
        return optax.losses.softmax_cross_entropy(logits, _widen(labels))
    bad = outside(labels, outputs.shape[-1])
    values = optax.losses.softmax_cross_entropy_with_integer_labels(logits, jnp.where(bad, 0, labels))
    return jnp.where(bad, jnp.nan, values)


def squared_error(
    outputs: Float[Array, "batch 1"] | Float[Array, " batch"], batch: Batch, *, key: str = "target"
) -> Float[Array, " batch"]:
    """Return (outputs - target)² with ``batch[key]`` of shape (batch,) or (batch, 1).

    Raises:
        ValueError: outputs or targets of another shape.
    """
    return optax.losses.squared_error(*_flat_pair(outputs, batch, key))


def smooth_l1(
    outputs: Float[Array, "batch 1"] | Float[Array, " batch"], batch: Batch, *, key: str = "target"
) -> Float[Array, " batch"]:
    """Return d² / 2 where |d| < 1, else |d| - 1/2, with d = outputs - target: Girshick (2015), equation 3.

    Args:
        outputs: predictions.
        batch: with the targets, (batch,) or (batch, 1).
        key: of the targets.

    Raises:
        ValueError: outputs or targets of another shape.
    """
    return optax.losses.huber_loss(*_flat_pair(outputs, batch, key), delta=1.0)


def binary_cross_entropy(
    outputs: Float[Array, "batch 1"] | Float[Array, " batch"], batch: Batch, *, key: str = "label"
) -> Float[Array, " batch"]:
    """Return -y log σ(outputs) - (1 - y) log σ(-outputs), with y = ``batch[key]`` in [0, 1], (batch,) or (batch, 1).

    Raises:
        ValueError: outputs or labels of another shape.
    """
    return optax.losses.sigmoid_binary_cross_entropy(*_flat_pair(outputs, batch, key))


def _flat_pair(outputs: Array, batch: Batch, key: str) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
    targets = jnp.asarray(batch[key])
    count = outputs.shape[0]
    for name, values in (("outputs", outputs), (key, targets)):
        if values.shape not in ((count,), (count, 1)):
            raise ValueError(f"{name}: expected shape ({count},) or ({count}, 1), found {values.shape}")
    return _widen(outputs).reshape(-1), _widen(targets).reshape(-1)


def _widen(values: Array) -> Array:
    """Convert to float32, or keep a wider floating-point dtype."""
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))
