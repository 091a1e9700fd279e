"""`TrainState`: everything a run is, as one pytree."""

import inspect
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import NamedSharding, PartitionSpec

from fsg_jax.gates.gate import GATES
from fsg_jax.gates.summary import find_gate_kinds
from fsg_jax.routing.labels import RoutedTransformation, as_routed
from fsg_jax.typing import Key, PyTree

TRAINABLE = ("params", GATES)
"""Collections that optimizers move; every other collection is model state, which the forward pass updates."""

RNG_STREAMS = ("dropout", GATES)
"""Random streams given to the model in training."""


@struct.dataclass
class TrainState:
    """Variables by collection, optimizer state, step, random key and, if asked for, averaged variables.

    Attributes:
      step: number of steps taken, int32 scalar.
      variables: ``{"params", "gates", "batch_stats", ...}``, whichever the model has.
      opt_state: state of `tx`.
      rng: root key of the run; step t uses ``fold_in(rng, t)``.
      ema: exponential moving average of `variables`, or None.
      model: the module (static).
      tx: optimizers by label (static).
      gate_kinds: ``(name, kind)`` of every static gate, in the order of the forward pass (static).
      ema_decay: decay of `ema` (static).
    """

    # Leaves are not typed as arrays: tree transformations put shapes, specs and None in their places.
    step: Any
    variables: dict[str, PyTree]
    opt_state: optax.OptState
    rng: Any
    ema: dict[str, PyTree] | None
    model: nn.Module = struct.field(pytree_node=False)
    tx: RoutedTransformation = struct.field(pytree_node=False)
    gate_kinds: tuple[tuple[str, str], ...] = struct.field(pytree_node=False)
    ema_decay: float | None = struct.field(pytree_node=False)

    @property
    def trainable(self) -> dict[str, PyTree]:
        """The collections that optimizers move."""
        return {k: v for k, v in self.variables.items() if k in TRAINABLE}

    @property
    def model_state(self) -> dict[str, PyTree]:
        """The collections that the forward pass updates, e.g. ``batch_stats``."""
        return {k: v for k, v in self.variables.items() if k not in TRAINABLE}

    @property
    def params(self) -> PyTree:
        """The ``"params"`` collection."""
        return self.variables["params"]

    @property
    def gates(self) -> PyTree:
        """The ``"gates"`` collection; empty for a model without static gates."""
        return self.variables.get(GATES, {})

    @property
    def batch_stats(self) -> PyTree:
        """The ``"batch_stats"`` collection; empty for a model without BatchNorm."""
        return self.variables.get("batch_stats", {})


def init_state(
    model: nn.Module,
    tx: optax.GradientTransformation | RoutedTransformation,
    key: Key,
    inputs: Any,
    *,
    variables: dict[str, PyTree] | None = None,
    ema_decay: float | None = None,
) -> TrainState:
    """The state at step 0.

    The same key gives a gated model and its ungated twin the same ``params``.

    Args:
      model: a Flax module, called as ``model(inputs)`` or ``model(inputs, train=...)``.
      tx: from `fsg_jax.routed`, or a plain optax transformation, which then moves gates and weights alike.
      key: seeds initialisation and, by its own branch, all randomness of training.
      inputs: an example batch; its values do not matter.
      variables: start from these (e.g. pretrained) instead of initialising. They are copied.
      ema_decay: keep an exponential moving average of all variables with this decay, in (0, 1).

    Raises:
      ValueError: a leaf without or with two labels, named; `ema_decay` out of range.
    """
    if ema_decay is not None and not 0 < ema_decay < 1:
        raise ValueError(f"ema_decay: expected a number in (0, 1) or None, found {ema_decay}")
    init_key, rng = jax.random.split(key)
    if variables is None:
        variables = jax.jit(model.init)(init_key, inputs)
    variables = jax.tree.map(jnp.array, dict(variables))
    tx = as_routed(tx)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        variables=variables,
        opt_state=tx.init({k: v for k, v in variables.items() if k in TRAINABLE}),
        rng=rng,
        ema=None if ema_decay is None else jax.tree.map(jnp.copy, variables),
        model=model,
        tx=tx,
        gate_kinds=find_gate_kinds(model, init_key, inputs),
        ema_decay=ema_decay,
    )


def apply_model(
    model: nn.Module, variables: dict[str, PyTree], inputs: Any, *, train: bool, rngs: dict[str, Key] | None = None
) -> tuple[Any, dict[str, PyTree]]:
    """Returns outputs and updated model state; passes ``train=`` to modules whose ``__call__`` takes it."""
    kwargs: dict[str, Any] = {"train": train} if "train" in inspect.signature(type(model).__call__).parameters else {}
    mutable = [k for k in variables if k not in TRAINABLE] if train else []
    return model.apply(variables, inputs, rngs=rngs, mutable=mutable, **kwargs)  # type: ignore[return-value]


def gather_leaves(tree: PyTree, shardings: PyTree) -> PyTree:
    """Gathers the leaves that `shardings`, a tree like `tree`, splits over devices; their gradients come back split.

    Inside jit. Without it the partitioner may split activations as the parameters are split.
    """
    return jax.tree.map(lambda leaf, s: leaf if s.is_fully_replicated else _gather(leaf, s), tree, shardings)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gather(leaf: jax.Array, sharding: NamedSharding) -> jax.Array:
    return jax.lax.with_sharding_constraint(leaf, NamedSharding(sharding.mesh, PartitionSpec()))


_gather.defvjp(lambda leaf, s: (_gather(leaf, s), None), lambda s, _, g: (jax.lax.with_sharding_constraint(g, s),))
