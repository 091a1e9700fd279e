"""Type aliases shared by the package: arrays, batches, collections and the callables users pass in."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

AnyArray: TypeAlias = Array | np.ndarray
"""An array of JAX or of NumPy."""

Key: TypeAlias = PRNGKeyArray
"""A random key of `jax.random.key`."""
Images: TypeAlias = Float[Array, "batch height width channels"]
"""Normalised images."""
RawImages: TypeAlias = UInt8[Array, "batch height width channels"]
"""Images as stored, 0 to 255."""
Labels: TypeAlias = Int[Array, " batch"] | Float[Array, "batch classes"]
"""Class indices, or class probabilities (label smoothing, mixup, CutMix)."""

GATES = "gates"
"""Name of the variable collection of gate logits, and of the random stream that initialises and draws gates."""

GATE_STEP = "gate_step"
"""Name of the collection in which gates with a schedule of the temperature keep the step."""

LOG_VARIANCE = "log_variance"
"""Key of outputs by task that holds the learned weights of the tasks."""

PyTree: TypeAlias = Any
"""Any tree of arrays."""
Variables: TypeAlias = Mapping[str, PyTree]
"""Flax variables by collection, e.g. ``{"params": ..., "gates": ..., "batch_stats": ...}``."""

Batch: TypeAlias = Mapping[str, Any]
"""What the model reads (by default ``image``, an array (batch, height, width, channels) or a dict of such arrays, one a
stream) and what the loss reads, e.g. ``label``; an optional ``valid`` (batch,), boolean, marks the rows that count, and
numbers weigh them."""

Metrics: TypeAlias = dict[str, Any]
"""Metrics of a step by name: scalars, or dicts of scalars."""

Loss: TypeAlias = Callable[[Any, Batch], Any]
"""``loss(outputs, batch)``: values (batch, ...), or ``(values, weights)``, or their mean, (), or a mapping of such; see
`fsg_jax.routing.means`."""

GateKinds: TypeAlias = tuple[tuple[str, Any], ...]
"""``(name, kind)`` of every leaf of gate logits, in the order of the forward pass; see `fsg_jax.gates.summary`."""

Penalty: TypeAlias = Callable[..., Array]
"""``penalty(gates, kinds)`` or ``penalty(gates, kinds, step)``: a scalar, from the ``"gates"`` collection and
`TrainState.gate_kinds`."""

Transform: TypeAlias = Callable[[Key, Batch], dict[str, Any]]
"""``transform(key, batch)``: a pure function from a batch to a batch, run inside the jitted step."""
