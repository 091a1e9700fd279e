"""Checkpoints with Orbax: the whole state and the position in the data; asynchronous, atomic, verified on reading."""

import math
import shutil
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.tree_util import keystr, tree_flatten_with_path, tree_unflatten

from fsg_jax.state import TrainState

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
        """The step with the best metric among those kept, or None."""
        scores = {step: self._score(self._manager.metrics(step) or {}) for step in self.steps()}
        best = max(scores, key=lambda step: scores[step], default=None)
        return best if best is not None and scores[best] > -math.inf else None

    def restore(self, like: TrainState, step: int | None = None) -> Restored:
        """The newest readable checkpoint, or that of `step`.

        Args:
          like: a state of the same model and optimizers, e.g. from `init_state`; its values are not used.
          step: read this one and no other.

        Raises:
          CheckpointError: none is there, none is readable, or the saved leaves do not fit `like`; each is named.
        """
        candidates = [step] if step is not None else self.steps()[::-1]
        failures = []
        for candidate in candidates:
            try:
                return self._read(like, candidate)
            except MismatchError as error:
                raise CheckpointError(f"{self.directory / str(candidate)}: {error}") from error
            except Exception as error:  # whatever a damaged file makes the readers raise
                failures.append(f"step {candidate}: {type(error).__name__}: {error}")
                if step is None:
                    self._set_aside(candidate, error)
        found = "; ".join(failures) or "no checkpoint there"
        raise CheckpointError(f"nothing to restore in {self.directory}: {found}")

    def _read(self, like: TrainState, step: int) -> Restored:
        meta = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
        template = to_leaves(like)
        check_fit(meta["crc32"], template)
        items = ocp.args.Composite(state=ocp.args.StandardRestore(template))
        leaves = self._manager.restore(step, args=items)["state"]
        damaged = [k for k, crc in checksums(leaves).items() if crc != meta["crc32"][k]]
        if damaged:
            raise ValueError(f"{len(damaged)} arrays differ from their checksums, the first is {damaged[0]}")
        return Restored(from_leaves(leaves, like), step, meta["data"], meta["extra"])

    def _set_aside(self, step: int, error: Exception) -> None:
        path = self.directory / str(step)
        aside = path.with_name(path.name + CORRUPT_SUFFIX)
        warnings.warn(
            f"checkpoint {path} is damaged ({type(error).__name__}: {error}); it is set aside as {aside.name} and "
            "the one before it is used",
            stacklevel=3,
        )
        path.rename(aside)
        self._manager.reload()


class MismatchError(ValueError):
    """A sound checkpoint of something else: other leaves or other shapes."""


def to_leaves(state: TrainState) -> dict[str, np.ndarray]:
    """Host copies of the leaves of a state by path; the random key as its integers."""
    return {path: np.array(_unkey(leaf)) for path, leaf in _paths(state)[0]}


def from_leaves(leaves: Mapping[str, Any], like: TrainState) -> TrainState:
    """The reverse of `to_leaves`."""
    paths, treedef = _paths(like)
    return tree_unflatten(treedef, [_rekey(jnp.array(leaves[path]), old) for path, old in paths])


def checksums(leaves: Mapping[str, Any]) -> dict[str, str]:
    """CRC-32 of each array with its shape and dtype, so that a template can be compared too."""
    return {k: f"{v.dtype}{list(v.shape)}:{zlib.crc32(v.tobytes()):08x}" for k, v in leaves.items()}


def check_fit(saved: Mapping[str, str], template: Mapping[str, np.ndarray]) -> None:
    """Raises MismatchError that names missing, extra and differently shaped leaves."""
    missing = sorted(template.keys() - saved.keys())
    extra = sorted(saved.keys() - template.keys())
    kinds = {k: f"{v.dtype}{list(v.shape)}" for k, v in template.items() if k in saved}
    shapes = [f"{k} is {s}, not {kinds[k]}" for k in kinds if (s := saved[k].split(":")[0]) != kinds[k]]
    parts = [f"missing: {missing}"] * bool(missing) + [f"unknown: {extra}"] * bool(extra) + shapes
    if parts:
        raise MismatchError("the checkpoint does not fit this state; " + "; ".join(parts))


def _paths(state: TrainState) -> tuple[list[tuple[str, Any]], Any]:
    flat, treedef = tree_flatten_with_path(state)
    return [(keystr(path), leaf) for path, leaf in flat], treedef


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _unkey(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _rekey(leaf: Any, like: Any) -> Any:
    return jax.random.wrap_key_data(leaf, impl=jax.random.key_impl(like)) if _is_key(like) else leaf
