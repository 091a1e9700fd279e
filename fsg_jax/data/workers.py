"""Worker processes end with their parent."""

import multiprocessing
import os
import threading


def end_with_parent(*_: int) -> None:
    """Makes a worker process quit when its parent is gone, however it went; arguments are not used."""
    threading.Thread(target=_quit_with_parent, daemon=True).start()


def _quit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
