"""The jitted evaluation step, and means over batches in which every example counts once."""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fsg_jax._checks import expect
from fsg_jax.routing.means import Mean, means_of, total, valid_rows
from fsg_jax.training.inputs import Inputs, batch_size, select
from fsg_jax.training.state import TrainState, gather_leaves
from fsg_jax.typing import Batch, Loss, Transform

_AHEAD = 2
"""Batches that are given to the device before the result of the first of them is fetched."""


class EvalStep(NamedTuple):
    """``step(state, batch) -> metrics``, or ``(metrics, captured)``; made by `make_eval_step`.

    Attributes:
      sums: ``sums(state, batch) -> (means, count, captured)``, the metrics before they are divided, lists of
        `fsg_jax.routing.means.Mean`, so that those of several batches can be added.
      capture: collections that are captured.
    """

    sums: Callable[..., tuple[dict[str, list[Mean]], Any, Any]]
    capture: Sequence[str]

    def __call__(self, state: TrainState, batch: Batch) -> Any:
        """Metrics, the ``count`` of rows that are not masked, and the captured collections if any are asked for."""
        means, count, captured = self.sums(state, batch)
        metrics = {name: total(parts) for name, parts in means.items()} | {"count": count}
        return (metrics, captured) if self.capture else metrics


def make_eval_step(
    loss: Loss,
    *,
    inputs: Inputs = "image",
    transform: Transform | None = None,
    metrics: Mapping[str, Loss] | None = None,
    capture: Sequence[str] = (),
    ema: bool = False,
    shardings: TrainState | None = None,
    jit: bool = True,
) -> EvalStep:
    """``step(state, batch) -> metrics``: means over the rows that are not masked, and their ``count``.

    `loss` and `metrics` give what they give for `fsg_jax.make_train_step`. ``batch["valid"]``,
    (batch,), marks or weighs the rows; without it all count. `evaluate` averages over batches.

    Args:
      loss: ``loss(outputs, batch)``.
      inputs: what of the batch the model is given, as for `fsg_jax.make_train_step`.
      transform: ``transform(key, batch)``, e.g. normalisation; its key is constant.
      metrics: name to function.
      capture: collections that the model sows into; the step then returns ``(metrics, captured)``.
      ema: evaluate the averaged variables, which the state must then have.
      shardings: of the state over several devices, as in `make_train_step`.
      jit: False gives the plain function.
    """
    functions = {"loss": loss, **(metrics or {})}

    def sums(state: TrainState, batch: Batch) -> tuple[dict[str, list[Mean]], Any, Any]:
        if ema and state.ema is None:
            raise ValueError("make_eval_step(ema=True) needs a state made with init_state(ema_decay=...)")
        variables = state.variables
        if ema:
            variables = jax.tree.map(lambda average, v: average.astype(v.dtype), state.ema, variables)
        variables = variables if shardings is None else gather_leaves(variables, shardings.variables)
        batch = batch if transform is None else transform(jax.random.key(0), batch)
        arguments = select(inputs, batch)
        size = batch_size(arguments)
        outputs, captured = state.forward.evaluate(variables, arguments, capture)
        valid = valid_rows(batch, size)
        count = jnp.int32(size) if valid is None else jnp.sum(valid != 0)
        return {k: means_of(k, f, outputs, batch, size) for k, f in functions.items()}, count, captured

    return EvalStep(jax.jit(sums) if jit else sums, capture)


def evaluate(step: EvalStep | Callable[..., Any], state: TrainState, batches: Iterable[Batch]) -> dict[str, float]:
    """Means over all examples of `batches`, and their ``count``; sums and weights are added over batches.

    Args:
      step: from `make_eval_step`; of another function the metrics weigh by their ``count``.
      state: what is evaluated.
      batches: as from `fsg_jax.data.eval_batches`; with one batch shape `step` compiles once.

    Raises:
      ValueError: no batch, or none with a row that counts.
    """
    run: Callable[..., Any] = _sums if isinstance(step, EvalStep) else _weighed
    waiting: deque[Any] = deque()
    parts = []
    for batch in batches:
        waiting.append(run(step, state, batch))
        if len(waiting) > _AHEAD:  # the device computes these while the next batches are read
            parts.append(jax.device_get(waiting.popleft()))
    parts += jax.device_get(list(waiting))
    count = sum(int(count) for _, count in parts)
    expect(count, "batches", "at least one example", f"{len(parts)} batches without any")
    sums = {k: np.sum([np.asarray(means[k], np.float64) for means, _ in parts], 0) for k in parts[0][0]}
    return {k: _sum(terms) for k, terms in sums.items()} | {"count": count}


def _sums(step: EvalStep, state: TrainState, batch: Batch) -> tuple[dict[str, list[Mean]], Any]:
    return step.sums(state, batch)[:2]


def _weighed(step: Callable[..., Any], state: TrainState, batch: Batch) -> tuple[dict[str, list[Mean]], Any]:
    row = dict(step(state, batch))
    count = row.pop("count")
    return {k: [Mean(v * count, count)] for k, v in row.items()}, count


def _sum(terms: np.ndarray) -> float:
    """The sum of ``total / weight`` over the terms that have a weight; NaN if none has."""
    there = terms[terms[:, 1] != 0]
    return float((there[:, 0] / there[:, 1]).sum()) if len(there) else np.nan
