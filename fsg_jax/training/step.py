"""The jitted training step: a linen model as the passes of a routing mode."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fsg_jax._checks import check_integer, look_up
from fsg_jax.gates.gate import GATES
from fsg_jax.gates.summary import gate_values, summarise
from fsg_jax.routing.labels import gate_labels as labels_of_gates
from fsg_jax.routing.modes import ROUTINGS, LossFn, Pass, Point, take_passes
from fsg_jax.routing.shared_prefix import share_prefix
from fsg_jax.training.metrics import accuracy
from fsg_jax.training.state import RNG_STREAMS, TrainState, apply_model, gather_leaves
from fsg_jax.typing import Batch, Key, Loss, Metrics, Penalty, PyTree, Transform

DEFAULT_METRICS: Mapping[str, Loss] = {"accuracy": accuracy}

TrainStep = Callable[..., tuple[TrainState, Metrics]]


def make_train_step(
    loss: Loss,
    routing: str = "sequential",
    *,
    gate_loss: Loss | None = None,
    penalty: Penalty | None = None,
    gate_every: int = 1,
    gate_labels: Sequence[str] | None = None,
    accumulate: int = 1,
    transform: Transform | None = None,
    metrics: Mapping[str, Loss] = DEFAULT_METRICS,
    reference_clip: tuple[float | None, float | None] = (None, None),
    shared_prefix: bool | None = None,
    shardings: TrainState | None = None,
    jit: bool = True,
) -> TrainStep:
    """``step(state, batch, gate_batch=None) -> (state, metrics)``, jitted, the state donated.

    Args:
      loss: ``loss(outputs, batch)``, one value per example or their mean.
      routing: ``"none"``, ``"joint"``, ``"sequential"`` (the paper) or ``"reference"``; see `fsg_jax.routing.modes`.
      gate_loss: loss of the gate pass, if not `loss`.
      penalty: added to what the gates minimise, e.g. from `fsg_jax.gate_penalty`.
      gate_every: k runs the gate pass of ``"sequential"`` at every k-th step.
      gate_labels: labels that the gate pass moves; by default those that hold only leaves of ``"gates"``.
      accumulate: number of micro-batches a batch is cut into, in both passes. Over several devices each has an
        all-reduce of its own.
      transform: ``transform(key, batch)`` run inside the step, e.g. augmentation; both passes see its result.
      metrics: name to function, reported as means over the batch of the main pass.
      reference_clip: thresholds over all leaves of gate pass and main pass, for ``"reference"`` only.
      shared_prefix: whether ``"sequential"`` computes what comes before the first gate once for both passes
        (`fsg_jax.routing.shared_prefix`; the batch must be whole and the same). None: where the model has
        ``shared_prefix = True``, as those have for which it was measured to pay.
      shardings: of the state over several devices, from `fsg_jax.sharding.state_shardings`; the new state has them too.
      jit: False gives the plain function, to be jitted or scanned by the caller.

    The metrics of a step are ``loss`` and `metrics` on the main pass's outputs, ``penalty`` where there is one,
    ``grad_norm`` by label, and ``gates``: mean, share open, share closed and entropy over all new gate values.

    ``gate_batch``, where given, is the batch of the gate pass alone (held-out routing).

    Raises:
      ValueError: unknown routing; `gate_every`, `accumulate` below 1; options that do not belong to the routing.
    """
    mode = look_up(ROUTINGS, routing, "routing")
    _check_options(routing, gate_every, accumulate, reference_clip)
    mode = partial(mode, clip=reference_clip) if routing == "reference" else mode
    prepare: Callable[..., Batch] = transform or (lambda _, batch: batch)

    def step(state: TrainState, batch: Batch, gate_batch: Batch | None = None) -> tuple[TrainState, Metrics]:
        apart = gate_loss is not None or gate_batch is not None
        if apart and routing == "none":
            raise ValueError("routing 'none' has one loss and one batch; gate_loss and gate_batch need another mode")
        gates, weights = _divide(state, gate_labels, routing)
        key = jax.random.fold_in(state.rng, state.step)
        model_key = jax.random.fold_in(key, 2)
        batch = prepare(jax.random.fold_in(key, 0), batch)
        held_out = batch if gate_batch is None else prepare(jax.random.fold_in(key, 1), gate_batch)

        forward: Callable[..., Any] = partial(_forward, state, shardings)
        wanted = getattr(state.model, "shared_prefix", False) if shared_prefix is None else shared_prefix
        if wanted and gates and routing == "sequential" and gate_batch is None and accumulate == 1:
            moves = jax.tree.map(lambda label: label in gates, state.tx.labels(state.trainable))
            apply = partial(_forward, state, shardings, model_state=state.model_state, key=model_key)
            forward = share_prefix(apply, moves, state.trainable, batch["image"])

        together = routing in ("none", "joint") and not apart
        main = Pass(weights, _loss_fn(state, forward, loss, penalty if together else None, metrics), batch)
        gate_fn = main.loss if together else _loss_fn(state, forward, gate_loss or loss, penalty, {})
        gate = Pass(gates, gate_fn, held_out, updates_state=False, every=gate_every)
        point = Point(state.trainable, state.opt_state, state.model_state)
        passes = mode(gate, main) if gates else [main]
        point, reported, norms = take_passes(passes, state.tx, point, model_key, step=state.step, accumulate=accumulate)
        new = _advance(state, point)
        values = reported | {"grad_norm": norms} | _gate_metrics(new, penalty)
        return new if shardings is None else jax.lax.with_sharding_constraint(new, shardings), values

    return jax.jit(step, donate_argnums=0) if jit else step


def _check_options(routing: str, gate_every: int, accumulate: int, clip: tuple[float | None, float | None]) -> None:
    check_integer("gate_every", gate_every, 1)
    check_integer("accumulate", accumulate, 1)
    if gate_every > 1 and routing != "sequential":
        raise ValueError(
            f"gate_every: expected 1 with routing {routing!r}, found {gate_every}; 'sequential' takes more"
        )
    if any(c is not None for c in clip) and routing != "reference":
        raise ValueError(f"reference_clip: needs routing 'reference', found {routing!r}; clip inside a label instead")


def _divide(state: TrainState, chosen: Sequence[str] | None, routing: str) -> tuple[frozenset[str], frozenset[str]]:
    """Labels of the gate pass and of the main pass."""
    labels = state.tx.labels(state.trainable)
    everything = frozenset(jax.tree.leaves(labels))
    if chosen is not None:
        gates = frozenset(chosen)
        if gates - everything:
            raise ValueError(
                f"gate_labels: expected labels of leaves, {sorted(everything)}, found {sorted(gates - everything)}"
            )
        return gates, everything - gates
    gates = labels_of_gates(state.trainable, labels)
    if state.gates and not gates and routing != "none":
        raise ValueError(
            f"routing {routing!r} moves gates and weights apart, but one optimizer moves both; "
            "use fsg.routed(params=..., gates=...), or routing='none'"
        )
    if gates and routing == "none":
        warnings.warn(
            f"routing 'none' with optimizers of their own for the gates ({sorted(gates)}) is the same as 'joint'; "
            "give init_state one plain optax transformation to move gates and weights alike",
            stacklevel=2,
        )
    return gates, everything - gates


def _forward(
    state: TrainState, shardings: TrainState | None, trainable: PyTree, images: Any, *, model_state: PyTree, key: Key
) -> tuple[Any, PyTree]:
    """The model's outputs in training, and its updated model state."""
    rngs = {name: jax.random.fold_in(key, i) for i, name in enumerate(RNG_STREAMS)}
    whole = trainable if shardings is None else gather_leaves(trainable, shardings.trainable)
    return apply_model(state.model, {**whole, **model_state}, images, train=True, rngs=rngs)


