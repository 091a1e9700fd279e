"""A map over worker processes that takes only a few items ahead of the results."""

import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from typing import TypeVar

from fsg_jax._checks import check_integer
from fsg_jax.data.workers import end_with_parent

T = TypeVar("T")
R = TypeVar("R")


def map_bounded(function: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """Yields the results as they are ready, in any order; at most ``2 * workers`` items are taken ahead of them.

    Args:
      function: picklable, and so are items and results.
      items: taken one by one.
      workers: processes, spawned; with 1 the work is done in this process. They end when this process does.

    Raises:
      ValueError: `workers` is less than 1.
    """
    check_integer("workers", workers, 1)
    if workers == 1:
        yield from map(function, items)
        return
    pending: set[Future[R]] = set()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
        try:
            for item in items:
                pending.add(pool.submit(function, item))
                if len(pending) >= 2 * workers:
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            yield from (future.result() for future in pending)
        finally:
            for future in pending:
                future.cancel()


def _start_worker() -> None:
    """Leaves Ctrl-C to the parent, and ends with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
