"""Gate pass and main pass over one batch, with what comes before the first gate computed once."""

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp

from fsg_jax.routing.gradients import Gradient, Objective, Pass, divide, forward, judge, merge
from fsg_jax.routing.shared_prefix import split_before
from fsg_jax.training.state import TrainState
from fsg_jax.typing import Batch, Key, PyTree


def shared_passes(
    state: TrainState,
    gate: Objective,
    main: Objective,
    batch: Batch,
    key: Key,
    shardings: PyTree | None,
    trainable: PyTree,
    model_state: PyTree,
    moved: Collection[str],
) -> tuple[Pass, Pass]:
    """The two passes of sequential routing, each ``(trainable, model_state, labels) -> Gradient``.

    They compute what `fsg_jax.routing.gradients.pass_gradient` does, first for the labels `moved`, then for all others,
    when only the leaves of `moved` have changed since `trainable`. The forward pass up to the first of them, whose
    inputs are the same in both, is done here, once; the main pass goes back through it.
    """
    moving, fixed = divide(state, trainable, moved)

    def run(moving: PyTree, fixed: PyTree, inputs: Any) -> tuple[Any, PyTree]:
        return forward(state, shardings, key, merge(moving, fixed), model_state, inputs)

    halves = split_before(run, moving, fixed, batch["image"])
    crossing, pull_back = jax.vjp(lambda fixed: halves.before(fixed, batch["image"]), fixed)

    def value(objective: Objective, moving: PyTree, fixed: PyTree, crossing: list[jax.Array]) -> tuple[Any, Any]:
        outputs, new_state = halves.after(moving, fixed, crossing)
        loss, metrics = judge(state, objective, outputs, batch, merge(moving, fixed))
        return loss, (new_state, metrics)

    def gate_pass(trainable: PyTree, _: PyTree, labels: Collection[str]) -> Gradient:
        moving, _ = divide(state, trainable, labels)
        grads, (new_state, metrics) = jax.grad(lambda m: value(gate, m, fixed, crossing), has_aux=True)(moving)
        return Gradient(grads, new_state, metrics)

    def main_pass(trainable: PyTree, _: PyTree, labels: Collection[str]) -> Gradient:
        fixed, moving = divide(state, trainable, labels)
        loss, pull, (new_state, metrics) = jax.vjp(
            lambda f, c: value(main, moving, f, c), fixed, crossing, has_aux=True
        )
        after, to_crossing = pull(jnp.ones_like(loss))
        (before,) = pull_back(to_crossing)
        return Gradient(jax.tree.map(jnp.add, before, after), new_state, metrics)

    return gate_pass, main_pass
