"""Ctrl-C and SIGTERM as a request that the loop reads between steps; a second one interrupts at once."""

import signal
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """A context in which the first signal sets `requested` and the second acts as it did before."""

    requested = False

    def __enter__(self) -> "StopRequest":
        self._before: dict[int, Any] = {s: signal.signal(s, self._handle) for s in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.requested = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
