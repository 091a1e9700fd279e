"""Checkpoints with Orbax: the whole state and the position in the data; asynchronous, atomic, verified on reading."""

import atexit
import logging
import math
import os
import shutil
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from fsg_jax._files import CORRUPT, local, set_aside
from fsg_jax.training.checkpoint_files import (
    MismatchError,
    checksums,
    from_leaves,
    read_leaves,
    read_meta,
    read_verified,
    seal,
    to_leaves,
    to_template,
    write_plain,
)
from fsg_jax.training.state import TrainState


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

    A checkpoint appears under its step's name only when it is complete. It carries a CRC-32 of every array and a
    SHA-256 of all else: of its step, metrics, data position, extras and of those CRC-32. A checkpoint that is truncated
    or damaged, or lies in the folder of another step, is set aside (``<step>.corrupt``) with a warning, and the one
    before it is read.

    With several processes, all of them make the same calls on one folder that all can read and write. Each writes
    its part of the arrays; the CRC-32 is still that of the whole array, gathered one array at a time. On reading,
    process 0 verifies the files for all, then each process reads its part. How arrays are divided over devices
    and processes may change between saving and restoring.

    The interpreter waits at its exit for what is being saved, and exits with 1 if that fails; ``with
    Checkpointer(...)`` waits at the end of the block, where a failure is an error.

    Args:
      directory: of a local file system; made if missing.
      keep_last: how many of the newest to keep.
      best: name of a metric given to `save`; the checkpoint with its largest value is kept too. NaN is the worst value.
      smallest: the smallest value of `best` is the best.

    Raises:
      ValueError: `directory` is a URL.
    """

    def __init__(
        self, directory: str | Path, *, keep_last: int = 2, best: str | None = None, smallest: bool = False
    ) -> None:
        self.directory = local(directory).absolute()
        self._best, self._smallest = best, smallest
        self._scores: dict[int, float] = {}
        self._unusable: set[int] = set()
        for path in sorted(self.directory.glob("*")):
            self._check_meta(path)  # before Orbax opens anything
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_Kept(keep_last, self._best_of),
            cleanup_tmp_directories=True,
            create=True,
            # Otherwise a folder that cannot be made leaves threads behind that wait for it for minutes.
            async_options=ocp.AsyncOptions(
                create_directories_asynchronously=False,
                post_finalization_callback=self._is_written,
            ),
        )
        self._manager: ocp.CheckpointManager = ocp.CheckpointManager(self.directory, options=options)

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _score(self, metrics: Mapping[str, float]) -> float:
        """Larger is better; a checkpoint without the metric, or with NaN, is the worst."""
        value = float(metrics.get(self._best or "", math.nan))
        return -math.inf if math.isnan(value) else -value if self._smallest else value

    def _best_of(self, steps: list[int]) -> int | None:
        best = max(steps, key=lambda step: (self._scores.get(step, -math.inf), step), default=None)
        return best if best is not None and self._scores.get(best, -math.inf) > -math.inf else None

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
          state: saved under its step, which is later than every step that is there.
          data: JSON-able position of the data iterator, e.g. its ``get_state()``.
          metrics: for `best`; real numbers.
          extra: any JSON-able mapping.

        Raises:
          CheckpointError: there is a checkpoint of this step or a later one, `data` or `extra` is not JSON-able, or
            this save, or the one before it in the background, failed, e.g. on a full disk.
        """
        leaves, step = to_leaves(state), int(state.step)
        self._check_space(sum(leaf.nbytes for leaf in leaves.values()))
        scores = {name: float(value) for name, value in (metrics or {}).items()}
        meta = {"step": step, "data": data, "extra": dict(extra or {}), "metrics": scores, "crc32": checksums(leaves)}
        with self._writing():
            meta = seal(meta)
            items = ocp.args.Composite(state=ocp.args.StandardSave(leaves), meta=ocp.args.JsonSave(meta))
            self._manager.wait_until_finished()
            self._scores[step] = self._score(scores)
            _unclosed.add(self._manager)
            _unwritten[self._manager] = self.directory / str(step), leaves, meta
            if not self._manager.save(step, args=items):
                del _unwritten[self._manager]
                raise ValueError(f"expected a step after {self._manager.latest_step()}, which is there, found {step}")

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
        _unclosed.discard(self._manager)

    def _is_written(self) -> None:
        _unwritten.pop(self._manager, None)

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
            _unclosed.discard(self._manager)  # whoever gets the error need not hear of it at the exit
            self._is_written()
            raise CheckpointError(f"cannot write checkpoints to {self.directory}: {error}") from error

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, ascending."""
        return sorted(set(self._manager.all_steps()) - self._unusable)

    def best_step(self) -> int | None:
        """The step with the best metric among those kept, the latest of equals, or None."""
        return self._best_of(self.steps())

    def restore(
        self, like: TrainState, step: int | None = None, *, expect: Mapping[str, Any] | None = None
    ) -> Restored:
        """The newest readable checkpoint, or that of `step`.

        Args:
          like: a state of the same model and optimizers, e.g. from `init_state`; its values are not used. The
            restored state lies on the devices as it does.
          step: read this one and no other.
          expect: entries of ``extra``, such as the name of a run; a checkpoint that has another value there is treated
            as a damaged one.

        Raises:
          CheckpointError: none is there, none is readable, or the saved leaves do not fit `like`; each is named.
            Or a save that was under way failed.
        """
        self.wait()
        candidates = [step] if step is not None else self.steps()[::-1]
        failures = []
        for candidate in candidates:
            restored, verdict = self._read(like, candidate, expect or {})
            if restored is not None:
                return restored
            if verdict.startswith(MismatchError.__name__):
                raise CheckpointError(f"{self.directory / str(candidate)}: {verdict}")
            failures.append(f"step {candidate}: {verdict}")
            if step is None:
                self.set_aside(candidate, verdict)
        found = "; ".join(failures) or "no checkpoint there"
        raise CheckpointError(f"nothing to restore in {self.directory}: {found}")

    def _read(self, like: TrainState, step: int, expect: Mapping[str, Any]) -> tuple[Restored | None, str]:
        """What was read, or None and what is wrong, on which all processes agree."""
        path, template = self.directory / str(step), to_template(like)
        leaves: dict[str, Any] = {}

        def read() -> None:
            leaves.update(read_verified(path, template, expect))

        if verdict := _failure(read):
            return None, verdict
        if jax.process_count() > 1:
            leaves = read_leaves(path, template)
        meta = read_meta(path)
        return Restored(from_leaves(leaves, like), step, meta["data"], meta["extra"]), ""

    def _check_meta(self, path: Path) -> None:
        try:
            step = int(path.name)
        except ValueError:
            return
        if verdict := _failure(lambda: read_meta(path)):
            self._set_aside(path, step, verdict)
        else:
            self._scores[step] = self._score(read_meta(path)["metrics"])

    def set_aside(self, step: int, reason: str) -> None:
        """Renames the checkpoint of `step` to ``<step>.corrupt``, with a warning, so that an earlier one is used."""
        self._set_aside(self.directory / str(step), step, reason)
        self._manager.reload()

    def _set_aside(self, path: Path, step: int, reason: str) -> None:
        names: list[str] = []
        failed = _failure(lambda: names.append(set_aside(path)))
        done = "it cannot be renamed" if failed else f"it is set aside as {(names or [path.name + CORRUPT])[0]}"
        warnings.warn(f"checkpoint {path} is damaged ({reason}); {done} and the one before it is used", stacklevel=4)
        self._unusable |= {step} if failed else set()
        self._scores.pop(step, None)


class _Kept(ocp.checkpoint_managers.PreservationPolicy):
    """The newest checkpoints and the best one."""

    def __init__(self, keep_last: int, best_of: Callable[[list[int]], int | None]) -> None:
        self._keep_last, self._best_of = keep_last, best_of

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Whether each of the checkpoints, in the order of their steps, stays."""
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = {*steps[-self._keep_last :], self._best_of(steps)}
        return [step in kept for step in steps]


