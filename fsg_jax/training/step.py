"""The jitted training and evaluation steps."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.lax import with_sharding_constraint

from fsg_jax.gates.gate import GATES
from fsg_jax.gates.penalties import Penalty
from fsg_jax.gates.summary import gate_values, summarise
from fsg_jax.routing.gradients import Objective, batch_size, grad_norms, pass_gradient
from fsg_jax.routing.labels import gate_labels as labels_of_gates
from fsg_jax.routing.modes import Passes, Routed, get_routing
from fsg_jax.routing.shared_passes import shared_passes
from fsg_jax.training import metrics as metrics_lib
from fsg_jax.training.sharding import gather_leaves
from fsg_jax.training.state import TrainState, apply_model
from fsg_jax.typing import Batch, Loss, Metrics, Transform

DEFAULT_METRICS: Mapping[str, Loss] = {"accuracy": metrics_lib.accuracy}

TrainStep = Callable[..., tuple[TrainState, Metrics]]
EvalStep = Callable[[TrainState, Batch], Metrics]


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
    shardings: TrainState | None = None,
    jit: bool = True,
) -> TrainStep:
    """``step(state, batch, gate_batch=None) -> (state, metrics)``, jitted, the state donated.

    Args:
      loss: ``loss(outputs, batch)``, one value per example or their mean.
      routing: ``"none"``, ``"joint"``, ``"sequential"`` (the paper) or ``"reference"``; see `fsg_jax.routing.modes`.
      gate_loss: loss of the gate pass, if not `loss`.
      penalty: added to what the gates minimise, e.g. from `fsg_jax.gates.penalties.gate_penalty`.
      gate_every: k runs the gate pass of ``"sequential"`` at every k-th step.
      gate_labels: labels that the gate pass moves; by default those that hold only leaves of ``"gates"``.
      accumulate: number of micro-batches a batch is cut into, in both passes. Over several devices each has an
        all-reduce of its own.
      transform: ``transform(key, batch)`` run inside the step, e.g. augmentation; both passes see its result.
      metrics: name to function, reported as means over the batch of the main pass.
      reference_clip: thresholds over all leaves of gate pass and main pass, for ``"reference"`` only.
      shardings: of the state over several devices, from `fsg_jax.training.sharding.state_shardings`; the new state has
        them too.
      jit: False gives the plain function, to be jitted or scanned by the caller.

    The metrics of a step are ``loss`` and `metrics` on the main pass's outputs, ``penalty`` where there is one,
    ``grad_norm`` by label, and ``gates``: mean, share open, share closed and entropy over all new gate values.

    ``gate_batch``, where given, is the batch of the gate pass alone (held-out routing).

    Raises:
      ValueError: unknown routing; `gate_every`, `accumulate` below 1; options that do not belong to the routing.
    """
    route_step = get_routing(routing)
    _check_options(routing, gate_every, accumulate, reference_clip)
    gate = Objective(gate_loss or loss, penalty, {})

    def step(state: TrainState, batch: Batch, gate_batch: Batch | None = None) -> tuple[TrainState, Metrics]:
        separate = gate_loss is not None or gate_batch is not None
        if separate and routing == "none":
            raise ValueError("routing 'none' has one loss and one batch; gate_loss and gate_batch need another mode")
        key = jax.random.fold_in(state.rng, state.step)
        batch = _transformed(transform, jax.random.fold_in(key, 0), batch)
        held_out = batch if gate_batch is None else _transformed(transform, jax.random.fold_in(key, 1), gate_batch)
        model_key = jax.random.fold_in(key, 2)
        together = routing in ("none", "joint") and not separate
        main = Objective(loss, penalty if together else None, metrics)
        gates, weights = _divide(state, gate_labels, routing)
        split = None if shardings is None else shardings.trainable
        shared = partial(shared_passes, state, gate, main, batch, model_key, split)
        passes = Passes(
            main=partial(pass_gradient, state, main, batch, model_key, accumulate, split),
            gate=partial(pass_gradient, state, gate, held_out, model_key, accumulate, split),
            share=shared if gate_batch is None and accumulate == 1 else None,
            gate_labels=gates,
            weight_labels=weights,
            separate=separate,
            every=gate_every,
            clip=reference_clip,
        )
        new, values = _finish(state, route_step(state, passes), penalty)
        return new if shardings is None else with_sharding_constraint(new, shardings), values

    return jax.jit(step, donate_argnums=0) if jit else step


def make_eval_step(
    loss: Loss,
    *,
    transform: Transform | None = None,
    metrics: Mapping[str, Loss] = DEFAULT_METRICS,
    ema: bool = False,
    shardings: TrainState | None = None,
    jit: bool = True,
) -> EvalStep:
    """``step(state, batch) -> metrics``: means over the rows that are not padding, and their ``count``.

    `loss` and `metrics` must give one value per example. ``batch["valid"]``, boolean (batch,), marks the rows that
    count; without it all do. To average over batches, weigh each by its ``count``.

    Args:
      loss: ``loss(outputs, batch)``, one value per example.
      transform: ``transform(key, batch)``, e.g. normalisation; its key is constant.
      metrics: name to function.
      ema: evaluate the averaged variables, which the state must then have.
      shardings: of the state over several devices, as in `make_train_step`.
      jit: False gives the plain function.
    """

    def step(state: TrainState, batch: Batch) -> Metrics:
        if ema and state.ema is None:
            raise ValueError("make_eval_step(ema=True) needs a state made with init_state(ema_decay=...)")
        variables = state.ema if ema and state.ema is not None else state.variables
        variables = variables if shardings is None else gather_leaves(variables, shardings.variables)
        batch = _transformed(transform, jax.random.key(0), batch)
        outputs, _ = apply_model(state.model, variables, batch["image"], train=False)
        valid = batch.get("valid", jnp.ones(batch_size(batch), bool))
        count = jnp.sum(valid)
        values = {name: f(outputs, batch) for name, f in {"loss": loss, **metrics}.items()}
        means = {name: jnp.sum(v, where=valid) / jnp.maximum(count, 1) for name, v in values.items()}
        return means | {"count": count}

    return jax.jit(step) if jit else step


def _check_options(routing: str, gate_every: int, accumulate: int, clip: tuple[float | None, float | None]) -> None:
    for name, value in (("gate_every", gate_every), ("accumulate", accumulate)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1; got {value}")
    if gate_every > 1 and routing != "sequential":
        raise ValueError(f"gate_every={gate_every} needs routing 'sequential'; got {routing!r}")
    if any(c is not None for c in clip) and routing != "reference":
        raise ValueError(f"reference_clip needs routing 'reference'; got {routing!r}: clip inside a label instead")


def _transformed(transform: Transform | None, key: jax.Array, batch: Batch) -> Batch:
    return batch if transform is None else transform(key, batch)


def _divide(state: TrainState, chosen: Sequence[str] | None, routing: str) -> tuple[frozenset[str], frozenset[str]]:
    """Labels of the gate pass and of the main pass."""
    labels = state.tx.labels(state.trainable)
    everything = frozenset(jax.tree.leaves(labels))
    if chosen is not None:
        gates = frozenset(chosen)
        if gates - everything:
            raise ValueError(f"gate_labels {sorted(gates - everything)} label no leaf; there are {sorted(everything)}")
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


def _finish(state: TrainState, routed: Routed, penalty: Penalty | None) -> tuple[TrainState, Metrics]:
    labels = state.tx.labels(state.trainable)
    variables = {**routed.trainable, **routed.main.model_state}
    new = replace(state, step=state.step + 1, variables=variables, opt_state=routed.opt_state)
    new = replace(new, ema=_average(new))
    metrics: Metrics = dict(routed.main.metrics)
    metrics["grad_norm"] = grad_norms(labels, routed.main.grads, routed.gate_grads)
    if penalty is not None:
        metrics["penalty"] = penalty(new.gates, new.gate_kinds)
    if new.gates:
        metrics[GATES] = summarise(jnp.concatenate(list(gate_values(new).values())))
    return new, metrics


def _average(state: TrainState) -> Any:
    """Moving average with the usual warm-up, ``min(decay, (1 + t) / (10 + t))`` at step t."""
    if state.ema is None or state.ema_decay is None:
        return None
    decay = jnp.minimum(state.ema_decay, (1 + state.step) / (10 + state.step))
    return optax.incremental_update(state.variables, state.ema, 1 - decay)
