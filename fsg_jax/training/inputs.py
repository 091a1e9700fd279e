"""What of a batch the model is given: a key, several, or a function."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from fsg_jax._checks import expect
from fsg_jax.typing import Batch

Inputs: TypeAlias = str | tuple[str, ...] | Callable[[Batch], Any]
"""A key of the batch; several, one an argument of the model; or a function of the batch, which returns a tuple of
arguments, or the one argument."""


def select(inputs: Inputs, batch: Batch) -> tuple[Any, ...]:
    """The arguments of the model.

    Raises:
      ValueError: a key that the batch does not have.
    """
    if callable(inputs):
        found = inputs(batch)
        return found if isinstance(found, tuple) else (found,)
    keys = (inputs,) if isinstance(inputs, str) else tuple(inputs)
    there = sorted(batch) if isinstance(batch, Mapping) else type(batch).__name__
    fits = isinstance(batch, Mapping) and not set(keys) - {*batch}
    expect(fits, "inputs", f"keys of the batch, {there}", repr(inputs))
    return tuple(batch[key] for key in keys)


def batch_size(arguments: tuple[Any, ...]) -> int:
    """Number of examples: the first axis of the first argument that has one.

    Raises:
      ValueError: no argument has an axis.
    """
    sizes = [leaf.shape[0] for leaf in jax.tree.leaves(arguments) if jnp.ndim(leaf)]
    expect(sizes, "inputs", "an array whose first axis is the batch", "none")
    return sizes[0]
