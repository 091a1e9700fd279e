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

from fsg_jax._checks import check_integer, look_up
from fsg_jax.gates.gate import GATES
from fsg_jax.routing.labels import RoutedTransformation, as_routed
from fsg_jax.routing.labels import gate_labels as labels_of_gates
from fsg_jax.routing.means import Mean, as_means, like
from fsg_jax.typing import Batch, Key, PyTree

LossFn: TypeAlias = Callable[[PyTree, PyTree, Batch, Key], tuple[Any, tuple[PyTree, dict[str, Any]]]]
"""``loss_fn(trainable, model_state, batch, key) -> (loss, (model_state, metrics))``, of pytrees of arrays.

The loss and each metric is a scalar, or a `Mean`, or, the loss, a list of both, whose values are added."""

Report: TypeAlias = tuple[dict[str, Array], dict[str, Array]]
"""Metrics of a pass, and gradient norms by label."""


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
    every: int = 1
    """k: runs at steps 0, k, 2k, ... only."""
    between: tuple[int, int | None] = (0, None)
    """The first step at which it runs, and the first at which it does not any more."""
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


ROUTINGS: dict[str, Callable[..., list[Pass]]] = {
    "none": single_optimizer,
    "joint": joint,
    "sequential": sequential,
    "reference": reference,
}


def routed_update(
    loss_fn: LossFn,
    tx: optax.GradientTransformation | RoutedTransformation,
    routing: str = "sequential",
    *,
    gate_loss_fn: LossFn | None = None,
    gate_labels: Collection[str] | None = None,
    gate_every: int = 1,
    gate_between: tuple[int, int | None] = (0, None),
    accumulate: int = 1,
    clip: tuple[float | None, float | None] = (None, None),
    passes: Sequence[Pass] | None = None,
) -> Callable[..., tuple[PyTree, optax.OptState, PyTree, dict[str, Any]]]:
    """A step on pytrees of arrays: of Flax collections, of an NNX or Equinox module, or of plain dicts.

    ``update(trainable, opt_state, model_state, batch, key, *, gate_batch=None, step=0)`` returns the new ``trainable``,
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
      gate_between: the first step at which the gate pass of ``"sequential"`` runs, and the first at which it does not
        any more (None: it never ends): warm-up and freezing of the gates. With other modes wrap their optimizer in
        ``optax.transforms.conditionally_mask``.
      accumulate: number of micro-batches into which every batch is cut along the first axis of its leaves; a scalar
        leaf is for all.
      clip: thresholds over all leaves of gate pass and main pass, for ``"reference"`` only.
      passes: of one's own, in order, in place of those of `routing`.

    Raises:
      ValueError: unknown routing; numbers out of range; options that do not belong to the routing; `passes` that leave
        out a label that is not frozen, or name one that is not there. When it runs: one optimizer for gates and
        weights with a mode that moves them apart; a batch that cannot be cut.
    """
    mode = look_up(ROUTINGS, routing, "routing")
    tx = as_routed(tx)
    check_integer("gate_every", gate_every, 1)
    check_integer("accumulate", accumulate, 1)
    for name, value, default in (("gate_every", gate_every, 1), ("gate_between", gate_between, (0, None))):
        if value != default and (routing != "sequential" or passes is not None):
            raise ValueError(f"{name}: expected {default} unless routing is 'sequential', found {value}")
    if clip != (None, None):
        if routing != "reference":
            raise ValueError(
                f"reference_clip: needs routing 'reference', found {routing!r}; clip inside a label instead"
            )
        mode = partial(mode, clip=clip)

    def update(
        trainable: PyTree,
        opt_state: optax.OptState,
        model_state: PyTree,
        batch: Batch,
        key: Key,
        *,
        gate_batch: Batch | None = None,
        step: Any = 0,
    ) -> tuple[PyTree, optax.OptState, PyTree, dict[str, Any]]:
        if routing == "none" and passes is None and (gate_loss_fn is not None or gate_batch is not None):
            raise ValueError("routing 'none' has one loss and one batch; gate_loss and gate_batch need another mode")
        main = Pass(frozenset(), loss_fn)
        if passes is None:
            gates, weights = divide(tx, trainable, gate_labels, routing)
            gate = Pass(
                gates,
                gate_loss_fn or loss_fn,
                "batch" if gate_batch is None else "gate_batch",
                every=gate_every,
                between=gate_between,
            )
            order = mode(gate, main._replace(labels=weights)) if gates else [main._replace(labels=weights)]
        else:
            order = [one if one.loss is not None else one._replace(loss=loss_fn) for one in passes]
            _check_cover(order, tx, trainable)
        batches = {"batch": batch, "gate_batch": gate_batch}
        point, metrics, norms = take_passes(
            order, tx, Point(trainable, opt_state, model_state), batches, key, step=step, accumulate=accumulate
        )
        return *point, {**metrics, "grad_norm": norms}

    return update


