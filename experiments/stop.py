"""Ctrl-C and the signals of batch systems as a request that the loop reads between steps; a second one acts at once."""

import signal
from types import FrameType
from typing import Any, ClassVar

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""The last two are left alone where they are ignored, as under nohup."""


class StopRequest:
    """A context in which the first signal sets `requested` and the second acts as it did before.

    The first signal reaches all nested contexts, those that are entered after it too.
    """

    requested = False
    _open: ClassVar[list["StopRequest"]] = []

    def __enter__(self) -> "StopRequest":
        self.requested = any(outer.requested for outer in self._open)
        ignored = {s for s in SIGNALS[2:] if signal.getsignal(s) == signal.SIG_IGN}
        signals = () if self.requested else [s for s in SIGNALS if s not in ignored]
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
