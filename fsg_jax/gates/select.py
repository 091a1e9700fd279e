"""Selection: which channels the gates keep, and gates made hard, exactly 0 or 1."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Bool

from fsg_jax.gates.gate import GATES
from fsg_jax.gates.summary import gate_values, gates_and_kinds, rule_of, split_name

HARD_LOGITS = (0.0, *(sign * size for size in (1.0, 3.0, 10.0, 100.0, 1e3, 1e6) for sign in (-1, 1)))
"""Where `harden` looks for logits at which a kind is exactly 0 or 1."""


def selected(state: Any, threshold: float = 0.5, *, kinds: Any = None) -> dict[str, Bool[Array, " channels"]]:
    """Which channels each gate selects: True where its deterministic value is at least `threshold`.

    Args:
      state: a `TrainState`, or variables by collection.
      threshold: of gate values.
      kinds: as for `fsg_jax.gate_values`.
    """
    return {name: values >= threshold for name, values in gate_values(state, kinds).items()}


def harden(state: Any, threshold: float = 0.5, *, kinds: Any = None) -> Any:
    """The state or variables with every gate exactly 1 where it is selected and exactly 0 elsewhere.

    The outputs are those of the network without the channels that are not selected. The optimizer's state is left as it
    is: train on with the gates' label frozen (``fsg.routed(params=..., gates=None)``). Averaged gates (``ema``) get the
    same selection.

    Raises:
      ValueError: a gate whose kind reaches no 0 or no 1.
    """
    gates, found = gates_and_kinds(state, kinds)
    by_name, step = dict(found), getattr(state, "step", 0)
    flat = flatten_dict(gates, sep="/")
    for path, logits in flat.items():
        rule = rule_of(by_name[split_name(path)], step)
        keep = rule(logits) >= threshold
        off, on = (next((g for g in HARD_LOGITS if _reaches(rule, logits, g, to)), None) for to in (0, 1))
        if off is None or on is None:
            raise ValueError(f"gate {split_name(path)!r}: expected a kind that can be 0 and 1, found one that cannot")
        flat[path] = jnp.where(keep, on, off).astype(logits.dtype)
    hardened = {GATES: unflatten_dict(flat, sep="/")}
    if isinstance(state, Mapping):
        return {**state, **hardened}
    ema = (
        None
        if state.ema is None
        else state.ema | jax.tree.map(lambda h, e: h.astype(e.dtype), hardened, _gates(state.ema))
    )
    return replace(state, variables=state.variables | hardened, ema=ema)


def _gates(variables: Mapping[str, Any]) -> dict[str, Any]:
    return {GATES: variables[GATES]}


def _reaches(rule: Any, logits: Array, logit: float, value: int) -> bool:
    return bool(jnp.all(rule(jnp.full(logits.shape, logit, jnp.float32)) == value))
