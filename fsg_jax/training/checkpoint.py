"""Checkpoints with Orbax: the whole state and the position in the data; asynchronous, atomic, verified on reading."""

import math
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from fsg_jax.training.checkpoint_files import (
    MismatchError,
    checksums,
    from_leaves,
    read_leaves,
    read_meta,
    read_verified,
    to_leaves,
    to_template,
)
from fsg_jax.training.state import TrainState

CORRUPT_SUFFIX = ".corrupt"


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read, or does not fit the state it is read into."""


@dataclass(frozen=True)
class Restored:
    """What `Checkpointer.restore` read."""

    state: TrainState
    step: int
    data: Any
    """Position of the data iterator, as given to `Checkpointer.save`."""
    extra: dict[str, Any]


class Checkpointer:
    """Saves and restores a `TrainState`, the data position and small extras; one folder a step.

    A checkpoint appears under its step's name only when it is complete. It carries a CRC-32 of every array, which
    `restore` compares: a truncated or damaged checkpoint is set aside (``<step>.corrupt``) with a warning, and the
    one before it is read.

    With several processes, all of them make the same calls on one folder that all can read and write. Each writes
    its part of the arrays; the CRC-32 is still that of the whole array, gathered one array at a time. On reading,
    process 0 verifies the files for all, then each process reads its part. How arrays are divided over devices
    and processes may change between saving and restoring.

    Args:
      directory: made if missing.
      keep_last: how many of the newest to keep.
      best: name of a metric given to `save`; the checkpoint with its largest value is kept too.
      smallest: the smallest value of `best` is the best.
    """

    def __init__(
        self, directory: str | Path, *, keep_last: int = 2, best: str | None = None, smallest: bool = False
    ) -> None:
        self.directory = Path(directory).absolute()
        self._best, self._smallest = best, smallest
        managers, scored = ocp.checkpoint_managers, {}
        policies: list[Any] = [managers.LatestN(keep_last)]
        if best is not None:
            policies.append(managers.BestN(get_metric_fn=self._score, n=1))
            scored = {"best_fn": self._score}
        options = ocp.CheckpointManagerOptions(
            preservation_policy=managers.AnyPreservationPolicy(policies),
            cleanup_tmp_directories=True,
            create=True,
            **scored,
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def _score(self, metrics: Mapping[str, float]) -> float:
        """Larger is better; a checkpoint without the metric is the worst."""
        value = metrics.get(self._best or "")
        return -math.inf if value is None else -value if self._smallest else value

    def save(
        self,
        state: TrainState,
        *,
        data: Any = None,
        metrics: Mapping[str, float] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Copies the state and returns; writing goes on in the background. See `wait`.

        With several processes the copy is on the devices, until it is written.

        Args:
          state: saved under its step; saving a step twice is an error.
          data: JSON-able position of the data iterator, e.g. its ``get_state()``.
          metrics: for `best`.
          extra: any JSON-able mapping.

        Raises:
          CheckpointError: this save, or the one before it in the background, failed, e.g. on a full disk.
        """
        leaves = to_leaves(state)
        self._check_space(sum(leaf.nbytes for leaf in leaves.values()))
        meta = {"data": data, "extra": dict(extra or {}), "crc32": checksums(leaves)}
        items = ocp.args.Composite(state=ocp.args.StandardSave(leaves), meta=ocp.args.JsonSave(meta))
        with self._writing():
            self._manager.save(int(state.step), args=items, metrics=dict(metrics or {}))

    def wait(self) -> None:
        """Returns when all saving is done.

        Raises:
          CheckpointError: it failed, e.g. on a full disk.
        """
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits as `wait` does and lets go of the folder."""
        with self._writing():
            self._manager.close()

    def _check_space(self, needed: int) -> None:
        """Fails early, where it can be foreseen; in the background every array that does not fit is an error."""
        free = shutil.disk_usage(self.directory).free
        if needed > free:
            space = f"{needed / 1e6:.1f} MB are needed, {free / 1e6:.1f} MB free"
            raise CheckpointError(f"cannot write checkpoints to {self.directory}: no space left on device: {space}")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Orbax raises what went wrong in its threads, of any type, at the next call."""
        try:
            yield
        except Exception as error:
            raise CheckpointError(f"cannot write checkpoints to {self.directory}: {error}") from error

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, ascending."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """The step with the best metric among those kept, the latest of equals, or None."""
        scores = {step: self._score(self._manager.metrics(step) or {}) for step in self.steps()}
        best = max(scores, key=lambda step: (scores[step], step), default=None)
        return best if best is not None and scores[best] > -math.inf else None

    def restore(self, like: TrainState, step: int | None = None) -> Restored:
        """The newest readable checkpoint, or that of `step`.

        Args:
          like: a state of the same model and optimizers, e.g. from `init_state`; its values are not used. The
            restored state lies on the devices as it does.
          step: read this one and no other.

        Raises:
          CheckpointError: none is there, none is readable, or the saved leaves do not fit `like`; each is named.
            Or a save that was under way failed.
        """
        self.wait()
        candidates = [step] if step is not None else self.steps()[::-1]
        failures = []
        for candidate in candidates:
            restored, verdict = self._read(like, candidate)
            if restored is not None:
                return restored
            if verdict.startswith(MismatchError.__name__):
                raise CheckpointError(f"{self.directory / str(candidate)}: {verdict}")
            failures.append(f"step {candidate}: {verdict}")
            if step is None:
                self._set_aside(candidate, verdict)
        found = "; ".join(failures) or "no checkpoint there"
        raise CheckpointError(f"nothing to restore in {self.directory}: {found}")

    def _read(self, like: TrainState, step: int) -> tuple[Restored | None, str]:
        """What was read, or None and what is wrong, on which all processes agree."""
        path, template = self.directory / str(step), to_template(like)
        leaves: dict[str, Any] = {}
        verdict = ""
        if jax.process_index() == 0:
            try:
                leaves = read_verified(path, template)
            except Exception as error:  # whatever a damaged file makes the readers raise
                verdict = f"{type(error).__name__}: {error}"
        verdict = agreed(verdict)
        if verdict:
            return None, verdict
        if jax.process_count() > 1:
            leaves = read_leaves(path, template)
        meta = read_meta(path)
        return Restored(from_leaves(leaves, like), step, meta["data"], meta["extra"]), ""

    def _set_aside(self, step: int, verdict: str) -> None:
        path = self.directory / str(step)
        others = len(list(path.parent.glob(f"{path.name}{CORRUPT_SUFFIX}*")))
        aside = path.with_name(f"{path.name}{CORRUPT_SUFFIX}" + f".{others}" * bool(others))
        warnings.warn(
            f"checkpoint {path} is damaged ({verdict}); it is set aside as {aside.name} and the one before it is used",
            stacklevel=3,
        )
        if jax.process_index() == 0:
            path.rename(aside)
        agreed("")
        self._manager.reload()


def agreed(message: str) -> str:
    """The message of process 0 in every process, cut to 1000 bytes; all processes wait for each other."""
    if jax.process_count() == 1:
        return message
    padded = np.zeros(1000, np.uint8)
    encoded = np.frombuffer(message.encode()[: padded.size], np.uint8)
    padded[: encoded.size] = encoded
    return multihost_utils.broadcast_one_to_all(padded).tobytes().rstrip(b"\0").decode(errors="replace")
