"""`TrainState`: everything a run is, as one pytree."""

from functools import partial
from typing import Any

import jax
import optax
from flax import struct
from jax.sharding import NamedSharding, PartitionSpec

from fsg_jax.routing.labels import RoutedTransformation
from fsg_jax.typing import GATES, GateKinds, PyTree


@struct.dataclass
class TrainState:
    """Variables by collection, optimizer state, step, random key and, if asked for, averaged variables.

    Attributes:
      step: number of steps taken, int32 scalar.
      variables: ``{"params", "gates", "batch_stats", ...}``, whichever the model has.
      opt_state: state of `tx`.
      rng: root key of the run; step t uses ``fold_in(rng, t)``.
      ema: exponential moving average of `variables`, in at least float32, or None; integers are not averaged.
      forward: how the module is called (static).
      tx: optimizers by label (static).
      gate_kinds: ``(name, kind)`` of every leaf of gate logits, in the order of the forward pass (static).
      ema_decay: decay of `ema` (static).
    """

    # Leaves are not typed as arrays: tree transformations put shapes, specs and None in their places.
    step: Any
    variables: dict[str, PyTree]
    opt_state: optax.OptState
    rng: Any
    ema: dict[str, PyTree] | None
    forward: Any = struct.field(pytree_node=False)
    tx: RoutedTransformation = struct.field(pytree_node=False)
    gate_kinds: GateKinds = struct.field(pytree_node=False)
    ema_decay: float | None = struct.field(pytree_node=False)

    @property
    def model(self) -> Any:
        """The module."""
        return self.forward.model

    @property
    def trainable(self) -> dict[str, PyTree]:
        """The collections that optimizers move."""
        return {k: v for k, v in self.variables.items() if k in self.forward.trainable}

    @property
    def model_state(self) -> dict[str, PyTree]:
        """The collections that the forward pass updates, e.g. ``batch_stats``."""
        return {k: v for k, v in self.variables.items() if k not in self.forward.trainable}

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


def gather_leaves(tree: PyTree, shardings: PyTree) -> PyTree:
    """Gathers the leaves that `shardings`, a tree like `tree`, splits over devices; their gradients come back split.

    Inside jit. Without it the partitioner may split activations as the parameters are split.
    """
    return jax.tree.map(lambda leaf, s: leaf if s.is_fully_replicated else _gather(leaf, s), tree, shardings)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gather(leaf: jax.Array, sharding: NamedSharding) -> jax.Array:
    return jax.lax.with_sharding_constraint(leaf, NamedSharding(sharding.mesh, PartitionSpec()))


_gather.defvjp(lambda leaf, s: (_gather(leaf, s), None), lambda s, _, g: (jax.lax.with_sharding_constraint(g, s),))
