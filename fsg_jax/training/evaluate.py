"""The jitted evaluation step, and means over batches in which every example counts once."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fsg_jax.routing.means import Mean, mean_of, valid_rows
from fsg_jax.training.inputs import Inputs, batch_size, name_of, select
from fsg_jax.training.state import TrainState, gather_leaves
from fsg_jax.typing import Batch, Loss, Transform


class EvalStep:
    """``step(state, batch) -> metrics``, or ``(metrics, captured)``; made by `make_eval_step`.

    Attributes:
      sums: ``sums(state, batch) -> (means, count, captured)``, the metrics before they are divided, as
        `fsg_jax.routing.means.Mean`, so that those of several batches can be added.
    """

    def __init__(self, sums: Callable[..., Any], capture: Sequence[str], jit: bool) -> None:
        def step(state: TrainState, batch: Batch) -> Any:
            means, count, captured = sums(state, batch)
            metrics = {name: mean.value() for name, mean in means.items()} | {"count": count}
            return (metrics, captured) if capture else metrics

        self.sums = jax.jit(sums) if jit else sums
        self._step = jax.jit(step) if jit else step

    def __call__(self, state: TrainState, batch: Batch) -> Any:
        """Metrics, the ``count`` of rows that are not masked, and the captured collections if any are asked for."""
        return self._step(state, batch)


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

    `loss` and `metrics` give values or (values, weights), as for `fsg_jax.make_train_step`. ``batch["valid"]``,
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

    def sums(state: TrainState, batch: Batch) -> tuple[dict[str, Mean], Any, Any]:
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
        return (
            {k: mean_of(name_of(f, k), f(outputs, batch), size, valid) for k, f in functions.items()},
            count,
            captured,
        )

    return EvalStep(sums, capture, jit)


def evaluate(step: EvalStep | Callable[..., Any], state: TrainState, batches: Iterable[Batch]) -> dict[str, float]:
    """Means over all examples of `batches`, and their ``count``; sums and weights are added over batches.

    Args:
      step: from `make_eval_step`; of another function the metrics weigh by their ``count``.
      state: what is evaluated.
      batches: as from `fsg_jax.data.eval_batches`; with one batch shape `step` compiles once.

    Raises:
      ValueError: no batch, or none with a row that counts.
    """
    if isinstance(step, EvalStep):
        parts = [jax.device_get(step.sums(state, batch)[:2]) for batch in batches]
    else:
        rows = [jax.device_get(step(state, batch)) for batch in batches]
        parts = [
            ({k: Mean(v * row["count"], row["count"]) for k, v in row.items() if k != "count"}, row["count"])
            for row in rows
        ]
    count = sum(int(count) for _, count in parts)
    if not count:
        raise ValueError(f"batches: expected at least one example, found {len(parts)} batches without any")
    totals, weights = ({k: sum(float(m[i]) for m in ms) for k, ms in _by_name(parts).items()} for i in (0, 1))
    return {k: totals[k] / w if (w := weights[k]) else np.nan for k in totals} | {"count": count}


def _by_name(parts: list[tuple[dict[str, Mean], Any]]) -> dict[str, list[Mean]]:
    return {name: [means[name] for means, _ in parts] for name in parts[0][0]}
