"""An optuna study in a folder: several processes share it, and a kill leaves it whole."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock, JournalStorage
from optuna.trial import TrialState

from experiments.errors import UserError
from experiments.run_folder import LOCK, writing_to
from fsg_jax._files import BusyError, lock

Space = dict[str, BaseDistribution]
JOURNAL, TRIALS = "journal.jsonl", "trials"


class ClaimedTrial(NamedTuple):
    """A trial that this process runs: no other process takes it until `lock_file` is closed."""

    trial: optuna.Trial
    values: dict[str, Any]
    path: Path
    lock_file: IO[str]


class Search:
    """Opens the study in the folder `out`; a new one begins with the values of `own`.

    The values of a trial depend on the trials before it and its number alone. So a search that was killed goes on as if
    it had not been.

    Raises:
      UserError: the journal is damaged.
    """

    def __init__(
        self, out: Path, space: Space, own: dict[str, Any], *, smallest: bool, pruner: BasePruner, seed: int
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.out, self._space, self._seed = out, space, seed
        journal = out / JOURNAL
        with self.alone():
            try:
                storage = JournalStorage(JournalFileBackend(str(journal), _NoLock(str(journal))))
                options: dict[str, Any] = {"direction": "minimize" if smallest else "maximize", "load_if_exists": True}
                self._study = optuna.create_study(storage=storage, study_name="tune", pruner=pruner, **options)
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{journal} is damaged: expected the journal of a search, found {error}") from error
            if not self._study.get_trials(deepcopy=False):
                self._study.enqueue_trial(own)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps other processes from the study and the report; everything is written inside."""
        with writing_to(self.out), lock(self.out / LOCK, wait=True):
            _drop_unfinished_line(self.out / JOURNAL)
            yield

    def take(self, limit: int) -> ClaimedTrial | None:
        """A trial that a process left when it ended, or else the next of `limit` trials; None if none is left."""
        with self.alone():
            trials = [t for t in self._study.get_trials(deepcopy=False) if t.state != TrialState.WAITING]
            for found in (t for t in trials if t.state == TrialState.RUNNING):
                if (lock_file := self._lock(found.number)) is not None:
                    return self._claim(optuna.Trial(self._study, found._trial_id), lock_file)
            if len(trials) >= limit:
                return None
            lock_file = self._lock(len(trials))
            assert lock_file is not None
            return self._claim(self._study.ask(), lock_file)

    def _lock(self, number: int) -> IO[str] | None:
        """Locks the folder of a trial and seeds the sampler for it; None if another process has the trial."""
        path = trial_path(self.out, number)
        path.mkdir(parents=True, exist_ok=True)
        seed = int(np.random.SeedSequence([self._seed, number]).generate_state(1)[0])
        self._study.sampler = optuna.samplers.TPESampler(seed=seed)
        try:
            return lock(path / LOCK)
        except BusyError:
            return None

    def _claim(self, trial: optuna.Trial, lock_file: IO[str]) -> ClaimedTrial:
        values = {key: trial._suggest(key, domain) for key, domain in self._space.items()}
        return ClaimedTrial(trial, values, trial_path(self.out, trial.number), lock_file)

    def is_behind(self, trial: optuna.Trial, epoch: int, value: float) -> bool:
        """Reports a value and asks the pruner."""
        with self.alone():
            known = self._study.get_trials(deepcopy=False)[trial.number].intermediate_values
            if epoch not in known:  # else a process reported it and ended before the checkpoint was whole
                trial.report(value, epoch)
            return trial.should_prune()

    def tell(self, trial: optuna.Trial, state: TrialState, value: float | None) -> None:
        """Ends a trial."""
        with self.alone():
            self._study.tell(trial, value, state)

    def running(self) -> list[int]:
        """Numbers of the trials that have not ended."""
        return [t.number for t in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))]


def trial_path(out: Path, number: int) -> Path:
    """Folder of one trial."""
    return out / TRIALS / f"{number:04d}"


def make_pruner(name: Literal["median", "halving", "none"], epochs: int) -> BasePruner:
    """What ends trials early.

    ``median``: where they are behind the median of at least five others, from a third of the epochs on. ``halving``:
    where they are not in the best third so far, after 1/9 and 1/3 of the epochs.
    """
    if name == "median":
        return MedianPruner(n_startup_trials=5, n_warmup_steps=epochs // 3)
    if name == "halving":
        return SuccessiveHalvingPruner(min_resource=max(1, epochs // 9), reduction_factor=3)
    return NopPruner()


class _NoLock(JournalFileOpenLock):
    """The lock of `Search.alone` holds already; unlike optuna's, it ends with the process that has it."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


def _drop_unfinished_line(path: Path) -> None:
    """Removes what a killed process, or one on a full disk, has left of the line that it was writing."""
    content = path.read_bytes() if path.exists() else b""
    if content and not content.endswith(b"\n"):
        os.truncate(path, content.rfind(b"\n") + 1)
