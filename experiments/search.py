"""An optuna study in a folder: several processes share it, and a kill leaves it whole."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np
import optuna
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock, JournalStorage
from optuna.trial import TrialState

from experiments.errors import BusyError, UserError
from experiments.run_folder import LOCK, lock, writing_to
from experiments.space import Space

PrunerName = Literal["median", "halving", "none"]
JOURNAL, TRIALS = "journal.jsonl", "trials"


class Taken(NamedTuple):
    """A trial that this process is to carry out: nobody else does until `held` is closed."""

    trial: optuna.Trial
    values: dict[str, Any]
    path: Path
    held: IO[str]


class Search:
    """Opens the study in the folder `out`; a new one begins with the values of `own`.

    The values of a trial depend on the trials before it and its number alone, so a search that was killed goes on as if
    it had not been.

    Raises:
      UserError: the journal is damaged.
    """

    def __init__(
        self,
        out: Path,
        space: Space,
        own: dict[str, Any],
        *,
        smallest: bool,
        pruner: optuna.pruners.BasePruner,
        seed: int,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.out, self._space, self._seed = out, space, seed
        with self.alone():
            self._study = _open(out / JOURNAL, "minimize" if smallest else "maximize", pruner)
            if not self._study.get_trials(deepcopy=False):
                self._study.enqueue_trial(own)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """No other process takes trials or writes the report meanwhile."""
        with writing_to(self.out), lock(self.out / LOCK, wait=True):
            yield

    def take(self, limit: int) -> Taken | None:
        """A trial that a process left when it ended, or else the next of `limit` trials; None: there is none to do."""
        with self.alone():
            trials = [t for t in self._study.get_trials(deepcopy=False) if t.state != TrialState.WAITING]
            for number, trial_id in [(t.number, t._trial_id) for t in trials if t.state == TrialState.RUNNING]:
                if (held := self._hold(number)) is not None:
                    self._seed_sampler(number)
                    return self._fill(optuna.Trial(self._study, trial_id), held)
            if len(trials) >= limit:
                return None
            self._seed_sampler(len(trials))
            trial = self._study.ask()
            held = self._hold(trial.number)
            assert held is not None
            return self._fill(trial, held)

    def _seed_sampler(self, number: int) -> None:
        seed = int(np.random.SeedSequence([self._seed, number]).generate_state(1)[0])
        self._study.sampler = optuna.samplers.TPESampler(seed=seed)

    def _fill(self, trial: optuna.Trial, held: IO[str]) -> Taken:
        values = {key: domain.suggest(trial, key) for key, domain in self._space.items()}
        return Taken(trial, values, trial_path(self.out, trial.number), held)

    def _hold(self, number: int) -> IO[str] | None:
        path = trial_path(self.out, number)
        path.mkdir(parents=True, exist_ok=True)
        try:
            return lock(path / LOCK)
        except BusyError:
            return None

    def is_behind(self, trial: optuna.Trial, epoch: int, value: float) -> bool:
        """Reports a value and asks the pruner."""
        with writing_to(self.out):
            known = self._study.get_trials(deepcopy=False)[trial.number].intermediate_values
            if epoch not in known:  # else a process reported it and ended before the checkpoint was whole
                trial.report(value, epoch)
            return trial.should_prune()

    def tell(self, trial: optuna.Trial, state: TrialState, value: float | None) -> None:
        """Ends a trial."""
        with self.alone():
            self._study.tell(trial, value, state)

    def running(self) -> list[int]:
        """Numbers of the trials that are not ended."""
        return [t.number for t in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))]


def trial_path(out: Path, number: int) -> Path:
    """Folder of one trial."""
    return out / TRIALS / f"{number:04d}"


def make_pruner(name: PrunerName, epochs: int) -> optuna.pruners.BasePruner:
    """What ends trials early.

    ``median``: where they are behind the median of at least five others, from a third of the epochs on. ``halving``:
    where they are not in the best third so far, after 1/9 and 1/3 of the epochs.
    """
    if name == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=epochs // 3)
    if name == "halving":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=max(1, epochs // 9), reduction_factor=3)
    return optuna.pruners.NopPruner()


def _open(journal: Path, direction: Literal["minimize", "maximize"], pruner: optuna.pruners.BasePruner) -> optuna.Study:
    try:
        storage = JournalStorage(JournalFileBackend(str(journal), _JournalLock(journal)))
        return optuna.create_study(
            storage=storage, study_name="tune", direction=direction, pruner=pruner, load_if_exists=True
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{journal} is damaged or not of ours: {error}") from error


class _JournalLock(JournalFileOpenLock):
    """A lock that ends with the process that has it."""

    def __init__(self, journal: Path) -> None:
        super().__init__(str(journal))
        self._journal = journal
        self._held: IO[str] | None = None

    def acquire(self) -> bool:
        self._held = lock(self._journal.with_suffix(".lock"), wait=True)
        _drop_unfinished_line(self._journal)
        return True

    def release(self) -> None:
        if self._held is not None:
            self._held.close()


def _drop_unfinished_line(path: Path) -> None:
    """What a killed process, or one on a full disk, has left of the line that it was writing."""
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        if size and file.read(1) != b"\n":
            file.truncate(path.read_bytes().rfind(b"\n") + 1)
