"""Penalties on gates: pure functions that a loss can add, and `gate_penalty`, which sums one over all gates."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fsg_jax._checks import check_choice, look_up
from fsg_jax.gates.functions import HARD_CONCRETE_BETA, HARD_CONCRETE_HIGH, HARD_CONCRETE_LOW, squash
from fsg_jax.gates.summary import binary_entropy, flat_gates
from fsg_jax.typing import GateKinds, Penalty


def l1(values: Float[Array, "..."]) -> Float[Array, ""]:
    """``sum |s|`` of gate values."""
    return jnp.sum(jnp.abs(values))


def expected_l0(logits: Float[Array, "..."], kind: str = "hard_concrete") -> Float[Array, ""]:
    """Expected number of gates that are not 0.

    Hard-concrete: ``sum sigmoid(g - beta log(0.1 / 1.1))`` (Louizos et al. 2018, eq. 12). Straight-through:
    ``sum sigmoid(g)``, the usual surrogate of its deterministic count.

    Raises:
      ValueError: a kind whose gates are not open with a probability.
    """
    if kind == "hard_concrete":
        shift = HARD_CONCRETE_BETA * math.log(-HARD_CONCRETE_LOW / HARD_CONCRETE_HIGH)
        return jnp.sum(jax.nn.sigmoid(logits - shift))
    if kind == "straight_through":
        return jnp.sum(jax.nn.sigmoid(logits))
    raise ValueError(f"kind: expected hard_concrete or straight_through for the penalty l0, found {kind!r}")


def entropy(values: Float[Array, "..."]) -> Float[Array, ""]:
    """Sum of the gates' binary entropies in nats: least where every gate is 0 or 1."""
    return jnp.sum(binary_entropy(values))


def _of_values(rule: Callable[[Array], Array]) -> Callable[[Array, str], Array]:
    return lambda logits, kind: rule(squash(logits, kind))


PENALTIES: dict[str, Callable[[Array, str], Array]] = {
    "l1": _of_values(l1),
    "l0": expected_l0,
    "entropy": _of_values(entropy),
}


def gate_penalty(name: str, weight: float, *, reduction: str = "sum") -> Penalty:
    """``weight * P`` over all gates of a model, for `make_train_step(penalty=...)` or a loss of one's own.

    Args:
      name: ``"l1"``, ``"l0"`` (expected L0) or ``"entropy"``.
      weight: its factor, finite.
      reduction: ``"sum"`` over all gate scalars, or their ``"mean"``.

    Returns:
      ``penalty(gates, kinds)``: the ``"gates"`` collection and `TrainState.gate_kinds` to a scalar.
    """
    rule = look_up(PENALTIES, name, "gate penalty")
    check_choice("reduction", reduction, ("sum", "mean"))
    if not math.isfinite(weight):
        raise ValueError(f"weight: expected a finite number, found {weight}")

    def penalty(gates: Mapping[str, Any], kinds: GateKinds) -> Array:
        leaves = flat_gates(gates, kinds)
        total = sum((rule(g, kind) for _, g, kind in leaves), start=jnp.zeros(()))
        count = sum(g.size for _, g, _ in leaves) if reduction == "mean" else 1
        return weight * total / max(count, 1)

    return penalty
