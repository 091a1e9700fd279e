"""Selection: which channels the gates keep, and gates made hard, exactly 0 or 1."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Bool

from fsg_jax._checks import expect
from fsg_jax.gates.summary import gate_values, gates_and_kinds, rule_of, split_name
from fsg_jax.typing import GATES

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
    kind_by_name, step, hard = dict(found), getattr(state, "step", 0), {}
    for path, logits in flatten_dict(gates, sep="/").items():
        name = split_name(path)
        rule = rule_of(kind_by_name[name], step)
        off, on = (next((g for g in HARD_LOGITS if _reaches(rule, logits, g, to)), None) for to in (0, 1))
        expect(off is not None and on is not None, f"gate {name!r}", "a kind that can be 0 and 1", "one that cannot")
        hard[path] = jnp.where(rule(logits) >= threshold, on or 0.0, off or 0.0).astype(logits.dtype)
    hardened = {GATES: unflatten_dict(hard, sep="/")}
    if isinstance(state, Mapping):
        return {**state, **hardened}
    ema = state.ema and state.ema | jax.tree.map(lambda g, e: g.astype(e.dtype), hardened, {GATES: state.ema[GATES]})
    return replace(state, variables=state.variables | hardened, ema=ema)


def _reaches(rule: Any, logits: Array, logit: float, value: int) -> bool:
    return bool(jnp.all(rule(jnp.full(logits.shape, logit, jnp.float32)) == value))
