"""Times of several sides of a comparison, taken in turns, so that what disturbs one disturbs all."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from fsg_jax._checks import check_integer

Times = np.ndarray[Any, np.dtype[np.float64]]
"""Seconds a unit of one side: one sample a round."""


@dataclass
class Side:
    """One side of a comparison: a function that is called again and again.

    Attributes:
      call: takes one step; need not wait for the device.
      wait: waits for the result of the last call, and so for all.
      units: what the time of a call is divided by: the training steps in it.
      about: values for its row besides times.
      flops: floating-point operations of a call, where they are known.
    """

    call: Callable[[], Any]
    wait: Callable[[Any], Any] = jax.block_until_ready
    units: int = 1
    about: dict[str, Any] = field(default_factory=dict)
    flops: float = 0.0

    def run(self, steps: int) -> Any:
        """Takes `steps` steps, at least one, waits until the device has finished, and returns the last result."""
        for _ in range(steps):
            result = self.call()
        self.wait(result)
        return result


def interleave(
    sides: Mapping[str, Side],
    repeats: int,
    seconds: float,
    *,
    multiple: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Times]:
    """Warms all sides up, then times them A-B-...-A-B-..., `repeats` rounds.

    Every sample follows one step that is not timed and is the mean over as many steps as fit into `seconds`, at least
    one.

    Args:
      sides: what is compared, by name.
      repeats: rounds, at least 2.
      seconds: wall time of a sample.
      multiple: steps of a sample are a multiple of this, for sides whose steps differ in cost.
      clock: gives the time in seconds.

    Raises:
      ValueError: `repeats` below 2.
    """
    check_integer("repeats", repeats, 2)

    def time_steps(side: Side, steps: int) -> float:
        start = clock()
        side.run(steps)
        return clock() - start

    steps, times = {}, np.zeros((repeats, len(sides)))
    for name, side in sides.items():
        side.run(multiple)
        steps[name] = max(1, round(seconds / time_steps(side, multiple))) * multiple
    for samples in times:
        for i, (name, side) in enumerate(sides.items()):
            side.run(1)
            samples[i] = time_steps(side, steps[name]) / steps[name] / side.units
    return dict(zip(sides, times.T, strict=True))


def quartiles(values: Times, *keys: str) -> dict[str, float]:
    """Median, first and third quartile under three keys. Values may be ratios of sides, taken within rounds."""
    return dict(zip(keys, np.quantile(values, (0.5, 0.25, 0.75)).tolist(), strict=True))


def time_row(times: Times) -> dict[str, Any]:
    """Median and quartiles of a side's times, JSON-able."""
    return {**quartiles(times, "seconds", "seconds_low", "seconds_high"), "rounds": len(times)}
