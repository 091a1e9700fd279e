"""Gradient routing: which leaves move, by which loss, in which order (Roffo et al. 2024).

A step is a list of passes. A pass takes the gradient of its loss with respect to the leaves of its labels, while
`jax.lax.stop_gradient` holds all others, and `optax.multi_transform` moves these leaves alone. A mode puts a gate pass
and a main pass in order.

In the equations, optimizer ``A`` moves the weights ``w`` and ``B`` the gates ``g``. ``L`` is the loss on the batch
``x``. ``G`` is the gate loss (``L`` unless another is given) plus any penalty, on the gate batch ``x'`` (``x`` unless
another is given).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from fsg_jax.routing.labels import RoutedTransformation
from fsg_jax.typing import Batch, Key, PyTree

LossFn: TypeAlias = Callable[[PyTree, PyTree, Batch, Key], tuple[Array, tuple[PyTree, dict[str, Array]]]]
"""``loss_fn(trainable, model_state, batch, key) -> (loss, (model_state, metrics))``, of pytrees of arrays."""

Report: TypeAlias = tuple[dict[str, Array], dict[str, Array]]
"""Metrics of a pass, and gradient norms by label."""


class Pass(NamedTuple):
    """One pass of a step: the labels that it moves, the loss that it lowers, the batch that it sees."""

    labels: frozenset[str]
    loss: LossFn
    batch: Batch
    at_start: bool = False
    """Takes the gradient at the leaves as the step found them, not as the passes before have left them."""
    updates_state: bool = True
    """Keeps the model state (e.g. BatchNorm statistics) that its forward pass gives."""
    every: int = 1
    """k: runs at steps 0, k, 2k, ... only."""
    differentiated: frozenset[str] | None = None
    """Labels whose gradient is taken; by default those that move."""
    combine: Callable[[PyTree | None, PyTree], PyTree] | None = None
    """Gradients to apply, from those of the pass before (None at the first) and its own."""


class Point(NamedTuple):
    """What a step moves."""

    trainable: PyTree
    opt_state: optax.OptState
    model_state: PyTree


def single_optimizer(gate: Pass, main: Pass) -> list[Pass]:
    """One gradient, one optimizer: ``(w, g) <- A(w, g; grad_{w,g} L(w, g; x))``, the arm "FSG without GR"."""
    return [main._replace(labels=gate.labels | main.labels)]


def joint(gate: Pass, main: Pass) -> list[Pass]:
    """Two optimizers, both at the old point: ``g' = B(g; grad_g G(w, g; x'))``, ``w' = A(w; grad_w L(w, g; x))``.

    One backward pass serves both, unless the gates have a loss or a batch of their own.
    """
    if gate.loss is main.loss and gate.batch is main.batch:
        return [main._replace(labels=gate.labels | main.labels)]
    return [gate, main._replace(at_start=True)]


def sequential(gate: Pass, main: Pass) -> list[Pass]:
    """The paper's two passes: ``g' = B(g; grad_g G(w, g; x'))``, then ``w' = A(w; grad_w L(w, g'; x))``.

    Both passes see the same random draws. Only the main pass updates the model state.
    """
    return [gate, main]


def reference(gate: Pass, main: Pass, clip: tuple[float | None, float | None] = (None, None)) -> list[Pass]:
    """What the released code does without a gradient scaler; for parity studies only.

    ``a = c(grad_{w,g} G(w, g), t_gate)``, ``g' = B(g; a_g)``; then ``b = c(a + grad_{w,g} L(w, g'), t_main)``,
    ``w' = A(w; b_w)``, where ``c(h, t) = min(1, t / (|h| + 1e-6)) h`` over all leaves, and NaN and Inf become 0. So the
    gradients of the gate pass are not cleared, and both passes update the model state. Flax keeps the biased running
    variance, PyTorch the unbiased one: running variances differ by n/(n-1).
    """
    both = gate.labels | main.labels
    return [
        gate._replace(differentiated=both, updates_state=True, combine=partial(_accumulate_and_clip, clip[0])),
        main._replace(differentiated=both, combine=partial(_accumulate_and_clip, clip[1])),
    ]


ROUTINGS: dict[str, Callable[..., list[Pass]]] = {
    "none": single_optimizer,
    "joint": joint,
    "sequential": sequential,
    "reference": reference,
}


def take_passes(
    passes: list[Pass], tx: RoutedTransformation, point: Point, key: Key, *, step: Any = 0, accumulate: int = 1
) -> tuple[Point, dict[str, Array], dict[str, Array]]:
    """Takes the passes in order, each with the same `key`.

    Args:
      passes: from a mode, or of one's own.
      tx: the optimizer of every label.
      point: where the step begins.
      key: random draws of the forward passes.
      step: number of the step, from 0, for `Pass.every`.
      accumulate: number of micro-batches that a batch is cut into, see `gradient`.

    Returns:
      The new point, the metrics of the last pass, and the gradient norm of every label that was differentiated.
    """
    labels, start = tx.labels(point.trainable), point.trainable
    grads: PyTree | None = None
    norms: dict[str, Array] = {}
    for one in passes:
        take = partial(_take, one, tx, labels, start, grads, key, accumulate)
        if one.every == 1:
            point, report, grads = take(point)
        else:
            due = step % one.every == 0
            point, report = jax.lax.cond(due, lambda p, take=take: take(p)[:2], partial(_skip, take), point)
        norms |= report[1]
    return point, report[0], norms


def _take(
    one: Pass, tx: RoutedTransformation, labels: PyTree, start: PyTree, before: PyTree, key: Key, n: int, point: Point
) -> tuple[Point, Report, PyTree]:
    at = point._replace(trainable=start) if one.at_start else point
    grads, model_state, metrics = gradient(one, labels, at, key, n)
    if one.combine is not None:
        grads = one.combine(before, grads)
    trainable, opt_state = tx.step(one.labels, grads, point.opt_state, point.trainable)
    moved = Point(trainable, opt_state, model_state if one.updates_state else point.model_state)
    return moved, (metrics, _norms(labels, grads)), grads


def _skip(take: Callable[..., Any], point: Point) -> tuple[Point, Report]:
    return point, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(take, point)[1])


def gradient(
    one: Pass, labels: PyTree, point: Point, key: Key, accumulate: int = 1
) -> tuple[PyTree, PyTree, dict[str, Array]]:
    """The gradient of one pass, the model state that its forward pass gives, and its metrics.

    Gradients are None at the leaves that the pass does not differentiate. With ``accumulate = n > 1`` the batch is cut
    into n equal micro-batches along its leading axis: gradients and metrics are their means, and the model state runs
    through them in order.

    Raises:
      ValueError: the batch cannot be cut into n equal parts.
    """
    active = one.labels if one.differentiated is None else one.differentiated

    def loss(trainable: PyTree, model_state: PyTree, batch: Batch, key: Key) -> Any:
        held = jax.tree.map(lambda k, leaf: leaf if k in active else jax.lax.stop_gradient(leaf), labels, trainable)
        return one.loss(held, model_state, batch, key)

    def grad(model_state: PyTree, batch: Batch, key: Key) -> tuple[PyTree, PyTree, dict[str, Array]]:
        grads, (model_state, metrics) = jax.grad(loss, has_aux=True)(point.trainable, model_state, batch, key)
        return jax.tree.map(lambda k, g: g if k in active else None, labels, grads), model_state, metrics

    if accumulate == 1:
        return grad(point.model_state, one.batch, key)

    def body(carry: tuple[PyTree, PyTree], xs: tuple[Batch, Key]) -> tuple[tuple[PyTree, PyTree], dict[str, Array]]:
        grads, model_state, metrics = grad(carry[1], *xs)
        return (jax.tree.map(jnp.add, carry[0], grads), model_state), metrics

    zeros = jax.tree.map(lambda k, leaf: jnp.zeros_like(leaf) if k in active else None, labels, point.trainable)
    xs = _micro_batches(one.batch, accumulate), jax.random.split(key, accumulate)
    (total, model_state), metrics = jax.lax.scan(body, (zeros, point.model_state), xs)
    return jax.tree.map(lambda g: g / accumulate, total), model_state, jax.tree.map(lambda m: m.mean(0), metrics)


def _micro_batches(batch: Batch, n: int) -> dict[str, Any]:
    size = jax.tree.leaves(batch)[0].shape[0]
    if size % n:
        raise ValueError(f"accumulate: expected a divisor of {size}, the batch size, found {n}")
    return jax.tree.map(lambda v: v.reshape(n, size // n, *v.shape[1:]), dict(batch))


def _accumulate_and_clip(threshold: float | None, before: PyTree | None, grads: PyTree) -> PyTree:
    if before is not None:
        grads = jax.tree.map(jnp.add, before, grads)
    if threshold is not None:
        factor = jnp.minimum(1.0, threshold / (optax.tree.norm(grads) + 1e-6))
        grads = jax.tree.map(lambda g: g * factor, grads)
    return jax.tree.map(lambda g: jnp.where(jnp.isfinite(g), g, 0.0), grads)


def _norms(labels: PyTree, grads: PyTree) -> dict[str, Array]:
    """Euclidean norm of the gradients by label."""
    by_label: dict[str, list[Array]] = {}
    jax.tree.map(lambda k, g: None if g is None else by_label.setdefault(k, []).append(g), labels, grads)
    return {label: optax.tree.norm(leaves) for label, leaves in sorted(by_label.items())}
