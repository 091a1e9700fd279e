"""Training on data in device memory: no input pipeline, no transfer but that of row numbers, no Grain."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from fsg_jax._checks import check_choice
from fsg_jax.data.batches import BatchOrder
from fsg_jax.data.images import ImageDataset
from fsg_jax.typing import Batch, PyTree

DISPATCHES = ("loop", "scan")
SEED_MODES = ("vmap", "map")
Step = Callable[[Any, Batch], tuple[Any, Any]]
Steps = Callable[[Any, Batch, Any], tuple[Any, Any]]


def put_dataset(
    dataset: ImageDataset | Mapping[str, np.ndarray], sharding: jax.sharding.Sharding | None = None
) -> dict[str, jax.Array]:
    """Puts images, uint8, and labels, or arrays by name, on the device, or where `sharding` says.

    Every device of a mesh needs all rows.
    """
    if isinstance(dataset, ImageDataset):
        dataset = {"image": dataset.images, "label": dataset.labels}
    arrays = dict(dataset)
    if sharding is None:
        return jax.device_put(arrays)
    return {k: jax.make_array_from_callback(v.shape, sharding, v.__getitem__) for k, v in arrays.items()}


def chunk_rows(order: BatchOrder, start: int, steps: int) -> Int[np.ndarray, "steps batch"]:
    """Returns the row numbers of batches `start` to ``start + steps - 1``, int32.

    Raises:
      ValueError: the batches differ in size, as they may with ``drop_remainder=False``.
    """
    rows = [order.rows(step) for step in range(start, start + steps)]
    if len({len(r) for r in rows}) > 1:
        raise ValueError("order: expected drop_remainder=True, so batches of one size, found several sizes")
    return np.stack(rows).astype(np.int32)


def make_resident_steps(step: Step, dispatch: str = "scan", *, seeds: str | None = None) -> Steps:
    """Makes ``steps(state, data, rows) -> (state, metrics)``: several training steps, the state donated.

    The numbers are those of calling `step` on each batch. `data` is from `put_dataset`; `rows`, (steps, batch), from
    `chunk_rows`; every leaf of `metrics` gets a leading axis of steps.

    Args:
      step: ``step(state, batch) -> (state, metrics)``, not jitted (``make_train_step(..., jit=False)``).
      dispatch: ``"scan"``, one program for all steps of a call, compiled for every number of steps; ``"loop"``, one
        program a step, dispatched without waiting for the one before.
      seeds: several runs side by side: state and metrics have a leading axis of runs (before that of steps), and
        rows are (runs, steps, batch). ``"vmap"`` runs them as one batched program, which turns convolutions into
        grouped ones; ``"map"`` one after another inside the program.

    Raises:
      ValueError: unknown `dispatch` or `seeds`.
    """
    check_choice("dispatch", dispatch, DISPATCHES)

    def one(state: PyTree, data: Batch, rows: jax.Array) -> tuple[PyTree, Any]:
        return step(state, {k: jnp.take(v, rows, axis=0) for k, v in data.items()})

    def scan(state: PyTree, data: Batch, rows: jax.Array) -> tuple[PyTree, Any]:
        return jax.lax.scan(lambda state, r: one(state, data, r), state, rows)

    single = one if dispatch == "loop" else scan
    jitted = jax.jit(single if seeds is None else side_by_side(single, seeds), donate_argnums=0)
    if dispatch == "scan":
        return jitted
    axis = 0 if seeds is None else 1

    def loop(state: PyTree, data: Batch, rows: Any) -> tuple[PyTree, Any]:
        metrics = []
        for i in range(rows.shape[axis]):
            state, row = jitted(state, data, rows[i] if axis == 0 else rows[:, i])
            metrics.append(row)
        return state, stack(metrics)

    stack = jax.jit(lambda rows: jax.tree.map(lambda *x: jnp.stack(x, axis), *rows))
    return loop


def side_by_side(steps: Steps, mode: str) -> Steps:
    """Makes `steps` of several runs: state, rows and results get a leading axis of runs; `data` is shared."""
    check_choice("seeds", mode, SEED_MODES)
    if mode == "vmap":
        return jax.vmap(steps, in_axes=(0, None, 0))
    return lambda states, data, rows: jax.lax.map(lambda each: steps(each[0], data, each[1]), (states, rows))
