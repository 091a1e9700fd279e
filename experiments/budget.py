"""How long the runs of an ablation take, and which of them would end before the time is up."""

import math
import time
from typing import Any, NamedTuple


class Took(NamedTuple):
    """A finished run, or one of several that were side by side."""

    arm: Any
    """Runs of one take about equally long."""
    seconds: float
    """All in all, but for the compiler."""
    compiling: float
    """Seconds in the compiler, for all that were side by side."""


class Budget:
    """The time that an ablation has.

    Args:
      minutes: from now on; None: as long as it takes.
      before: finished runs of other times.
    """

    def __init__(self, minutes: float | None, before: list[Took]) -> None:
        self._end = math.inf if minutes is None else time.monotonic() + 60 * minutes
        self._known, self._compiled = list(before), set[Any]()

    def add(self, run: Took, program: Any) -> None:
        """A run that has finished here, with a program that others in this process need not compile."""
        self._known.append(run)
        self._compiled.add(program)

    def allows(self, arm: Any, program: Any, runs: int) -> bool:
        """Whether so many runs of an arm will end in time, judged by its slowest finished run, or else by that of all.

        Where none is known the runs are allowed while there is time.
        """
        known = [run for run in self._known if run.arm == arm] or self._known
        each = max((run.seconds for run in known), default=0.0)
        compiling = 0.0 if program in self._compiled else max((run.compiling for run in known), default=0.0)
        return time.monotonic() + runs * each + compiling < self._end
