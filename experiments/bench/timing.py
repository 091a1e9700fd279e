"""Times of several sides of a comparison, taken in turns, so that what disturbs one disturbs all."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any, NamedTuple, Protocol


class Side(Protocol):
    """One side of a comparison."""

    @property
    def name(self) -> str:
        """Unique among the sides."""

    def run(self, steps: int) -> None:
        """Take `steps` steps and wait until the device has finished."""


class Spread(NamedTuple):
    """Median and quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> "Spread":
        """The spread of at least two samples."""
        low, _, high = quantiles(samples, n=4, method="inclusive")
        return cls(median(samples), low, high)


@dataclass(frozen=True)
class Timing:
    """Seconds a step: one sample a round, each the mean over `steps` steps."""

    samples: tuple[float, ...]
    steps: int

    @property
    def spread(self) -> Spread:
        """Median and quartiles of the samples."""
        return Spread.of(self.samples)

    def row(self) -> dict[str, Any]:
        """JSON-able."""
        middle, low, high = self.spread
        return {"seconds": middle, "seconds_low": low, "seconds_high": high, "rounds": len(self.samples)}


def interleave(sides: Sequence[Side], repeats: int, seconds: float, *, multiple: int = 1) -> dict[str, Timing]:
    """Warms all sides up, then times them A-B-...-A-B-..., `repeats` rounds; the result is by name.

    Every sample follows one step that is not timed and has as many steps as fit into `seconds`, at least one.

    Args:
      sides: what is compared.
      repeats: rounds, at least 2.
      seconds: wall time of a sample.
      multiple: steps of a sample are a multiple of this, for sides whose steps differ in cost.

    Raises:
      ValueError: `repeats` below 2, or two sides of one name.
    """
    if repeats < 2 or len({side.name for side in sides}) < len(sides):
        raise ValueError(f"expected repeats of 2 or more and distinct names; got {repeats}, {[s.name for s in sides]}")
    steps = {side.name: _steps_that_fit(side, seconds, multiple) for side in sides}
    samples: dict[str, list[float]] = {side.name: [] for side in sides}
    for _ in range(repeats):
        for side in sides:
            side.run(1)
            samples[side.name].append(_time(side, steps[side.name]))
    return {name: Timing(tuple(times), steps[name]) for name, times in samples.items()}


def paired_ratio(numerator: Timing, denominator: Timing) -> Spread:
    """Spread of the ratios within rounds, in which both sides met the same conditions."""
    return Spread.of([a / b for a, b in zip(numerator.samples, denominator.samples, strict=True)])


def _steps_that_fit(side: Side, seconds: float, multiple: int) -> int:
    side.run(multiple)
    once = _time(side, multiple)
    return max(1, round(seconds / (once * multiple))) * multiple


def _time(side: Side, steps: int) -> float:
    start = time.perf_counter()
    side.run(steps)
    return (time.perf_counter() - start) / steps
