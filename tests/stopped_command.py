"""Runs ``python -m experiments.train`` and sends it a signal at its n-th use of a file; run by test_kill_resume.py.

Arguments: the signal's number, n, the folder, and the command's arguments. Counted are the opening, making, renaming
and removing of files and folders, whichever thread does it, so that a checkpoint may be half written.
"""

import itertools
import os
import runpy
import sys

EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.listdir", "os.scandir")


def stop_at(count: int, folder: str, signal: int) -> None:
    uses = itertools.count(1)

    def hook(event: str, arguments: tuple) -> None:
        if event in EVENTS and str(arguments[0]).startswith(folder) and next(uses) == count:
            os.kill(os.getpid(), signal)

    sys.addaudithook(hook)


if __name__ == "__main__":
    number, count, folder, *rest = sys.argv[1:]
    stop_at(int(count), folder, int(number))
    sys.argv = ["experiments.train", *rest]
    runpy.run_module("experiments.train", run_name="__main__", alter_sys=True)
