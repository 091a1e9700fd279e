"""Errors that a user can mend: one line on stderr and an exit code, no traceback."""

import logging
import sys
from collections.abc import Callable

import fsg_jax as fsg
from fsg_jax._files import BusyError


class UserError(Exception):
    """Bad input or a folder in the way."""


class NotFiniteError(Exception):
    """A loss or gradient became NaN or Inf."""


class StopRequested(Exception):
    """The user asked to stop; what was done is saved."""


EXIT_CODES: dict[type[Exception], int] = {
    NotFiniteError: 3,
    StopRequested: 130,
    UserError: 2,
    BusyError: 2,
    fsg.CheckpointError: 2,
    ValueError: 2,
    ImportError: 2,
    OSError: 2,
}


def run_main(main: Callable[[], None]) -> None:
    """Calls `main`; a known error becomes its line and its exit code."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs tracebacks of what it raises as well
    try:
        main()
    except KeyboardInterrupt:
        print("stopped at once; --resume continues from the last checkpoint", file=sys.stderr)
        sys.exit(EXIT_CODES[StopRequested])
    except tuple(EXIT_CODES) as error:
        code = next(code for kind, code in EXIT_CODES.items() if isinstance(error, kind))
        print(error if isinstance(error, StopRequested) else f"error: {error}", file=sys.stderr)
        sys.exit(code)