_unclosed: "weakref.WeakSet[ocp.CheckpointManager]" = weakref.WeakSet()
_unwritten: dict[ocp.CheckpointManager, tuple[Path, dict[str, Any], dict[str, Any]]] = {}
"""Folder, leaves and metadata of what is being saved."""


def _finish_saving() -> None:
    """Waits for what is being saved. From Python 3.12 on Orbax cannot go on then, as it needs new threads."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs tracebacks of what it raises as well
    for manager in list(_unclosed):
        try:
            try:
                manager.wait_until_finished()
            except Exception:
                if manager not in _unwritten:
                    raise
                write_plain(*_unwritten.pop(manager))
        except Exception as error:
            print(f"error: cannot write checkpoints to {manager.directory}: {error}", file=sys.stderr, flush=True)
            atexit.register(os._exit, 1)


threading._register_atexit(_finish_saving)  # type: ignore[attr-defined]  # `atexit` is too late


def _failure(action: Callable[[], object]) -> str:
    """What `action`, called in process 0 alone, raised, or ``""``, in every process; whatever it is."""
    verdict = ""
    if jax.process_index() == 0:
        try:
            action()
        except Exception as error:
            verdict = f"{type(error).__name__}: {error}"
    return agreed(verdict)


def agreed(message: str) -> str:
    """The message of process 0 in every process, cut to 1000 bytes; all processes wait for each other."""
    if jax.process_count() == 1:
        return message
    padded = np.zeros(1000, np.uint8)
    encoded = np.frombuffer(message.encode()[: padded.size], np.uint8)
    padded[: encoded.size] = encoded
    return multihost_utils.broadcast_one_to_all(padded).tobytes().rstrip(b"\0").decode(errors="replace")
