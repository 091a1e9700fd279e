"""Penalties on gates: pure functions that a loss can add, and `gate_penalty`, which sums one over all gates."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fsg_jax._checks import check_choice, expect, look_up
from fsg_jax.gates.functions import HARD_CONCRETE_BETA, HARD_CONCRETE_HIGH, HARD_CONCRETE_LOW
from fsg_jax.gates.gate import Gate
from fsg_jax.gates.summary import binary_entropy, flat_gates, rule_of
from fsg_jax.typing import GateKinds, Penalty


def l1(values: Float[Array, "..."]) -> Float[Array, ""]:
    """``sum |s|`` of gate values."""
    return jnp.sum(jnp.abs(values))


def expected_l0(logits: Float[Array, "..."], kind: Any = "hard_concrete") -> Float[Array, ""]:
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


def _of_values(rule: Callable[[Array], Array]) -> Callable[[Array, Any, Any], Array]:
    return lambda logits, kind, step: rule(rule_of(kind, step)(logits))


def _l0(logits: Array, kind: Any, step: Any) -> Array:
    scaled = isinstance(kind, Gate)
    return expected_l0(logits / kind.temperature_at(step), kind.kind) if scaled else expected_l0(logits, kind)


PENALTIES: dict[str, Callable[[Array, Any, Any], Array]] = {
    "l1": _of_values(l1),
    "l0": _l0,
    "entropy": _of_values(entropy),
}
"""The penalties by name: functions of a gate's logits, its kind and the step."""


def gate_penalty(
    name: str, weight: float | Callable[[Any], Any], *, reduction: str = "sum", gates: str | None = None
) -> Penalty:
    """``weight * P`` over the gates of a model, for `make_train_step(penalty=...)` or a loss of one's own.

    Args:
      name: ``"l1"``, ``"l0"`` (expected L0) or ``"entropy"``.
      weight: its factor, finite, or a schedule ``step -> factor``.
      reduction: ``"sum"`` over all gate scalars, or their ``"mean"``.
      gates: a regular expression for the names of the gates that it is on (`re.fullmatch`); None: all.

    Returns:
      ``penalty(gates, kinds, step=0)``: the ``"gates"`` collection and `TrainState.gate_kinds` to a scalar.

    Raises:
      ValueError: unknown name or reduction, a weight that is not finite; when it runs, `gates` matches none.
    """
    rule = look_up(PENALTIES, name, "gate penalty")
    check_choice("reduction", reduction, ("sum", "mean"))
    expect(callable(weight) or math.isfinite(weight), "weight", "a finite number or a schedule", weight)

    def penalty(collection: Mapping[str, Any], kinds: GateKinds, step: Any = 0) -> Array:
        leaves = flat_gates(collection, kinds)
        if gates is not None:
            names = [name for name, *_ in leaves]
            leaves = [leaf for leaf in leaves if re.fullmatch(gates, leaf[0])]
            expect(leaves, "gates", f"a pattern of some of {names}", repr(gates))
        total = sum((rule(g, kind, step) for _, g, kind in leaves), start=jnp.zeros(()))
        count = sum(g.size for _, g, _ in leaves) if reduction == "mean" else 1
        return (weight(step) if callable(weight) else weight) * total / max(count, 1)

    return penalty