def _loss_fn(
    state: TrainState, forward: Callable[..., Any], loss: Loss, penalty: Penalty | None, metrics: Mapping[str, Loss]
) -> LossFn:
    """What a pass minimises, ``mean loss + penalty``, and the metrics of its outputs."""

    def loss_fn(trainable: PyTree, model_state: PyTree, batch: Batch, key: Key) -> Any:
        outputs, model_state = forward(trainable, batch["image"], model_state=model_state, key=key)
        value = jnp.mean(loss(outputs, batch))
        reported = {"loss": value} | {name: jnp.mean(f(outputs, batch)) for name, f in metrics.items()}
        if penalty is not None:
            value = value + penalty(trainable.get(GATES, {}), state.gate_kinds)
        return value, (model_state, reported)

    return loss_fn


def _advance(state: TrainState, point: Point) -> TrainState:
    """The state after a step; averages warm up as usual, with ``min(decay, (1 + t) / (10 + t))`` at step t."""
    variables, step, ema = {**point.trainable, **point.model_state}, state.step + 1, state.ema
    if ema is not None and state.ema_decay is not None:
        decay = jnp.minimum(state.ema_decay, (1 + step) / (10 + step))
        ema = optax.incremental_update(variables, ema, 1 - decay)
    return replace(state, step=step, variables=variables, opt_state=point.opt_state, ema=ema)


def _gate_metrics(state: TrainState, penalty: Penalty | None) -> Metrics:
    found: Metrics = {} if penalty is None else {"penalty": penalty(state.gates, state.gate_kinds)}
    if state.gates:
        found[GATES] = summarise(jnp.concatenate(list(gate_values(state).values())))
    return found
