"""Gradient routing: which leaves move, by which loss, in which order (Roffo et al. 2024).

A step is a list of passes. A pass takes the gradient of its loss with respect to the leaves of its labels, while
`jax.lax.stop_gradient` holds all others, and `optax.multi_transform` moves these leaves alone. A mode puts a gate pass
and a main pass in order.

In the equations, optimizer ``A`` moves the weights ``w`` and ``B`` the gates ``g``. ``L`` is the loss on the batch
``x``. ``G`` is the gate loss (``L`` unless another is given) plus any penalty, on the gate batch ``x'`` (``x`` unless
another is given).
"""

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from fsg_jax._checks import check_integer, expect, look_up
from fsg_jax.routing.labels import RoutedTransformation, as_routed
from fsg_jax.routing.means import Mean, as_means, like, total
from fsg_jax.typing import GATES, Batch, Key, PyTree

LossFn: TypeAlias = Callable[[PyTree, PyTree, Batch, Key], tuple[Any, tuple[PyTree, dict[str, Any]]]]
"""``loss_fn(trainable, model_state, batch, key) -> (loss, (model_state, metrics))``, of pytrees of arrays.

The loss and each metric is a scalar, or a `Mean`, or a list of both, whose values are added."""


class Pass(NamedTuple):
    """One pass of a step: the labels that it moves, the loss that it lowers, the batch that it sees."""

    labels: Collection[str]
    loss: Any = None
    """A `LossFn`; given to `fsg_jax.make_train_step`, a loss of outputs and batch. None: that of the step."""
    batch: str = "batch"
    """Which batch of the step it sees: ``"batch"`` or ``"gate_batch"``."""
    at_start: bool = False
    """Takes the gradient at the leaves as the step found them, not as the passes before have left them."""
    updates_state: bool | None = None
    """Keeps the model state (e.g. BatchNorm statistics) that its forward pass gives. None: if it is the last pass."""
    when: Callable[[Any], Any] | None = None
    """Whether it runs at a step, counted from 0; None: always."""
    differentiated: Collection[str] | None = None
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
    return [main._replace(labels={*gate.labels, *main.labels})]


def joint(gate: Pass, main: Pass) -> list[Pass]:
    """Two optimizers, both at the old point: ``g' = B(g; grad_g G(w, g; x'))``, ``w' = A(w; grad_w L(w, g; x))``.

    One backward pass serves both, unless the gates have a loss or a batch of their own.
    """
    if gate.loss is main.loss and gate.batch == main.batch:
        return [main._replace(labels={*gate.labels, *main.labels})]
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
    both = {*gate.labels, *main.labels}
    return [
        gate._replace(differentiated=both, updates_state=True, combine=partial(_accumulate_and_clip, clip[0])),
        main._replace(differentiated=both, combine=partial(_accumulate_and_clip, clip[1])),
    ]


ROUTINGS: Mapping[str, Any] = dict(none=single_optimizer, joint=joint, sequential=sequential, reference=reference)
"""The modes by name: functions that put a gate pass and a main pass in order."""


