"""Errors that a user can mend: one line on stderr and an exit code, no traceback."""

import io
import logging
import re
import sys
from collections.abc import Callable

import fsg_jax as fsg
from fsg_jax._files import BusyError, local


class UserError(Exception):
    """Bad input or a folder in the way."""


class NotFiniteError(Exception):
    """A loss or gradient became NaN or Inf."""


class StopRequested(Exception):
    """The user asked to stop; what was done is saved."""


class TimeIsUp(Exception):
    """Some runs were not begun, for they would not have ended in the time that was given; the others are finished."""


EXIT_CODES: dict[type[Exception], int] = {
    NotFiniteError: 3,
    TimeIsUp: 4,
    StopRequested: 130,
    UserError: 2,
    BusyError: 2,
    fsg.CheckpointError: 2,
    ValueError: 2,
    ImportError: 2,
    OSError: 2,
}


def run_main(main: Callable[[], None]) -> None:
    """Calls `main`; a known error becomes its line and its exit code. Paths in the arguments are expanded first."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs tracebacks of what it raises as well
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal in ASCII
    try:
        sys.argv[1:] = map(_expand, sys.argv[1:])
        main()
    except KeyboardInterrupt:
        print("stopped at once; --resume continues from the last checkpoint", file=sys.stderr)
        sys.exit(EXIT_CODES[StopRequested])
    except tuple(EXIT_CODES) as error:
        code = next(code for kind, code in EXIT_CODES.items() if isinstance(error, kind))
        print(error if isinstance(error, StopRequested | TimeIsUp) else f"error: {error}", file=sys.stderr)
        sys.exit(code)


def _expand(word: str) -> str:
    """An argument, with ``~`` expanded where a path begins with it; raises ValueError if it is a URL."""
    option, value = re.fullmatch(r"((?:--)?[\w.-]+=)?(.*)", word, re.DOTALL).groups("")  # type: ignore[union-attr]
    return f"{option}{local(value)}" if re.match(r"~|[A-Za-z][A-Za-z0-9+.-]+:/", value) else word
