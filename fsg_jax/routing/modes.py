"""Gradient routing: who may move what, and in which order (Roffo et al. 2024).

Weights ``w`` and gates ``g`` are moved by optimizers ``A`` and ``B``; ``L`` is the loss, ``G`` the gate loss (``L``
itself unless another is given) plus any gate penalty; ``x`` is the batch, ``x'`` the gate pass's batch (``x`` itself
unless another is given). "Gradient routing" in Cloud et al. 2024 is a different method, a mask on the backward
pass; `route` is its primitive.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from fsg_jax._checks import look_up
from fsg_jax.routing.gradients import Gradient, Pass, tree_norm
from fsg_jax.training.state import TrainState
from fsg_jax.typing import PyTree


@jax.custom_jvp
def route(x: Float[Array, "..."], mask: Num[Array, "..."] | Bool[Array, "..."] | float) -> Float[Array, "..."]:
    """Identity forward; backward, the gradient is multiplied by `mask`, which broadcasts to the shape of `x`.

    ``route(x, 0)`` is `jax.lax.stop_gradient`, ``route(x, 1)`` the identity, a constant in between scales the
    gradient. In value and gradient it is ``m x + (1 - m) stop_gradient(x)`` (Cloud et al. 2024), bit for bit ``x``.
    """
    del mask
    return x


@route.defjvp
def _route_jvp(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[Array, Array]:
    (x, mask), (dx, _) = primals, tangents
    return x, jnp.broadcast_to(jnp.asarray(mask), dx.shape).astype(dx.dtype) * dx


class Passes(NamedTuple):
    """What a routing mode puts together: gradients of the two passes and the labels that each moves."""

    main: Pass
    gate: Pass
    share: Callable[..., tuple[Pass, Pass]] | None
    """``share(trainable, model_state, gate_labels) -> (gate, main)``: the same passes with what they have in common
    computed once; None where they have another batch each, or go through it in parts."""
    gate_labels: frozenset[str]
    weight_labels: frozenset[str]
    separate: bool
    """Whether the gate pass has a loss or a batch of its own."""
    every: int
    clip: tuple[float | None, float | None]


class Routed(NamedTuple):
    """Result of one routed step."""

    trainable: PyTree
    opt_state: Any
    main: Gradient
    gate_grads: PyTree


def none(state: TrainState, passes: Passes) -> Routed:
    """One gradient, one optimizer: ``(w, g) <- A(w, g; grad_{w,g} L(w, g; x))``, the arm "FSG without GR"."""
    return _together(state, passes)


def joint(state: TrainState, passes: Passes) -> Routed:
    """Two optimizers, both at the old point: ``w <- A(w; grad_w L(w, g; x))``, ``g <- B(g; grad_g G(w, g; x'))``.

    One backward pass, unless the gates have a loss or a batch of their own.
    """
    if not passes.separate:
        return _together(state, passes)
    gate = passes.gate(state.trainable, state.model_state, passes.gate_labels)
    main = passes.main(state.trainable, state.model_state, passes.weight_labels)
    trainable, opt_state = state.tx.step(passes.gate_labels, gate.grads, state.opt_state, state.trainable)
    trainable, opt_state = state.tx.step(passes.weight_labels, main.grads, opt_state, trainable)
    return Routed(trainable, opt_state, main, gate.grads)


def sequential(state: TrainState, passes: Passes) -> Routed:
    """The paper's two passes: ``g' = B(g; grad_g G(w, g; x'))``, then ``w' = A(w; grad_w L(w, g'; x))``.

    The gate pass differentiates the gates alone, so that it has no weight gradients, and layers before the first
    gate, the same in both passes, are computed once (`fsg_jax.routing.shared_passes`). Both passes see the same random
    draws. Model state (BatchNorm statistics) is updated once, by the main pass. With ``gate_every=k`` the gate pass
    runs at steps 0, k, 2k, ...
    """
    if not passes.gate_labels:
        return _together(state, passes)

    gate, main = passes.gate, passes.main
    if passes.share is not None:
        gate, main = passes.share(state.trainable, state.model_state, passes.gate_labels)

    def gate_pass(trainable: PyTree, opt_state: Any) -> tuple[PyTree, Any, PyTree]:
        grads = gate(trainable, state.model_state, passes.gate_labels).grads
        trainable, opt_state = state.tx.step(passes.gate_labels, grads, opt_state, trainable)
        return trainable, opt_state, grads

    def skip(trainable: PyTree, opt_state: Any) -> tuple[PyTree, Any, PyTree]:
        grads = jax.eval_shape(gate_pass, trainable, opt_state)[2]
        return trainable, opt_state, jax.tree.map(lambda g: jnp.zeros(g.shape, g.dtype), grads)

    if passes.every == 1:
        trainable, opt_state, gate_grads = gate_pass(state.trainable, state.opt_state)
    else:
        due = state.step % passes.every == 0
        trainable, opt_state, gate_grads = jax.lax.cond(due, gate_pass, skip, state.trainable, state.opt_state)
    moved = main(trainable, state.model_state, passes.weight_labels)
    trainable, opt_state = state.tx.step(passes.weight_labels, moved.grads, opt_state, trainable)
    return Routed(trainable, opt_state, moved, gate_grads)


def reference(state: TrainState, passes: Passes) -> Routed:
    """What the released code does without a gradient scaler; for parity studies only.

    ``c(h, t) = min(1, t / (|h| + 1e-6))`` clips over all leaves, NaN and Inf then become 0. Pass A, at ``(w, g)``:
    ``a = clip(grad_{w,g} G, t_gate)``; ``g' = B(g; a_g)``. Pass B, at ``(w, g')``: ``b = clip(a + grad_{w,g} L,
    t_main)``; ``w' = A(w; b_w)``. The gradients of pass A are not cleared, and both passes update the model state.
    Flax's running variance is the biased one, PyTorch's the unbiased, so running variances differ by n/(n-1).
    """
    if not passes.gate_labels:
        return _together(state, passes)
    labels = passes.gate_labels | passes.weight_labels
    gate = passes.gate(state.trainable, state.model_state, labels)
    kept = _clip(gate.grads, passes.clip[0])
    trainable, opt_state = state.tx.step(passes.gate_labels, kept, state.opt_state, state.trainable)
    main = passes.main(trainable, gate.model_state, labels)
    grads = _clip(jax.tree.map(jnp.add, kept, main.grads), passes.clip[1])
    trainable, opt_state = state.tx.step(passes.weight_labels, grads, opt_state, trainable)
    return Routed(trainable, opt_state, main._replace(grads=grads), {})


ROUTINGS: dict[str, Callable[[TrainState, Passes], Routed]] = {
    "none": none,
    "joint": joint,
    "sequential": sequential,
    "reference": reference,
}


def get_routing(name: str) -> Callable[[TrainState, Passes], Routed]:
    """The routing mode of a name; an unknown name is a ValueError that suggests the nearest."""
    return look_up(ROUTINGS, name, "routing")


def _together(state: TrainState, passes: Passes) -> Routed:
    labels = passes.gate_labels | passes.weight_labels
    main = passes.main(state.trainable, state.model_state, labels)
    trainable, opt_state = state.tx.step(labels, main.grads, state.opt_state, state.trainable)
    return Routed(trainable, opt_state, main, {})


def _clip(grads: PyTree, threshold: float | None) -> PyTree:
    if threshold is not None:
        factor = jnp.minimum(1.0, threshold / (tree_norm(grads) + 1e-6))
        grads = jax.tree.map(lambda g: g * factor, grads)
    return jax.tree.map(lambda g: jnp.where(jnp.isfinite(g), g, 0.0), grads)
