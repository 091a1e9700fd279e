"""What the loop must know of an experiment: how to begin, how to step, how to judge."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import fsg_jax as fsg
from experiments.feed import Feed
from fsg_jax.typing import Key


class Task(NamedTuple):
    """One arm of one experiment; what it holds is compiled once and serves every seed."""

    init: Callable[[Key], fsg.TrainState]
    """The state at step 0."""
    make_feed: Callable[[Sequence[int], Sequence[fsg.TrainState]], Feed]
    """From seeds and states, all at one step."""
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
    facts: dict[str, Any]
    """Parts of the record that do not depend on training."""