def routed_update(
    loss_fn: LossFn,
    tx: optax.GradientTransformation | RoutedTransformation,
    routing: str = "sequential",
    *,
    gate_loss_fn: LossFn | None = None,
    gate_labels: Collection[str] | None = None,
    gate_every: int = 1,
    gate_when: Callable[[Any], Any] | None = None,
    accumulate: int = 1,
    clip: tuple[float | None, float | None] = (None, None),
    passes: Sequence[Pass] | None = None,
) -> Callable[..., tuple[PyTree, optax.OptState, PyTree, dict[str, Any]]]:
    """A step on pytrees of arrays: of Flax collections, of an NNX or Equinox module, or of plain dicts.

    ``update(trainable, opt_state, model_state, batch, key, gate_batch=None, step=0)`` returns the new ``trainable``,
    ``opt_state`` and ``model_state``, with the structure and dtypes of the old ones, and the metrics of the last pass
    with ``grad_norm`` by label. It is pure and not jitted.

    Args:
      loss_fn: ``loss_fn(trainable, model_state, batch, key) -> (loss, (model_state, metrics))``; see `LossFn`.
      tx: from `routed`; ``opt_state`` is its ``tx.init(trainable)``. A plain optax transformation moves every leaf.
      routing: ``"none"``, ``"joint"``, ``"sequential"`` (the paper) or ``"reference"``.
      gate_loss_fn: loss of the gate pass, if not `loss_fn`.
      gate_labels: labels that the gate pass moves; by default those that hold only leaves of ``tree["gates"]``, or, in
        a tree without such a branch, the label ``"gates"``.
      gate_every: k runs the gate pass of ``"sequential"`` at steps 0, k, 2k, ...; a schedule of the gates' optimizer
        counts these.
      gate_when: whether the gate pass of ``"sequential"`` runs at a step, e.g. ``lambda step: step >= 5 * epoch`` to
        start or end it late. With other modes wrap the optimizer in ``optax.transforms.conditionally_mask``.
      accumulate: number of micro-batches into which every batch is cut along the first axis of its leaves; a scalar
        leaf is for all.
      clip: thresholds over all leaves of gate pass and main pass, for ``"reference"`` only.
      passes: of one's own, in order, in place of those of `routing`.

    Raises:
      ValueError: unknown routing; numbers out of range; options that do not belong to the routing; `passes` that leave
        out a label that is not frozen, or name one that is not there. When it runs: one optimizer for gates and
        weights with a mode that moves them apart; a batch that cannot be cut.
    """
    tx, mode = as_routed(tx), look_up(ROUTINGS, routing, "routing")
    check_integer("gate_every", gate_every, 1)
    check_integer("accumulate", accumulate, 1)
    always = gate_every == 1 and gate_when is None
    expect(always or (routing == "sequential" and not passes), "gate_every, gate_when", "routing 'sequential'", routing)
    if routing == "reference":
        mode = partial(mode, clip=clip)
    expect(clip == (None, None) or routing == "reference", "reference_clip", "routing 'reference'", routing)
    due = None if always else lambda step: (step % gate_every == 0) & (True if gate_when is None else gate_when(step))

    def update(
        trainable: PyTree,
        opt_state: Any,
        model_state: PyTree,
        batch: Any,
        key: Key,
        gate_batch: Any = None,
        step: Any = 0,
    ) -> tuple[PyTree, Any, PyTree, dict[str, Any]]:
        labels, order = tx.labels(trainable), list(passes or [])
        if passes is None:
            gates = gate_pass(trainable, labels, gate_labels, tx, routing)
            main = Pass(frozenset(jax.tree.leaves(labels)) - gates, loss_fn)
            name = "batch" if gate_batch is None else "gate_batch"
            gate = Pass(gates, gate_loss_fn or loss_fn, name, when=due)
            together = gate.loss is loss_fn and gate_batch is None
            expect(together or routing != "none", "gate_loss and gate_batch", "another routing", routing)
            order = mode(gate, main) if gates else [main]
        moving, moved = set(jax.tree.leaves(labels)) - tx.frozen, {label for one in order for label in one.labels}
        expect(moving == moved - tx.frozen, "passes", f"those of all moving labels, {sorted(moving)}", sorted(moved))

        batches = {"batch": batch, "gate_batch": gate_batch}
        point, metrics, grads = Point(trainable, opt_state, model_state), {}, None
        norms: dict[str, Array] = {}
        for i, one in enumerate(order):
            last = i == len(order) - 1
            one = one._replace(
                labels=frozenset(one.labels) - tx.frozen,
                loss=one.loss or loss_fn,
                updates_state=last if one.updates_state is None else one.updates_state,
                differentiated=frozenset(one.differentiated or one.labels) - tx.frozen,
            )
            if not (one.differentiated or last):
                continue
            take = partial(_take, one, tx, labels, trainable, grads, batches[one.batch], key, accumulate)
            if one.when is None:
                point, (metrics, new), grads = take(point)
            else:
                run = partial(lambda take, point: take(point)[:2], take)
                point, (metrics, new) = jax.lax.cond(one.when(step), run, partial(_skip, run), point)
            norms |= new
        return *point, {**metrics, "grad_norm": norms}

    return update


def gate_pass(
    trainable: PyTree, labels: PyTree, chosen: Collection[str] | None, tx: RoutedTransformation, routing: str
) -> frozenset[str]:
    """Labels of the gate pass."""
    everything = set(jax.tree.leaves(labels))
    of_gates = {GATES} & everything
    if chosen is not None:
        expect(everything.issuperset(chosen), "gate_labels", f"labels of leaves, {sorted(everything)}", sorted(chosen))
        return frozenset(chosen)
    if isinstance(trainable, Mapping) and GATES in trainable:
        of_gates = set(jax.tree.leaves(labels[GATES]))
        mixed = of_gates & set(jax.tree.leaves({k: v for k, v in labels.items() if k != GATES}))
        expect(not mixed or mixed == everything, "labels", "labels of their own for gates", f"shared {sorted(mixed)}")
        apart = routing == "none" or not (of_gates and mixed)
        found = "one for both; use fsg.routed(params=..., gates=...), or routing='none'"
        expect(apart, f"routing {routing!r}", "optimizers for gates and weights", found)
        of_gates -= mixed
    if of_gates - tx.frozen and routing == "none":
        hint = "is 'joint'; give one plain optax transformation to move gates and weights alike"
        warnings.warn(f"routing 'none' with optimizers of their own for {sorted(of_gates)} {hint}", stacklevel=2)
    return frozenset(of_gates)