def divide(
    tx: RoutedTransformation, trainable: PyTree, chosen: Collection[str] | None, routing: str
) -> tuple[frozenset[str], frozenset[str]]:
    """Labels of the gate pass and of the main pass."""
    labels = tx.labels(trainable)
    everything = frozenset(jax.tree.leaves(labels))
    if chosen is not None:
        gates = frozenset(chosen)
        if gates - everything:
            found = sorted(gates - everything)
            raise ValueError(f"gate_labels: expected labels of leaves, {sorted(everything)}, found {found}")
        return gates, everything - gates
    gates = labels_of_gates(trainable, labels)
    has_gates = bool(gates) or (isinstance(trainable, Mapping) and bool(jax.tree.leaves(trainable.get(GATES, {}))))
    if has_gates and not gates and routing != "none":
        raise ValueError(
            f"routing {routing!r} moves gates and weights apart, but one optimizer moves both; "
            "use fsg.routed(params=..., gates=...), or routing='none'"
        )
    if gates - tx.frozen and routing == "none":
        warnings.warn(
            f"routing 'none' with optimizers of their own for the gates ({sorted(gates)}) is the same as 'joint'; "
            "give init_state one plain optax transformation to move gates and weights alike",
            stacklevel=2,
        )
    return gates, everything - gates


def _check_cover(passes: Sequence[Pass], tx: RoutedTransformation, trainable: PyTree) -> None:
    moving = set(jax.tree.leaves(tx.labels(trainable))) - tx.frozen
    moved = {label for one in passes for label in one.labels}
    if moving ^ moved:
        raise ValueError(
            f"passes: expected to move every label that is not frozen, {sorted(moving)}, found {sorted(moved)}"
        )


def take_passes(
    passes: Sequence[Pass],
    tx: RoutedTransformation,
    point: Point,
    batches: Mapping[str, Batch | None],
    key: Key,
    *,
    step: Any = 0,
    accumulate: int = 1,
) -> tuple[Point, dict[str, Array], dict[str, Array]]:
    """Takes the passes in order, each with the same `key`.

    Args:
      passes: from a mode, or of one's own.
      tx: the optimizer of every label.
      point: where the step begins.
      batches: by the names that the passes give.
      key: random draws of the forward passes.
      step: number of the step, from 0, for `Pass.every` and `Pass.between`.
      accumulate: number of micro-batches that a batch is cut into, see `gradient`.

    Returns:
      The new point, the metrics of the last pass, and the gradient norm of every label that was differentiated.
    """
    labels, start = tx.labels(point.trainable), point.trainable
    grads: PyTree | None = None
    norms: dict[str, Array] = {}
    report: Report = ({}, {})
    for i, one in enumerate(passes):
        last = i == len(passes) - 1
        one = one._replace(
            labels=frozenset(one.labels) - tx.frozen,
            differentiated=frozenset(one.labels if one.differentiated is None else one.differentiated) - tx.frozen,
            updates_state=last if one.updates_state is None else one.updates_state,
        )
        if not (one.differentiated or last):
            continue
        take = partial(_take, one, tx, labels, start, grads, batches[one.batch], key, accumulate)
        if one.every == 1 and one.between == (0, None):
            point, report, grads = take(point)
        else:
            first, end = one.between
            due = (step % one.every == 0) & (step >= first) & (True if end is None else step < end)
            point, report = jax.lax.cond(due, lambda p, take=take: take(p)[:2], partial(_skip, take), point)
        norms |= report[1]
    return point, report[0], norms


def _take(
    one: Pass,
    tx: RoutedTransformation,
    labels: PyTree,
    start: PyTree,
    before: PyTree,
    batch: Any,
    key: Key,
    n: int,
    point: Point,
) -> tuple[Point, Report, PyTree]:
    at = point._replace(trainable=start) if one.at_start else point
    grads, model_state, metrics, value = gradient(one, labels, at, batch, key, n)
    if one.combine is not None:
        grads = one.combine(before, grads)
    trainable, opt_state = tx.step(one.labels, grads, point.opt_state, point.trainable, value=value)
    model_state = like(model_state, point.model_state, "model state") if one.updates_state else point.model_state
    return Point(trainable, opt_state, model_state), (metrics, _norms(labels, grads)), grads


def _skip(take: Callable[..., Any], point: Point) -> tuple[Point, Report]:
    return point, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(take, point)[1])


