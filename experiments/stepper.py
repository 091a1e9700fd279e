"""How runs move forward: states, the batches they are shown, and the jitted steps; one interface for both paths."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fsg_jax as fsg
from experiments.config import Train
from experiments.devices import Placement, choose
from experiments.errors import UserError
from fsg_jax.data.batches import BatchOrder
from fsg_jax.data.loader import Loader, Read
from fsg_jax.data.prefetch import Prefetch
from fsg_jax.data.resident import chunk_rows, make_resident_steps

States = Sequence[fsg.TrainState]


Order = Callable[[int], BatchOrder]
"""The order of the batches by seed."""


class Streamed(NamedTuple):
    """Training data that are read during training."""

    order: Order
    read: Read
    workers: int = 0
    threads: int = 1

    def loader(self, seed: int, start: int) -> Loader:
        """This process's part of the batches from number `start` on."""
        process = {"process_index": jax.process_index(), "process_count": jax.process_count()}
        return Loader(self.order(seed), self.read, self.workers, self.threads, start=start, **process)


class StreamingStepper:
    """A single run; batches are read, put on the device ahead of time, and used one at a time.

    Args:
      step: ``step(state, batch) -> (state, metrics)``, jitted, metrics with leading axes (runs, steps) of one each.
      batches: what is read, from the run's next step on.
      state: of the run.
    """

    most_steps = 1
    """Of one call to `advance`."""

    def __init__(self, step: fsg.TrainStep, batches: Prefetch, state: fsg.TrainState) -> None:
        self._step, self._batches, self._state = step, batches, state

    def advance(self, steps: int) -> Any:
        """Takes that many steps; metrics with leading axes (runs, steps), perhaps still being computed."""
        if steps != 1:
            raise ValueError(f"steps: expected 1, found {steps}")
        self._state, metrics = self._step(self._state, next(self._batches))
        return metrics

    def states(self) -> list[fsg.TrainState]:
        """The state of every run."""
        return [self._state]

    def positions(self) -> list[dict[str, Any]]:
        """The position of every run in its data, JSON-able; the same for both steppers."""
        return [self._batches.get_state()]

    def close(self) -> None:
        """Stops reading."""
        self._batches.close()


class DeviceStepper:
    """One run or several; the data are in device memory, and each step is given row numbers.

    Args:
      steps: from `fsg_jax.data.resident.make_resident_steps`, with ``seeds`` where there are several runs.
      data: from `fsg_jax.data.resident.put_dataset`.
      orders: the order of each run's batches.
      states: of each run, all at the same step.
      put: places row numbers on the devices.
      most_steps: of one call.
    """

    def __init__(
        self,
        steps: Callable[..., tuple[Any, Any]],
        data: dict[str, jax.Array],
        orders: Sequence[BatchOrder],
        states: States,
        put: Callable[[Any], Any],
        most_steps: int,
    ) -> None:
        self.most_steps = most_steps
        self._steps, self._data, self._orders, self._put = steps, data, orders, put
        self._at = int(states[0].step)
        self._several = len(states) > 1
        self._state = jax.tree.map(lambda *x: jnp.stack(x), *states) if self._several else states[0]

    def advance(self, steps: int) -> Any:
        """See `StreamingStepper`."""
        rows = np.stack([chunk_rows(order, self._at, steps) for order in self._orders])
        self._at += steps
        self._state, metrics = self._steps(self._state, self._data, self._put(rows if self._several else rows[0]))
        return metrics if self._several else jax.tree.map(lambda x: x[None], metrics)

    def states(self) -> list[fsg.TrainState]:
        """See `StreamingStepper`."""
        if not self._several:
            return [self._state]
        return _apart(self._state, len(self._orders))

    def positions(self) -> list[dict[str, Any]]:
        """See `StreamingStepper`."""
        return [{"step": self._at, **order.describe()} for order in self._orders]

    def close(self) -> None:
        """See `StreamingStepper`; nothing is being read."""


@partial(jax.jit, static_argnums=1)
def _apart(states: fsg.TrainState, count: int) -> list[fsg.TrainState]:
    return [jax.tree.map(lambda x, i=i: x[i], states) for i in range(count)]


Stepper = StreamingStepper | DeviceStepper
"""How one run moves forward, or several that differ in their seed alone and move in step."""

MakeStepper = Callable[[Sequence[int], States], Stepper]
"""``make_stepper(seeds, states)``, the states all at one step."""


def streaming(step: fsg.TrainStep, data: Streamed, placement: Placement) -> MakeStepper:
    """Steppers of single runs on `data`; `step` is not yet jitted and compiled once for all of them."""

    def stacked(state: fsg.TrainState, batch: Any) -> tuple[fsg.TrainState, Any]:
        state, metrics = step(state, batch)
        return state, jax.tree.map(lambda x: jnp.reshape(x, (1, 1, *x.shape)), metrics)

    jitted = jax.jit(stacked, donate_argnums=0)

    def make_stepper(seeds: Sequence[int], states: States) -> Stepper:
        if len(seeds) > 1:
            where = "training data in device memory (see --data.resident)"
            raise UserError(f"--together: expected 1 without {where}, found {len(seeds)}")
        loader = data.loader(seeds[0], int(states[0].step))
        return StreamingStepper(jitted, Prefetch(iter(loader), placement.put_batch), states[0])

    return make_stepper


def resident_stepper(
    step: fsg.TrainStep,
    put: Callable[[], dict[str, jax.Array]],
    order: Order,
    placement: Placement,
    train: Train,
    seed_mode: str,
) -> MakeStepper:
    """Steppers on data in device memory, where `put` puts them; `step` is not yet jitted, and nothing is compiled yet.

    `seed_mode` is how several runs stand side by side, see `fsg_jax.data.resident.make_resident_steps`.
    """
    dispatch = choose(train.dispatch, accelerator="scan", cpu="loop")
    compiled = cache(lambda mode: make_resident_steps(step, dispatch, seeds=mode))

    def make_stepper(seeds: Sequence[int], states: States) -> Stepper:
        return DeviceStepper(
            compiled(seed_mode if len(seeds) > 1 else None),
            put(),
            [order(seed) for seed in seeds],
            states,
            placement.put_rows,
            train.log_every if dispatch == "scan" else 1,
        )

    return make_stepper