def _take(one: Pass, tx: RoutedTransformation, labels: PyTree, start: PyTree, before: PyTree, *rest: Any) -> Any:
    *of_pass, point = rest
    at = point._replace(trainable=start) if one.at_start else point
    grads, value, model_state, metrics = gradient(one, labels, at, *of_pass)
    if one.combine is not None:
        grads = one.combine(before, grads)
    trainable, opt_state = tx.step(one.labels, grads, point.opt_state, point.trainable, value=value)
    new = Point(trainable, opt_state, model_state if one.updates_state else point.model_state)
    return new, (metrics, _norms(labels, grads)), grads


def _skip(take: Callable[..., Any], point: Point) -> tuple[Point, Any]:
    return point, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(take, point)[1])


def gradient(one: Pass, labels: PyTree, point: Point, batch: Batch, key: Key, n: int = 1) -> tuple[Any, Any, Any, Any]:
    """The gradient of one pass, its loss, the model state that its forward pass gives, and its metrics.

    Gradients are None at the leaves that the pass does not differentiate. With ``n > 1`` the batch is cut into n equal
    micro-batches along its leading axis; the loss, its gradient and the metrics are those of the whole batch, each
    `Mean` being divided by its weight in all of it, and the model state runs through them in order.

    Raises:
      ValueError: the batch cannot be cut into n equal parts.
    """
    active = one.differentiated or frozenset()

    def loss(trainable: PyTree, model_state: PyTree, batch: Batch, key: Key, weights: list[Any] | None) -> Any:
        held = jax.tree.map(lambda k, leaf: leaf if k in active else jax.lax.stop_gradient(leaf), labels, trainable)
        terms, new, metrics = _call(one.loss, held, model_state, batch, key)
        weights = [term.weight for term in terms] if weights is None else weights
        value = sum(Mean(t.total, jax.lax.stop_gradient(w)).value() for t, w in zip(terms, weights, strict=True))
        return value, (like(new, model_state), metrics)

    def grad(model_state: PyTree, batch: Batch, key: Key, weights: list[Any] | None = None) -> Any:
        of_loss = jax.value_and_grad(loss, has_aux=True, allow_int=True)
        (value, aux), grads = of_loss(point.trainable, model_state, batch, key, weights)
        return jax.tree.map(lambda k, g: g if k in active else None, labels, grads), value, *aux

    def weigh(xs: Any) -> list[Any]:  # the compiler drops the forward pass, unless weights depend on it
        return [term.weight for term in _call(one.loss, point.trainable, point.model_state, *xs)[0]]

    def body(carry: tuple[PyTree, Array, PyTree], xs: Any) -> tuple[tuple[PyTree, Array, PyTree], Any]:
        grads, value, model_state, metrics = grad(carry[2], xs[0], xs[1], weights)
        return (jax.tree.map(jnp.add, carry[0], grads), carry[1] + value, model_state), metrics

    if n == 1:
        grads, value, model_state, metrics = grad(point.model_state, batch, key)
    else:
        xs = (_micro_batches(batch, n), jax.random.split(key, n))
        weights = [jnp.sum(w) for w in jax.lax.map(weigh, xs)]
        zeros = jax.tree.map(lambda k, leaf: jnp.zeros_like(leaf) if k in active else None, labels, point.trainable)
        (grads, value, model_state), metrics = jax.lax.scan(body, (zeros, jnp.zeros(()), point.model_state), xs)
        metrics = jax.tree.map(lambda x: x.sum(0), metrics)
    return grads, value, model_state, {name: total(means) for name, means in metrics.items()}


def _call(loss_fn: LossFn, trainable: PyTree, model_state: PyTree, batch: Batch, key: Key) -> tuple[Any, Any, Any]:
    """Terms of the loss, new model state, and terms of the metrics."""
    found: Any = loss_fn(trainable, model_state, batch, key)
    loss, (model_state, metrics) = found if type(found) is tuple else (found, (model_state, {}))
    return as_means(loss), model_state, {name: as_means(value) for name, value in metrics.items()}


def _micro_batches(batch: Batch, n: int) -> Batch:
    """The batch with a new first axis, of its n parts; a scalar is in all of them."""
    sizes = {leaf.shape[0] for leaf in jax.tree.leaves(batch) if jnp.ndim(leaf)}
    fits = len(sizes) == 1 and min(sizes) % n == 0
    expect(fits, "accumulate", f"a divisor of the first axis of all leaves of the batch, {sorted(sizes)}", n)

    def cut(leaf: Any) -> Any:
        return leaf.reshape(n, -1, *leaf.shape[1:]) if jnp.ndim(leaf) else jnp.broadcast_to(leaf, (n,))

    return jax.tree.map(cut, batch)


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
