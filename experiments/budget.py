"""How long the runs of an ablation take, and which of them would end before the time is up."""

import math
import time
from typing import Any, NamedTuple


class Took(NamedTuple):
    """A finished run."""

    arm: Any
    """Runs of one take about equally long."""
    seconds: float
    """All in all."""
    compiling: float
    """Of them, in the compiler."""


class Budget:
    """The time that an ablation has.

    Args:
      minutes: from now on; None: as long as it takes.
      before: finished runs of other times.
    """

    def __init__(self, minutes: float | None, before: list[Took]) -> None:
        self._end = math.inf if minutes is None else time.monotonic() + 60 * minutes
        self._known, self._compiled = list(before), set[Any]()

    def add(self, program: Any, runs: list[Took]) -> None:
        """Runs that have finished here, with a program that other runs of this process use too."""
        self._known += runs
        self._compiled.add(program)

    def allows(self, arm: Any, program: Any, runs: int) -> bool:
        """Whether so many runs of an arm will end in time, judged by its slowest finished run, or else by that of all.

        The first run is always allowed, while there is time.
        """
        left = self._end - time.monotonic()
        same = [run for run in self._known if run.arm == arm]
        if not same:
            return left > runs * max((run.seconds for run in self._known), default=0.0)
        compiling = 0.0 if program in self._compiled else max(run.compiling for run in same)
        return left > runs * max(run.seconds - run.compiling for run in same) + compiling
