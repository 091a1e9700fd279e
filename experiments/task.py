"""What the loop must know of an experiment: how to begin, how to step, how to judge."""

import gc
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import optax

import fsg_jax as fsg
from experiments.config import ARMS, BaseExperiment, check, in_arm
from experiments.devices import Placement, share_of_memory_maps
from experiments.errors import UserError
from experiments.stepper import MakeStepper
from fsg_jax.typing import Key


class Task(NamedTuple):
    """One arm of one experiment; what it holds is compiled once and serves every seed."""

    init: Callable[[Key], fsg.TrainState]
    """The state at step 0."""
    placement: Placement
    """Where states and batches lie."""
    make_stepper: MakeStepper
    steps_per_epoch: int
    step_metrics: tuple[str, ...]
    """Metrics of a step that are averaged over an epoch."""
    validate: Callable[[fsg.TrainState], dict[str, float]]
    """Metrics on the validation split."""
    best: str
    """The validation metric that tells the best checkpoint."""
    smallest: bool
    """The smallest value of `best` is the best."""
    test: Callable[[fsg.TrainState, Path], dict[str, Any]]
    """Parts of the record of a finished run; the only reader of the test split, not called where ``train.test_on`` is
    ``none``. The path is the run's folder."""
    info: dict[str, Any]
    """Parts of the record that do not depend on training."""
    seeds_together: int = 1
    """How many seeds an ablation runs in one program unless it is told."""


NO_OPTIMIZER = fsg.routed(params=optax.identity())


def without_optimizer(state: fsg.TrainState) -> fsg.TrainState:
    """The state for evaluation: arms with the same model, whatever moves it, share the programs that take it."""
    return replace(state, opt_state=(), rng=None, tx=NO_OPTIMIZER, ema_decay=None)


MOST_MAPS = 0.5
"""Share of a process's memory maps from which on programs are released; one run adds less than a tenth."""


@lru_cache(maxsize=32)
def make_task(experiment: BaseExperiment, arm: str) -> Task:
    """The jitted functions of one arm, and its data; the last few are kept, for other seeds.

    Raises:
      ValueError, UserError, OSError: a run cannot start with this configuration.
    """
    resolved = in_arm(experiment, arm)
    try:
        check(resolved)
        return resolved.make_task()
    except (ValueError, UserError) as error:
        if arm in ARMS:
            raise
        raise UserError(f"arm {arm}: {error}") from error


def release_programs() -> None:
    """Frees the tasks that are kept and the programs compiled for them."""
    make_task.cache_clear()
    gc.collect()  # they refer to themselves


def release_programs_if_many() -> None:
    """`release_programs` if this process has taken more than half of the memory maps that it may have.

    Every program compiled for a CPU takes some, and XLA ends the process when there are no more (jax-ml/jax#27201).
    """
    if share_of_memory_maps() > MOST_MAPS:
        release_programs()
