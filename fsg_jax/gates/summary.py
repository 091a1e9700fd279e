"""What gates do: their values by name, and a summary of each."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float

from fsg_jax._checks import expect
from fsg_jax.gates.functions import at_least_float32, squash
from fsg_jax.typing import GATES, GateKinds


def split_name(path: str) -> str:
    """The gate's name, from the path of its logits in the collection."""
    return path.removesuffix("logits").rstrip("/")


def by_name(gates: Mapping[str, Any]) -> dict[str, Any]:
    """The logits of a ``"gates"`` collection by the names of the gates."""
    return {split_name(path): leaf for path, leaf in flatten_dict(gates, sep="/").items()}


def rule_of(kind: Any, step: Any = 0) -> Callable[[Array], Array]:
    """The deterministic values of logits of a recorded kind, at a step of training."""
    if hasattr(kind, "temperature_at"):
        return lambda logits: kind.values(at_least_float32(logits) / kind.temperature_at(step))
    return kind.values if hasattr(kind, "scope") else lambda logits: squash(logits, kind)


def flat_gates(gates: Mapping[str, Any], kinds: GateKinds) -> list[tuple[str, Array, Any]]:
    """``(name, logits, kind)`` of every gate, in the order of `kinds`.

    Of a stack of layers (``nn.scan``, ``nn.vmap``) each layer is a gate, ``name[i]``.

    Raises:
      ValueError: a leaf of the collection that `kinds` does not know, or the reverse.
    """
    flat, found = by_name(gates), []
    unknown = sorted(set(flat) ^ {name for name, _ in kinds})
    expect(not unknown, "gates", "the gates whose kinds are recorded", f"differences at {unknown}")
    for name, kind in kinds:
        leaf = flat[name]
        for index in np.ndindex(leaf.shape[:-1]):
            stacked = f"[{','.join(map(str, index))}]" if index else ""
            found.append((name + stacked, jnp.atleast_1d(leaf[index]), kind))
    return found


def gates_and_kinds(state: Any, kinds: Any = None) -> tuple[Mapping[str, Any], GateKinds]:
    """The ``"gates"`` collection of a `TrainState` or of plain variables, and the kinds of its leaves."""
    gates = state.get(GATES, {}) if isinstance(state, Mapping) else state.gates
    if kinds is None:
        kinds = "sigmoid" if isinstance(state, Mapping) else state.gate_kinds
    if isinstance(kinds, Mapping):
        kinds = tuple(kinds.items())
    return gates, kinds if type(kinds) is tuple else tuple((name, kinds) for name in by_name(gates))


def gate_values(state: Any, kinds: Any = None) -> dict[str, Float[Array, " channels"]]:
    """Deterministic gate values by gate name, in the order of the forward pass.

    Args:
      state: a `TrainState`, or variables by collection.
      kinds: of the gates, where they are not those of the state: one for all or a mapping by name. Plain variables do
        not know theirs; unless given they are taken for ``"sigmoid"``, the default of `Gate`.

    Raises:
      ValueError: a gate without a kind, or a kind without a gate.
    """
    leaves, step = flat_gates(*gates_and_kinds(state, kinds)), getattr(state, "step", 0)
    return {name: rule_of(kind, step)(logits) for name, logits, kind in leaves}


def gate_summary(
    state: Any, *, open_above: float = 0.95, closed_below: float = 0.05, kinds: Any = None
) -> dict[str, dict[str, Array]]:
    """Per gate: mean value, share open, share closed, and mean binary entropy.

    Args:
      state: as for `gate_values`, like `kinds`.
      open_above: a gate value of at least this counts as open.
      closed_below: a gate value of at most this counts as closed.
      kinds: of the gates.

    Returns:
      ``{gate: {"mean", "open", "closed", "entropy"}}``, scalars; entropy in nats, of values clipped to [0, 1].
      Empty for a model without static gates.
    """
    return {name: summarise(s, open_above, closed_below) for name, s in gate_values(state, kinds).items()}


def summarise(values: Array, open_above: float = 0.95, closed_below: float = 0.05) -> dict[str, Array]:
    """The summary of one vector of gate values; see `gate_summary`."""
    return {
        "mean": jnp.mean(values),
        "open": jnp.mean(values >= open_above, dtype=jnp.float32),
        "closed": jnp.mean(values <= closed_below, dtype=jnp.float32),
        "entropy": jnp.mean(binary_entropy(values)),
    }


def binary_entropy(values: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """``-s log s - (1 - s) log(1 - s)`` in nats, of values clipped to just inside (0, 1): its gradient is finite."""
    eps = jnp.finfo(values.dtype).eps
    s = jnp.clip(values, eps, 1 - eps)
    return -s * jnp.log(s) - (1 - s) * jnp.log1p(-s)


def count_parameters(variables: Mapping[str, Any]) -> dict[str, int]:
    """Number of scalars by collection."""
    return {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in variables.items()}
