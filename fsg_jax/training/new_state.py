"""The state at step 0, from variables of any framework."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from fsg_jax._checks import expect
from fsg_jax.gates.functions import Squashing, get_squashing
from fsg_jax.gates.summary import flat_gates, rule_of, split_name
from fsg_jax.routing.labels import RoutedTransformation
from fsg_jax.routing.means import strong
from fsg_jax.training.state import TrainState
from fsg_jax.typing import GATES, GateKinds, Key, PyTree


def new_state(
    forward: Any, tx: RoutedTransformation, rng: Key, variables: PyTree, kinds: GateKinds, ema_decay: float | None
) -> TrainState:
    """The state at step 0 with copies of `variables`. Raises ValueError as `fsg_jax.init_state`."""
    expect(ema_decay is None or 0 < ema_decay < 1, "ema_decay", "a number in (0, 1) or None", ema_decay)
    values = jax.tree.map(lambda leaf: strong(leaf, leaf.dtype), variables)
    leaves = {k: v for k, v in values.items() if k in forward.trainable}
    _warn_dead(leaves, kinds, tx)
    ema = None if ema_decay is None else jax.tree.map(lambda leaf: strong(leaf, _average_dtype(leaf)), values)
    return TrainState(jnp.zeros((), jnp.int32), values, tx.init(leaves), rng, ema, forward, tx, kinds, ema_decay)


def _warn_dead(leaves: dict[str, PyTree], kinds: GateKinds, tx: RoutedTransformation) -> None:
    """Warns of gates that start where their kind has no gradient, and so never move."""
    gates, dead = leaves.get(GATES, {}), []
    labels = flatten_dict(tx.labels(leaves).get(GATES, {}), sep="/")
    moving = {split_name(path) for path, label in labels.items() if label not in tx.frozen}
    concrete = not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(gates))
    for name, logits, kind in flat_gates(gates, kinds) if concrete else []:
        drawn = isinstance(kind, str | Squashing) and get_squashing(kind).sample is not None
        if kind in ("sigmoid", "straight_through") or drawn or name.split("[")[0] not in moving:
            continue
        slopes = jax.grad(lambda g, kind=kind: jnp.sum(rule_of(kind)(g)))(logits.astype(jnp.float32))
        if count := int(jnp.sum(slopes == 0)):
            dead.append(f"{count} of {logits.size} of {name!r}")
    if dead:
        warnings.warn(f"gates start where their kind has no gradient, and never move: {', '.join(dead)}", stacklevel=3)


def _average_dtype(leaf: Any) -> Any:
    return jnp.promote_types(leaf.dtype, jnp.float32) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.dtype
