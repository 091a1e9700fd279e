"""Losses of sizing, ``loss(outputs, batch)``: one value per example from ``batch["size_mm"]``, never scaled before."""

from collections.abc import Sequence

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from fsg_jax._checks import check_nonnegative
from fsg_jax.endoscopy.sizing.classes import ClassScheme, class_of, exceeds, make_scheme
from fsg_jax.endoscopy.sizing.scaling import mm_to_unit
from fsg_jax.training.losses import cross_entropy
from fsg_jax.typing import Batch, Loss


def weighted_regression_loss(
    alpha: float = 0.0,
    beta: float = 0.0,
    gamma: float = 1.0,
    threshold1: float = 5.0,
    weight1: float = 5.0,
    threshold2: float = 10.0,
    weight2: float = 10.0,
    *,
    reference_inert_weights: bool = False,
) -> Loss:
    """w(y) (α |e| + β e² + γ smooth_L1(e)) with e = outputs - mm_to_unit(y), and y the size in mm.

    w(y) is ``weight1`` for threshold1 < y < threshold2, ``weight2`` for y >= threshold2, else 1; smooth_L1 is e² / 2
    where |e| < 1, else |e| - 1/2. The mean over examples is not divided by the sum of the weights. The defaults are
    those of the gate loss of Roffo et al. (2024).

    Args:
        alpha: weight of the absolute error, >= 0; not all three are 0.
        beta: weight of the squared error, >= 0.
        gamma: weight of the smooth L1 error, >= 0.
        threshold1: mm.
        weight1: of sizes above `threshold1`, >= 0.
        threshold2: mm, above `threshold1`.
        weight2: of sizes from `threshold2` on, >= 0.
        reference_inert_weights: compare the thresholds with the scaled size, as the code of Roffo et al. does; they
            then lie at 59 mm and 107.75 mm, so that no polyp is weighted.

    Returns:
        The loss, for outputs (batch, 1).

    Raises:
        ValueError: an argument is outside its range.
    """
    check_nonnegative(alpha=alpha, beta=beta, gamma=gamma, weight1=weight1, weight2=weight2)
    if alpha == beta == gamma == 0:
        raise ValueError("alpha, beta, gamma: expected one of them above 0, found all 0")
    if not threshold1 < threshold2:
        raise ValueError(f"threshold1, threshold2: expected them ascending, found {threshold1} and {threshold2}")

    def loss(outputs: Float[Array, "batch columns"], batch: Batch) -> Float[Array, " batch"]:
        size_mm = _sizes(outputs, batch, 1)
        target = mm_to_unit(size_mm)
        compared = target if reference_inert_weights else size_mm
        weight = jnp.where(compared >= threshold2, weight2, jnp.where(compared > threshold1, weight1, 1.0))
        error = outputs[:, 0].astype(target.dtype) - target
        smooth = optax.losses.huber_loss(error, delta=1.0)
        return weight * (alpha * jnp.abs(error) + beta * jnp.square(error) + gamma * smooth)

    return loss


def size_cross_entropy(scheme: ClassScheme) -> Loss:
    """-log softmax(outputs)_k, with k the class of ``batch["size_mm"]``; NaN where the size is NaN.

    Args:
        scheme: of K classes; the outputs are (batch, K).
    """

    def loss(outputs: Float[Array, "batch classes"], batch: Batch) -> Float[Array, " batch"]:
        size_mm = _sizes(outputs, batch, scheme.num_classes)
        return cross_entropy(outputs, {"label": class_of(size_mm, scheme)})

    return loss


def ordinal_loss(scheme: ClassScheme | Sequence[float]) -> Loss:
    """-Σ_k [y > t_k] log σ(o_k) + [y <= t_k] log σ(-o_k): one binary decision per threshold t_k.

    The decomposition of Frank and Hall (2001, "A simple approach to ordinal classification"), trained in one network
    as in Niu et al. (2016, "Ordinal regression with multiple output CNN for age estimation", equation 3). Unlike in
    CORAL (Cao et al. 2020) the thresholds share no weights in the last layer, so the probabilities σ(o_k) need not
    fall with k; `fsg_jax.endoscopy.sizing.targets` makes them.

    Args:
        scheme: of K classes, or the thresholds in mm as for `make_scheme`; the outputs are (batch, K - 1).
    """
    resolved = scheme if isinstance(scheme, ClassScheme) else make_scheme(scheme)

    def loss(outputs: Float[Array, "batch thresholds"], batch: Batch) -> Float[Array, " batch"]:
        size_mm = _sizes(outputs, batch, resolved.num_classes - 1)
        target = exceeds(size_mm, resolved).astype(size_mm.dtype)
        decisions = optax.losses.sigmoid_binary_cross_entropy(outputs.astype(size_mm.dtype), target)
        return jnp.where(jnp.isnan(size_mm), jnp.nan, decisions.sum(-1))

    return loss


def _sizes(outputs: Array, batch: Batch, columns: int) -> Float[Array, " batch"]:
    """Returns ``size_mm`` of the batch, in the precision of the outputs or in float32.

    Raises:
        ValueError: the batch has none, or its shape or that of the outputs is another.
    """
    if "size_mm" not in batch:
        raise ValueError(f"batch: expected the key 'size_mm', found {sorted(batch)}")
    size_mm = jnp.asarray(batch["size_mm"])
    if outputs.ndim != 2 or outputs.shape[1] != columns:
        raise ValueError(f"outputs: expected shape (batch, {columns}), found {outputs.shape}")
    if size_mm.shape != outputs.shape[:1]:
        raise ValueError(f"size_mm: expected shape {outputs.shape[:1]}, found {size_mm.shape}")
    return size_mm.astype(jnp.promote_types(outputs.dtype, jnp.float32))
