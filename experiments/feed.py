"""How a run moves forward: states, the batches they are shown, and the jitted steps; one interface for both paths."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

import fsg_jax as fsg
from fsg_jax.data.batches import BatchOrder
from fsg_jax.data.prefetch import Prefetch
from fsg_jax.data.resident import chunk_rows

States = Sequence[fsg.TrainState]


class Feed(Protocol):
    """One run, or several that differ in their seed alone and move in step."""

    most_steps: int
    """Of one call to `advance`."""

    def advance(self, steps: int) -> Any:
        """Takes that many steps; metrics with leading axes (runs, steps), perhaps still being computed."""

    def states(self) -> list[fsg.TrainState]:
        """The state of every run."""

    def positions(self) -> list[dict[str, Any]]:
        """The position of every run in its data, JSON-able."""

    def close(self) -> None:
        """Stops reading."""


class StreamFeed:
    """Batches that are read, put on the device ahead of time, and used one at a time; a single run.

    Args:
      step: ``step(state, batch) -> (state, metrics)``, jitted.
      batches: what is read.
      state: of the run; ``batches`` is at its step.
    """

    most_steps = 1

    def __init__(self, step: fsg.TrainStep, batches: Prefetch, state: fsg.TrainState) -> None:
        self._step, self._batches, self._state = step, batches, state

    def advance(self, steps: int) -> Any:
        """See `Feed`."""
        if steps != 1:
            raise ValueError(f"steps is {steps}; expected 1, the most of this feed")
        self._state, metrics = self._step(self._state, next(self._batches))
        return metrics

    def states(self) -> list[fsg.TrainState]:
        """See `Feed`."""
        return [self._state]

    def positions(self) -> list[dict[str, Any]]:
        """See `Feed`."""
        return [self._batches.get_state()]

    def close(self) -> None:
        """See `Feed`."""
        self._batches.close()


class ResidentFeed:
    """Data on the device, of which each step is given row numbers.

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
        """See `Feed`."""
        rows = [chunk_rows(order, self._at, steps) for order in self._orders]
        self._at += steps
        if self._several:
            self._state, metrics = self._steps(self._state, self._data, self._put(np.stack(rows)))
            return metrics
        self._state, metrics = self._steps(self._state, self._data, self._put(rows[0]))
        return jax.tree.map(lambda x: x[None], metrics)

    def states(self) -> list[fsg.TrainState]:
        """See `Feed`."""
        if not self._several:
            return [self._state]
        return [jax.tree.map(lambda x, i=i: x[i], self._state) for i in range(len(self._orders))]

    def positions(self) -> list[dict[str, Any]]:
        """See `Feed`; the same as on the other path."""
        return [{"step": self._at, **order.describe()} for order in self._orders]

    def close(self) -> None:
        """See `Feed`."""
