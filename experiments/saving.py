"""When runs are saved, what of them, and what a run is resumed from; epochs that are short do not pay for it."""

import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import fsg_jax as fsg
from experiments.config import Train
from experiments.run_folder import RunFolder
from experiments.task import Task
from fsg_jax.training.checkpoint import Restored


class Clock:
    """Tells when to save, so that a kill costs at most `every` seconds of work, and the writing of one checkpoint.

    With 0 that is at the end of every epoch and only there.
    """

    def __init__(self, every: float) -> None:
        self._every = every
        self._saved = self._epoch = time.monotonic()

    def is_due(self, *, epoch_ends: bool) -> bool:
        """Whether to save now; to be asked once a step.

        At the end of an epoch also where the end of the next one, if it takes as long, would be too late: short epochs
        are saved at their ends.
        """
        now = time.monotonic()
        age = now - self._saved
        if not epoch_ends:
            return 0 < self._every <= age
        length, self._epoch = now - self._epoch, now
        return age + length >= self._every

    def restart(self) -> None:
        """The runs have been saved."""
        self._saved = time.monotonic()


class Snapshot(NamedTuple):
    """The state of a run, and what its checkpoint has besides."""

    state: fsg.TrainState
    about: dict[str, Any]
    """Arguments of `fsg_jax.Checkpointer.save`."""

    def copied(self) -> "Snapshot":
        """One whose state lies beside that which the next step overwrites, on the devices."""
        leaves, treedef = jax.tree.flatten(self.state)
        return Snapshot(jax.tree.unflatten(treedef, _copies(leaves)), self.about)


@jax.jit
def _copies(leaves: list[jax.Array]) -> list[jax.Array]:
    return [jnp.copy(leaf) for leaf in leaves]


@jax.jit
def are_finite(leaves: list[jax.Array]) -> jax.Array:
    """Whether each array is finite all over."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves])


def best_epoch(epochs: list[dict[str, Any]], task: Task) -> dict[str, Any] | None:
    """The row with the best validation metric, the last of equals; None if no epoch was validated."""
    sign, metric = -1 if task.smallest else 1, f"val_{task.best}"
    rows = [row for row in epochs if metric in row]
    return max(rows, key=lambda row: (sign * row[metric], row["step"]), default=None)


def restore(
    checkpointer: fsg.Checkpointer, like: fsg.TrainState, options: Train, task: Task, folder: RunFolder
) -> Restored | None:
    """The newest sound checkpoint of the run; None without one, and the run begins anew.

    Where the best epoch is tested its checkpoint must be sound too, or else the run goes back to before that epoch.
    """
    expect = {"run": folder.run}
    while checkpointer.steps():
        try:
            restored = checkpointer.restore(like, expect=expect)
        except fsg.CheckpointError:
            if checkpointer.steps():
                raise
            break
        row = best_epoch(restored.extra.get("log", {}).get("epochs", []), task)
        if options.test_on != "best" or row is None or row["step"] == restored.step:
            return restored
        best = row["step"]
        try:
            checkpointer.restore(like, best, expect=expect)
        except fsg.CheckpointError as error:
            for step in [step for step in checkpointer.steps() if step >= best]:
                checkpointer.set_aside(step, f"the weights of step {best}, which are to be tested, are lost: {error}")
        else:
            return restored
    return None
