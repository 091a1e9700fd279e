"""Ctrl-C and SIGTERM as a request that the loop reads between steps; a second one interrupts at once."""

import signal
from types import FrameType
from typing import Any, ClassVar

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """A context in which the first signal sets `requested` and the second acts as it did before.

    The first signal reaches all nested contexts, those that are entered after it too.
    """

    requested = False
    _open: ClassVar[list["StopRequest"]] = []

    def __enter__(self) -> "StopRequest":
        self.requested = any(outer.requested for outer in self._open)
        signals = () if self.requested else SIGNALS
        self._before: dict[int, Any] = {s: signal.signal(s, self._handle) for s in signals}
        self._open.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.remove(self)
        self._restore()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        for request in reversed(self._open):
            request.requested = True
            request._restore()

    def _restore(self) -> None:
        before, self._before = self._before, {}
        for number, handler in before.items():
            signal.signal(number, handler)
