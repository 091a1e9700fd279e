"""The gradient of one pass: of chosen labels only, over one batch or several micro-batches."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from fsg_jax.gates.gate import GATES
from fsg_jax.gates.penalties import Penalty
from fsg_jax.training.sharding import gather_leaves
from fsg_jax.training.state import STREAMS, TrainState, apply_model
from fsg_jax.typing import Batch, Key, Loss, PyTree


class Gradient(NamedTuple):
    """Gradients (None at leaves that do not move), updated model state, and metrics of the pass."""

    grads: PyTree
    model_state: PyTree
    metrics: dict[str, Array]


Pass = Callable[..., Gradient]
"""``(trainable, model_state, labels) -> Gradient``, with respect to the leaves of `labels`."""


class Objective(NamedTuple):
    """What a pass minimises, ``mean loss + penalty``, and the metrics to report of its outputs."""

    loss: Loss
    penalty: Penalty | None
    metrics: Mapping[str, Loss]


def pass_gradient(
    state: TrainState,
    objective: Objective,
    batch: Batch,
    key: Key,
    accumulate: int,
    shardings: PyTree | None,
    trainable: PyTree,
    model_state: PyTree,
    moved: Collection[str],
) -> Gradient:
    """Gradient of `objective` at `trainable` with respect to the leaves of the labels `moved`, and to no other.

    With ``accumulate = n > 1`` the batch is cut into n equal micro-batches; gradients and metrics are their means,
    and model state runs through them in order. Leaves that `shardings`, a tree like `trainable`, splits over devices
    are gathered where they are used, and their gradients are split.
    """
    leaves, held = divide(state, trainable, moved)

    def value(leaves: PyTree, model_state: PyTree, batch: Batch, key: Key) -> tuple[Array, tuple[Any, Any]]:
        whole = merge(leaves, held)
        outputs, model_state = forward(state, shardings, key, whole, model_state, batch["image"])
        loss, metrics = judge(state, objective, outputs, batch, whole)
        return loss, (model_state, metrics)

    grad = jax.grad(value, has_aux=True)
    if accumulate == 1:
        grads, (model_state, metrics) = grad(leaves, model_state, batch, key)
        return Gradient(grads, model_state, metrics)

    def body(carry: tuple[Any, Any], xs: tuple[Any, Any]) -> tuple[tuple[Any, Any], Any]:
        total, model_state = carry
        grads, (model_state, metrics) = grad(leaves, model_state, *xs)
        return (jax.tree.map(jnp.add, total, grads), model_state), metrics

    zeros = jax.tree.map(jnp.zeros_like, leaves)
    xs = _micro_batches(batch, accumulate), jax.random.split(key, accumulate)
    (total, model_state), metrics = jax.lax.scan(body, (zeros, model_state), xs)
    grads = jax.tree.map(lambda g: g / accumulate, total)
    return Gradient(grads, model_state, jax.tree.map(lambda m: m.mean(0), metrics))


def grad_norms(labels: PyTree, *grads: PyTree) -> dict[str, Float[Array, ""]]:
    """Global gradient norm by label, over the trees `grads`, in which None marks a leaf that did not move."""
    by_label: dict[str, list[Array]] = {}
    for tree in grads:
        if tree:
            jax.tree.map(lambda k, g: None if g is None else by_label.setdefault(k, []).append(g), labels, tree)
    return {label: tree_norm(leaves) for label, leaves in sorted(by_label.items())}


def tree_norm(tree: PyTree) -> Float[Array, ""]:
    """Euclidean norm of all leaves together."""
    return optax.tree.norm(tree)


def forward(
    state: TrainState, shardings: PyTree | None, key: Key, trainable: PyTree, model_state: PyTree, inputs: Any
) -> tuple[Any, PyTree]:
    """The model's outputs in training, and its updated model state. Arguments as of `pass_gradient`."""
    rngs = {name: jax.random.fold_in(key, i) for i, name in enumerate(STREAMS)}
    whole = trainable if shardings is None else gather_leaves(trainable, shardings)
    return apply_model(state.model, {**whole, **model_state}, inputs, train=True, rngs=rngs)


def judge(
    state: TrainState, objective: Objective, outputs: Any, batch: Batch, trainable: PyTree
) -> tuple[Array, dict[str, Array]]:
    """What a pass minimises, and its metrics."""
    loss = jnp.mean(objective.loss(outputs, batch))
    metrics = {"loss": loss} | {name: jnp.mean(f(outputs, batch)) for name, f in objective.metrics.items()}
    if objective.penalty is not None:
        loss = loss + objective.penalty(trainable.get(GATES, {}), state.gate_kinds)
    return loss, metrics


def divide(state: TrainState, trainable: PyTree, moved: Collection[str]) -> tuple[PyTree, PyTree]:
    """The leaves of the labels `moved` and all others, each with None in the places of the rest."""
    labels = state.tx.labels(trainable)
    some = jax.tree.map(lambda k, p: p if k in moved else None, labels, trainable)
    return some, jax.tree.map(lambda k, p: None if k in moved else p, labels, trainable)


def merge(some: PyTree, others: PyTree) -> PyTree:
    """The inverse of `divide`."""
    return jax.tree.map(lambda a, b: b if a is None else a, some, others, is_leaf=lambda x: x is None)


def batch_size(batch: Batch) -> int:
    """Number of examples; ``batch["image"]`` is an array or a tree of arrays (several input streams)."""
    return jax.tree.leaves(batch["image"])[0].shape[0]


def _micro_batches(batch: Batch, n: int) -> dict[str, Any]:
    size = batch_size(batch)
    if size % n:
        raise ValueError(f"a batch of {size} cannot be cut into accumulate={n} equal micro-batches")
    return jax.tree.map(lambda v: v.reshape(n, size // n, *v.shape[1:]), dict(batch))
