"""A way to put the size question: what the network puts out, how it is trained, and what its outputs mean."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fsg_jax._checks import look_up
from fsg_jax.endoscopy.sizing.classes import SCHEMES, TRI_CLASS, ClassScheme
from fsg_jax.endoscopy.sizing.scaling import CLAMP_MM, unit_to_mm, widen
from fsg_jax.endoscopy.sizing.size_losses import ordinal_loss, size_cross_entropy, weighted_regression_loss
from fsg_jax.typing import AnyArray, Loss

Clamp: TypeAlias = tuple[float, float] | None
Decode: TypeAlias = Callable[[AnyArray], dict[str, Array]]

TARGETS: dict[str, ClassScheme | None] = {"regression": None, **SCHEMES, "ordinal": TRI_CLASS}
"""The classes by the name of the target; a regression has none."""


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
    name: str, *, loss: Loss | None = None, gate_loss: Loss | None = None, clamp_mm: Clamp = CLAMP_MM
) -> SizeTarget:
    """Returns the target of that name: ``regression``, ``binary_10``, ``binary_5``, ``tri_class`` or ``ordinal``.

    Args:
        name: one of `TARGETS`. ``ordinal`` has the classes of ``tri_class``.
        loss: in place of the target's own. A regression has smooth L1 with weight 3 from 5 to 10 mm and 5 from 10 mm
            (the gated models of Roffo et al. 2024), the others their cross-entropy.
        gate_loss: in place of the target's own: the defaults of `weighted_regression_loss` for a regression, else the
            loss of the parameters.
        clamp_mm: the range of a predicted size, or None; see `unit_to_mm`.

    Raises:
        ValueError: there is no such target.
    """
    scheme = look_up(TARGETS, name, "size target")
    if scheme is None:
        loss = loss or weighted_regression_loss(weight1=3.0, weight2=5.0)
        return SizeTarget(name, 1, loss, gate_loss or weighted_regression_loss(), partial(_size, clamp_mm))
    if name == "ordinal":
        num_outputs, own_loss, decode = scheme.num_classes - 1, ordinal_loss(scheme), partial(_steps, scheme)
    else:
        num_outputs, own_loss, decode = scheme.num_classes, size_cross_entropy(scheme), partial(_softmax, scheme)
    loss = loss or own_loss
    return SizeTarget(name, num_outputs, loss, gate_loss or loss, decode, scheme)


def _size(clamp_mm: Clamp, outputs: Float[AnyArray, "batch 1"]) -> dict[str, Array]:
    return {"predicted_mm": jnp.asarray(unit_to_mm(outputs[:, 0], clamp_mm))}


def _softmax(scheme: ClassScheme, outputs: Float[AnyArray, "batch classes"]) -> dict[str, Array]:
    return _columns(scheme, jax.nn.softmax(widen(outputs)))


def _steps(scheme: ClassScheme, outputs: Float[AnyArray, "batch thresholds"]) -> dict[str, Array]:
    """Returns P(class k) = P(y > t_{k-1}) - P(y > t_k), with a running minimum over k: no difference is below 0."""
    above = jax.lax.cummin(jax.nn.sigmoid(widen(outputs)), axis=1)
    return _columns(scheme, -jnp.diff(above, axis=1, prepend=1.0, append=0.0))


def _columns(scheme: ClassScheme, probabilities: Float[Array, "batch classes"]) -> dict[str, Array]:
    if probabilities.shape[-1] != scheme.num_classes:
        raise ValueError(f"outputs: expected those of {scheme.num_classes} classes, found {probabilities.shape[-1]}")
    return {column: probabilities[:, index] for index, column in enumerate(scheme.columns)}
