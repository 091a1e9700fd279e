"""Losses of several tasks with missing labels: each is a mean over the labels that are there."""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool

from fsg_jax._checks import check_nonnegative, expect
from fsg_jax.gates.functions import at_least_float32
from fsg_jax.typing import LOG_VARIANCE, Batch, Loss


def is_present(labels: Any) -> Bool[Array, "..."]:
    """Whether a label is there: not NaN, or, of integers, not below 0."""
    labels = jnp.asarray(labels)
    return ~jnp.isnan(labels) if jnp.issubdtype(labels.dtype, jnp.floating) else labels >= 0


def where_present(function: Loss, key: str) -> Callable[[Any, Batch], tuple[Any, Any]]:
    """A loss or metric of the examples whose label is there, ``(values, weights)``; the others have no gradient.

    Args:
        function: ``function(outputs, batch)``, one value per example; it is given 1 in place of a missing label, so
            that no NaN gets into the gradient.
        key: of the labels in the batch: floating point, NaN where one is missing, or integers, below 0 there.
    """

    def masked(outputs: Any, batch: Batch) -> tuple[Any, Any]:
        expect(key in batch, "batch", f"the key {key!r}", sorted(batch))
        labels = jnp.asarray(batch[key])
        there = is_present(labels)
        values = function(outputs, {**batch, key: jnp.where(there, labels, jnp.ones((), labels.dtype))})
        while there.ndim > jnp.ndim(values):  # the probabilities of an example are one label
            there = there.all(-1)
        return values, there.astype(jnp.float32)

    masked.__name__ = f"{getattr(function, '__name__', type(function).__name__)} of {key}"
    return masked


def of_task(task: str, function: Loss) -> Loss:
    """A loss or metric of the outputs of one task."""

    def found(outputs: Mapping[str, Any], batch: Batch) -> Any:
        expect(isinstance(outputs, Mapping) and task in outputs, "outputs", f"a mapping with {task!r}", _kind(outputs))
        return function(outputs[task], batch)

    found.__name__ = getattr(function, "__name__", type(function).__name__)
    return found


def make_task_loss(losses: Mapping[str, Loss], weights: Mapping[str, float] | None = None) -> Loss:
    """``sum_t w_t mean_t``, where ``mean_t`` is the mean of the loss of task t over the examples that have its label.

    Each mean is over the whole batch, whatever it is cut into (``accumulate``) and over however many devices. A task
    without a label in the batch adds nothing.

    If the outputs hold ``"log_variance"``, (tasks,) in the order of `losses`, as those of `fsg_jax.ExpertHead` with
    ``log_variance=True``, the loss is ``sum_t w_t mean_t exp(-s_t) + s_t / 2`` (Kendall et al. 2018, equation 7, with
    ``s = log sigma^2`` and the factor 1/2 of a regression left to its own loss).

    Args:
        losses: by task, of its outputs and the batch; masked by `where_present`, or giving (values, weights).
        weights: by task; 1 where none is given.

    Raises:
        ValueError: a weight below 0 or of no task. In the step: outputs that lack a task.
    """
    given = dict(weights or {})
    expect(losses, "losses", "one or more tasks", "none")
    expect(given.keys() <= losses.keys(), "weights", f"tasks, {sorted(losses)}", sorted(given))
    check_nonnegative(**{f"weights[{task!r}]": weight for task, weight in given.items()})
    by_task = {task: of_task(task, loss) for task, loss in losses.items()}

    def task_loss(outputs: Any, batch: Batch) -> dict[str, Any]:
        found = {task: loss(outputs, batch) for task, loss in by_task.items()}
        parts = {task: one if isinstance(one, tuple) else (one, jnp.ones(one.shape[:1])) for task, one in found.items()}
        scaled = {task: (given.get(task, 1.0) * at_least_float32(values), w) for task, (values, w) in parts.items()}
        if LOG_VARIANCE not in outputs:
            return scaled
        learned = outputs[LOG_VARIANCE]
        expect(learned.shape == (len(losses),), LOG_VARIANCE, f"shape ({len(losses)},)", learned.shape)
        return {
            task: (values * jnp.exp(-s) + s / 2, w)
            for (task, (values, w)), s in zip(scaled.items(), jnp.unstack(learned), strict=True)
        }

    return task_loss


def _kind(outputs: Any) -> str:
    return f"one of {sorted(outputs)}" if isinstance(outputs, Mapping) else type(outputs).__name__
