"""A way to put the size question: what the network puts out, how it is trained, and what its outputs mean."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fsg_jax._checks import look_up
from fsg_jax.endoscopy.sizing.classes import BINARY_5, BINARY_10, TRI_CLASS, ClassScheme
from fsg_jax.endoscopy.sizing.losses import ordinal_loss, size_cross_entropy, weighted_regression_loss
from fsg_jax.endoscopy.sizing.scaling import CLAMP_MM, unit_to_mm
from fsg_jax.typing import AnyArray, Loss

Decode = Callable[[AnyArray], dict[str, Array]]


@dataclass(frozen=True)
class SizeTarget:
    """One way to put the size question.

    Args:
        name: see `TARGETS`.
        num_outputs: of the network.
        loss: of the parameters.
        gate_loss: of the gates, for Gradient Routing.
        decode: outputs (batch, num_outputs) to ``{"predicted_mm": (batch,)}`` for a regression, else to
            ``{"p_<class>": (batch,), ...}``, probabilities that sum to 1.
        scheme: the classes; None for a regression.
    """

    name: str
    num_outputs: int
    loss: Loss
    gate_loss: Loss
    decode: Decode
    scheme: ClassScheme | None = None


def make_target(
    name: str,
    *,
    loss: Loss | None = None,
    gate_loss: Loss | None = None,
    clamp_mm: tuple[float, float] | None = CLAMP_MM,
) -> SizeTarget:
    """The target of that name: ``regression``, ``binary_10``, ``binary_5``, ``tri_class`` or ``ordinal``.

    Args:
        name: one of `TARGETS`. ``ordinal`` has the classes of ``tri_class``.
        loss: in place of the target's own. A regression has smooth L1 with weight 3 from 5 to 10 mm and 5 from 10 mm
            (the gated models of Roffo et al. 2024), the others their cross-entropy.
        gate_loss: in place of the target's own: the defaults of `weighted_regression_loss` for a regression, else the
            loss of the parameters.
        clamp_mm: the range of a predicted size, or None; see `unit_to_mm`.

    Raises:
        ValueError: no such target.
    """
    target = look_up(TARGETS, name, "size target")(clamp_mm)
    main = target.loss if loss is None else loss
    shared = target.gate_loss if target.scheme is None else main
    return SizeTarget(
        name, target.num_outputs, main, shared if gate_loss is None else gate_loss, target.decode, target.scheme
    )


def _regression(clamp_mm: tuple[float, float] | None) -> SizeTarget:
    def decode(outputs: Float[AnyArray, "batch 1"]) -> dict[str, Array]:
        return {"predicted_mm": jnp.asarray(unit_to_mm(outputs[:, 0], clamp_mm))}

    loss = weighted_regression_loss(weight1=3.0, weight2=5.0)
    return SizeTarget("regression", 1, loss, weighted_regression_loss(), decode)


def _classification(scheme: ClassScheme) -> SizeTarget:
    def decode(outputs: Float[AnyArray, "batch classes"]) -> dict[str, Array]:
        return _columns(scheme, jax.nn.softmax(_widen(outputs)))

    loss = size_cross_entropy(scheme)
    return SizeTarget(scheme.name, scheme.num_classes, loss, loss, decode, scheme)


def _ordinal(scheme: ClassScheme) -> SizeTarget:
    def decode(outputs: Float[AnyArray, "batch thresholds"]) -> dict[str, Array]:
        """P(class k) = P(y > t_{k-1}) - P(y > t_k), with a running minimum over k so that no difference is below 0."""
        above = jax.lax.cummin(jax.nn.sigmoid(_widen(outputs)), axis=1)
        return _columns(scheme, -jnp.diff(above, axis=1, prepend=1.0, append=0.0))

    loss = ordinal_loss(scheme)
    return SizeTarget("ordinal", scheme.num_classes - 1, loss, loss, decode, scheme)


def _columns(scheme: ClassScheme, probabilities: Float[Array, "batch classes"]) -> dict[str, Array]:
    if probabilities.shape[-1] != scheme.num_classes:
        raise ValueError(f"outputs: expected those of {scheme.num_classes} classes, found {probabilities.shape[-1]}")
    return {column: probabilities[:, index] for index, column in enumerate(scheme.columns)}


def _widen(outputs: AnyArray) -> Array:
    return jnp.asarray(outputs).astype(jnp.promote_types(outputs.dtype, jnp.float32))


TARGETS: dict[str, Callable[[tuple[float, float] | None], SizeTarget]] = {
    "regression": _regression,
    "binary_10": lambda _: _classification(BINARY_10),
    "binary_5": lambda _: _classification(BINARY_5),
    "tri_class": lambda _: _classification(TRI_CLASS),
    "ordinal": lambda _: _ordinal(TRI_CLASS),
}
