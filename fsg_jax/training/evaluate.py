"""The jitted evaluation step, and means over batches in which every example counts once."""

from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from fsg_jax.training.state import TrainState, apply_model, gather_leaves
from fsg_jax.training.step import DEFAULT_METRICS
from fsg_jax.typing import Batch, Loss, Metrics, Transform

EvalStep = Callable[[TrainState, Batch], Metrics]


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
    count; without it all do. `evaluate` averages over batches.

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
        batch = batch if transform is None else transform(jax.random.key(0), batch)
        outputs, _ = apply_model(state.model, variables, batch["image"], train=False)
        valid = batch.get("valid", jnp.ones(jax.tree.leaves(batch["image"])[0].shape[0], bool))
        count = jnp.sum(valid)
        values = {name: f(outputs, batch) for name, f in {"loss": loss, **metrics}.items()}
        means = {name: jnp.sum(v, where=valid) / jnp.maximum(count, 1) for name, v in values.items()}
        return means | {"count": count}

    return jax.jit(step) if jit else step


def evaluate(step: EvalStep, state: TrainState, batches: Iterable[Batch]) -> dict[str, float]:
    """Means over all examples of `batches`, and their ``count``: batches weigh by their rows that are not padding.

    Args:
      step: from `make_eval_step`.
      state: what is evaluated.
      batches: as from `fsg_jax.data.eval_batches`; with one batch shape `step` compiles once.

    Raises:
      ValueError: no batch, or none with a row that counts.
    """
    rows = jax.device_get([step(state, batch) for batch in batches])
    counts = [int(row["count"]) for row in rows]
    if not sum(counts):
        raise ValueError(f"batches: expected at least one example, found {len(rows)} batches without any")
    return {k: float(np.average([row[k] for row in rows], weights=counts)) for k in rows[0] if k != "count"} | {
        "count": sum(counts)
    }
