"""BatchNorm statistics from given batches, for weights that have changed since theirs were averaged."""

from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import unfreeze

from fsg_jax._checks import expect
from fsg_jax.typing import Variables


def recalibrate(model: nn.Module, variables: Variables, batches: Iterable[Any]) -> dict[str, Any]:
    """Variables whose BatchNorm statistics are those of `batches`: the mean over them, each counted alike.

    A layer is normalised by the statistics of the batch while those behind it are measured, as in training; dropout and
    other noise stay off. The variance is the mean of the batches' own, as in Flax's running average.

    Args:
      model: called as ``model(inputs)`` in evaluation.
      variables: by collection.
      batches: inputs of the model.

    Raises:
      ValueError: no batch, or a model without ``"batch_stats"``.
    """
    expect("batch_stats" in variables, "calibrate", "a model with BatchNorm", f"collections {sorted(variables)}")

    def use_batch(next_fun: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        if isinstance(context.module, nn.BatchNorm):
            object.__setattr__(context.module, "use_running_average", None)
            object.__setattr__(context.module, "momentum", 0.0)  # the average is the batch's
            kwargs = {**kwargs, "use_running_average": False}
        return next_fun(*args, **kwargs)

    @jax.jit
    def measure(inputs: Any) -> Any:
        with nn.intercept_methods(use_batch):
            return model.apply(variables, inputs, mutable=["batch_stats"])[1]["batch_stats"]

    total, count = None, 0
    for inputs in batches:
        stats = measure(inputs)
        total, count = stats if total is None else jax.tree.map(jnp.add, total, stats), count + 1
    expect(count, "calibrate", "one batch or more", "none")
    return {**variables, "batch_stats": unfreeze(jax.tree.map(lambda sums: sums / count, total))}
