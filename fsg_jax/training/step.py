"""The jitted training step: a model of Flax as a routed update of its variables."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from inspect import signature
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fsg_jax.gates.summary import gate_values, summarise
from fsg_jax.routing.means import like, means_of
from fsg_jax.routing.modes import Pass, gate_pass, routed_update
from fsg_jax.routing.shared_prefix import share_prefix
from fsg_jax.training.inputs import Inputs, batch_size, select
from fsg_jax.training.state import TrainState, gather_leaves
from fsg_jax.typing import GATE_STEP, GATES, Batch, Key, Loss, Metrics, Penalty, PyTree, Transform

TrainStep = Callable[..., tuple[TrainState, Metrics]]
"""``step(state, batch, gate_batch=None) -> (state, metrics)``."""


def make_train_step(
    loss: Loss,
    routing: str = "sequential",
    *,
    inputs: Inputs = "image",
    gate_loss: Loss | None = None,
    penalty: Penalty | None = None,
    gate_every: int = 1,
    gate_when: Callable[[Any], Any] | None = None,
    gate_labels: Sequence[str] | None = None,
    accumulate: int = 1,
    transform: Transform | None = None,
    metrics: Mapping[str, Loss] | None = None,
    reference_clip: tuple[float | None, float | None] = (None, None),
    passes: Sequence[Pass] | None = None,
    shared_prefix: bool | None = None,
    shardings: TrainState | None = None,
    jit: bool = True,
) -> TrainStep:
    """``step(state, batch, gate_batch=None) -> (state, metrics)``, jitted, the state donated.

    A loss or metric gives one value per example, (batch, ...), of which the mean over all axes is taken; or
    ``(values, weights)``, for ``sum(weights * values) / sum(weights)`` over the whole batch, into however many parts or
    devices it is cut; or, where nothing is masked or cut, their mean, a scalar; or a mapping of such to names, for the
    sum of their means, each over its own weights, as in `fsg_jax.make_task_loss`. ``batch["valid"]``, (batch,),
    where it is there, multiplies the weights of all of them. It does not keep padding out of BatchNorm's statistics.

    Args:
      loss: ``loss(outputs, batch)``.
      routing: ``"none"``, ``"joint"``, ``"sequential"`` (the paper) or ``"reference"``; see `fsg_jax.routing.modes`.
      inputs: what of the batch the model is given: a key, several keys, one an argument, or a function of the batch
        that returns the argument or a tuple of them.
      gate_loss: loss of the gate pass, if not `loss`.
      penalty: added to what the gates minimise, e.g. from `fsg_jax.gate_penalty`: ``penalty(gates, kinds)``, or, if it
        has a third argument, ``penalty(gates, kinds, step)``.
      gate_every: k runs the gate pass of ``"sequential"`` at every k-th step; schedules of the gates' optimizer count
        these passes.
      gate_when: whether the gate pass of ``"sequential"`` runs at a step, a function of its number: warm-up and
        freezing of the gates, e.g. ``lambda step: step >= 5 * steps_per_epoch``.
      gate_labels: labels that the gate pass moves; by default those that hold only leaves of ``"gates"``.
      accumulate: number of micro-batches a batch is cut into, in both passes. Over several devices each has an
        all-reduce of its own.
      transform: ``transform(key, batch)`` run inside the step, e.g. augmentation; both passes see its result.
      metrics: name to function, reported as means over the batch of the last pass.
      reference_clip: thresholds over all leaves of gate pass and main pass, for ``"reference"`` only.
      passes: of one's own, in order, in place of those of `routing`; the loss of each is one of outputs and batch. The
        penalty is on those that move gates.
      shared_prefix: whether ``"sequential"`` computes what comes before the first gate once for both passes
        (`fsg_jax.routing.shared_prefix`; the batch must be whole and the same). None: where the model has
        ``shared_prefix = True``, as those have for which it was measured to pay.
      shardings: of the state over several devices, from `fsg_jax.sharding.state_shardings`; the new state has them too.
      jit: False gives the plain function, to be jitted or scanned by the caller.

    The metrics of a step are ``loss`` and `metrics` on the last pass's outputs, ``penalty`` where there is one,
    ``grad_norm`` by label, and ``gates``: mean, share open, share closed and entropy over all new gate values.

    ``gate_batch``, where given, is the batch of the gate pass alone (held-out routing).

    Raises:
      ValueError: as `fsg_jax.routing.routed_update`. In the step: a key that the batch does not have; a loss or metric
        of another shape, which is named.
    """
    routed = partial(routed_update, routing=routing, gate_labels=gate_labels, accumulate=accumulate)
    routed = partial(routed, gate_every=gate_every, gate_when=gate_when, clip=reference_clip)
    routed(lambda *_: (0.0, ({}, {})), optax.identity(), passes=passes)  # checks the options
    prepare: Callable[..., Batch] = transform or (lambda _, batch: batch)
    cut = accumulate > 1

    def step(state: TrainState, batch: Batch, gate_batch: Batch | None = None) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.rng, state.step)
        model_key, tx, trainable = jax.random.fold_in(key, 2), state.tx, state.trainable
        batch = prepare(jax.random.fold_in(key, 0), batch)
        held_out = None if gate_batch is None else prepare(jax.random.fold_in(key, 1), gate_batch)
        labels = tx.labels(trainable)

        def forward(trainable: PyTree, arguments: Any, model_state: PyTree, key: Key) -> tuple[Any, PyTree]:
            whole = trainable if shardings is None else gather_leaves(trainable, shardings.trainable)
            return state.forward.train({**whole, **model_state}, arguments, key, tx)

        apply = forward
        wanted = getattr(state.model, "shared_prefix", False) if shared_prefix is None else shared_prefix
        if wanted and state.gates and routing == "sequential" and passes is None and gate_batch is None and not cut:
            gates = gate_pass(trainable, labels, gate_labels, tx, routing)
            moves = jax.tree.map(lambda label: label in gates, labels)
            fixed = partial(forward, model_state=state.model_state, key=model_key)
            apply = share_prefix(fixed, moves, trainable, select(inputs, batch))

        def fn(loss: Any, penalty: Any, metrics: Any, trainable: Any, model_state: Any, batch: Any, key: Key) -> Any:
            """What a pass minimises, ``mean loss + penalty``, and the metrics of its outputs."""
            arguments = select(inputs, batch)
            outputs, model_state = apply(trainable, arguments, model_state, key)
            functions, size = {"loss": loss, **(metrics or {})}, batch_size(arguments)
            means = {k: means_of(k, f, outputs, batch, size, whole=not cut) for k, f in functions.items()}
            terms = [] if penalty is None else [_penalty(penalty, trainable.get(GATES, {}), state)]
            return [*means["loss"], *terms], (model_state, means)

        together = routing in ("none", "joint") and gate_loss is None and gate_batch is None
        own = passes and [one._replace(loss=partial(fn, one.loss or loss, penalty, metrics)) for one in passes]
        main = partial(fn, loss, penalty if together else None, metrics)
        gate = None if together else partial(fn, gate_loss or loss, penalty, None)
        update = routed(main, tx, gate_loss_fn=gate, passes=own)
        point = update(trainable, state.opt_state, state.model_state, batch, model_key, held_out, state.step)
        new = _advance(state, *point[:3])
        values = point[3] | _gate_metrics(new, penalty)
        return new if shardings is None else jax.lax.with_sharding_constraint(new, shardings), values

    return jax.jit(step, donate_argnums=0) if jit else step


def _penalty(penalty: Penalty, gates: PyTree, state: TrainState) -> Any:
    arguments = (gates, state.gate_kinds, state.step)
    return penalty(*arguments[: min(3, len(signature(penalty).parameters))])


def _advance(state: TrainState, trainable: PyTree, opt_state: Any, model_state: PyTree) -> TrainState:
    """The state after a step; averages warm up as usual, with ``min(decay, (1 + t) / (10 + t))`` at step t."""
    variables, step, ema = {**trainable, **model_state}, state.step + 1, state.ema
    if GATE_STEP in variables:
        variables[GATE_STEP] = jax.tree.map(lambda leaf: jnp.full_like(leaf, step), variables[GATE_STEP])
    if ema is not None and state.ema_decay is not None:
        decay = jnp.minimum(state.ema_decay, (1 + step) / (10 + step))

        def average(new: jax.Array, old: jax.Array) -> jax.Array:
            floating = jnp.issubdtype(old.dtype, jnp.floating)
            return optax.incremental_update(new.astype(old.dtype), old, 1 - decay) if floating else new

        ema = like(jax.tree.map(average, variables, ema), ema)
    return replace(state, step=step, variables=variables, opt_state=opt_state, ema=ema)


def _gate_metrics(state: TrainState, penalty: Penalty | None) -> Metrics:
    found: Metrics = {} if penalty is None else {"penalty": _penalty(penalty, state.gates, state)}
    if state.gates:
        found[GATES] = summarise(jnp.concatenate(list(gate_values(state).values())))
    return found