def gradient(
    one: Pass, labels: PyTree, point: Point, batch: Batch, key: Key, accumulate: int = 1
) -> tuple[PyTree, PyTree, dict[str, Array], Array]:
    """The gradient of one pass, the model state that its forward pass gives, its metrics, and its loss.

    Gradients are None at the leaves that the pass does not differentiate. With ``accumulate = n > 1`` the batch is cut
    into n equal micro-batches along its leading axis; the loss, its gradient and the metrics are those of the whole
    batch, each `Mean` being divided by its weight in all of it, and the model state runs through them in order.

    Raises:
      ValueError: the batch cannot be cut into n equal parts.
    """
    active = one.labels if one.differentiated is None else one.differentiated

    def loss(trainable: PyTree, model_state: PyTree, batch: Batch, key: Key, weights: list[Any] | None) -> Any:
        held = jax.tree.map(lambda k, leaf: leaf if k in active else jax.lax.stop_gradient(leaf), labels, trainable)
        terms, (model_state, metrics) = _evaluate(one.loss, held, model_state, batch, key)
        weights = [term.weight for term in terms] if weights is None else weights
        value = sum(Mean(t.total, jax.lax.stop_gradient(w)).value() for t, w in zip(terms, weights, strict=True))
        return value, (model_state, metrics)

    def grad(
        model_state: PyTree, batch: Batch, key: Key, weights: list[Any] | None = None
    ) -> tuple[PyTree, PyTree, dict[str, Mean], Array]:
        of_loss = jax.value_and_grad(loss, has_aux=True, allow_int=True)
        (value, (model_state, metrics)), grads = of_loss(point.trainable, model_state, batch, key, weights)
        return jax.tree.map(lambda k, g: g if k in active else None, labels, grads), model_state, metrics, value

    if accumulate == 1:
        grads, model_state, metrics, value = grad(point.model_state, batch, key)
        return grads, model_state, {name: mean.value() for name, mean in metrics.items()}, value

    def weigh(xs: tuple[Batch, Key]) -> list[Any]:  # the compiler drops the forward pass, unless weights depend on it
        return [term.weight for term in _evaluate(one.loss, point.trainable, point.model_state, *xs)[0]]

    def body(carry: tuple[Any, ...], xs: tuple[Batch, Key]) -> tuple[tuple[Any, ...], dict[str, Mean]]:
        grads, model_state, metrics, value = grad(carry[1], *xs, weights)
        model_state = like(model_state, carry[1], "model state")
        return (jax.tree.map(jnp.add, carry[0], grads), model_state, carry[2] + value), metrics

    cut, whole = _micro_batches(batch, accumulate)
    xs, join = (cut, jax.random.split(key, accumulate)), lambda xs: (whole(xs[0]), xs[1])
    weights = [jnp.sum(w) for w in jax.lax.map(lambda xs: weigh(join(xs)), xs)]
    zeros = jax.tree.map(lambda k, leaf: jnp.zeros_like(leaf) if k in active else None, labels, point.trainable)
    start = (zeros, point.model_state, jnp.zeros(()))
    (grads, model_state, value), parts = jax.lax.scan(lambda c, xs: body(c, join(xs)), start, xs)
    return grads, model_state, {k: Mean(m.total.sum(0), m.weight.sum(0)).value() for k, m in parts.items()}, value


def _evaluate(
    loss_fn: LossFn, trainable: PyTree, model_state: PyTree, batch: Batch, key: Key
) -> tuple[list[Mean], tuple[PyTree, dict[str, Mean]]]:
    found = loss_fn(trainable, model_state, batch, key)
    loss, (model_state, metrics) = (
        found if isinstance(found, tuple) and not isinstance(found, Mean) else (found, (model_state, {}))
    )
    return as_means(loss), (model_state, {name: as_means(value)[0] for name, value in metrics.items()})


def _micro_batches(batch: Batch, n: int) -> tuple[list[Any], Callable[[list[Any]], Batch]]:
    """The leaves of a batch that are cut, in n parts, and a function that makes a batch of one part of each."""
    leaves, structure = jax.tree.flatten(batch)
    cut = [leaf for leaf in leaves if jnp.ndim(leaf)]
    sizes = {leaf.shape[0] for leaf in cut}
    if len(sizes) != 1:
        raise ValueError(f"accumulate: expected a batch whose leaves have one first axis, found sizes {sorted(sizes)}")
    (size,) = sizes
    if size % n:
        raise ValueError(f"accumulate: expected a divisor of {size}, the batch size, found {n}")

    def whole(parts: list[Any]) -> Batch:
        remaining = iter(parts)
        return jax.tree.unflatten(structure, [next(remaining) if jnp.ndim(leaf) else leaf for leaf in leaves])

    return [leaf.reshape(n, size // n, *leaf.shape[1:]) for leaf in cut], whole


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
