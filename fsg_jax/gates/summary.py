"""What gates do: their values by name, and a summary of each."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float

from fsg_jax.gates.functions import squash
from fsg_jax.gates.gate import Gate


def find_gate_kinds(model: nn.Module, *args: Any, **kwargs: Any) -> tuple[tuple[str, str], ...]:
    """``(name, kind)`` of every static gate of `model`, in the order of the forward pass.

    The model is traced without computing (`jax.eval_shape`) on the arguments of its ``init``; a gate's name is its
    module path, joined with ``/``.
    """
    found: dict[str, str] = {}

    def record(next_fun: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        if isinstance(context.module, Gate) and context.method_name == "__call__":
            found["/".join(context.module.path)] = context.module.kind
        return next_fun(*args, **kwargs)

    with nn.intercept_methods(record):
        jax.eval_shape(lambda *a: model.init(*a, **kwargs), *args)
    return tuple(found.items())


def flat_gates(gates: Mapping[str, Any], kinds: tuple[tuple[str, str], ...]) -> list[tuple[str, Array, str]]:
    """``(name, logits, kind)`` of every gate, in the order of `kinds`.

    Raises:
      ValueError: a leaf of the collection that `kinds` does not know, or the reverse.
    """
    flat = {name.removesuffix("logits").rstrip("/"): leaf for name, leaf in flatten_dict(gates, sep="/").items()}
    if unknown := sorted(set(flat) ^ {name for name, _ in kinds}):
        raise ValueError(f"gates: expected the gates whose kinds are recorded, found differences at {unknown}")
    return [(name, flat[name], kind) for name, kind in kinds]


def gate_values(state: Any) -> dict[str, Float[Array, " channels"]]:
    """Deterministic gate values by gate name, in the order of the forward pass; `state` is a `TrainState`."""
    return {name: squash(logits, kind) for name, logits, kind in flat_gates(state.gates, state.gate_kinds)}


def gate_summary(
    state: Any, *, open_above: float = 0.95, closed_below: float = 0.05
) -> dict[str, dict[str, Float[Array, ""]]]:
    """Per gate: mean value, share open, share closed, and mean binary entropy.

    Args:
      state: a `TrainState`.
      open_above: a gate value of at least this counts as open.
      closed_below: a gate value of at most this counts as closed.

    Returns:
      ``{gate: {"mean", "open", "closed", "entropy"}}``, scalars; entropy in nats, of values clipped to [0, 1].
      Empty for a model without static gates.
    """
    return {name: summarise(s, open_above, closed_below) for name, s in gate_values(state).items()}


def summarise(
    values: Float[Array, " channels"], open_above: float = 0.95, closed_below: float = 0.05
) -> dict[str, Float[Array, ""]]:
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
