"""What an epoch costs beside its steps: epochs of `experiments.train`, each in turn with the same steps alone."""

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.bench.measurements import Bench
from experiments.bench.settings import Settings
from experiments.bench.timing import quartiles
from experiments.config import Experiment, ResNet
from experiments.configs import CONFIGS
from experiments.task import Task, make_task
from experiments.train import train

SUITE, ARM = "epochs", "fsg_gr"
EXAMPLES = 1200
"""Digits that there are for training."""
WARM_UP = 2
"""Epochs that are not counted: they compile."""
SIDES: dict[str, dict[str, Any]] = {
    "saved by the clock": {},
    "saved by the clock, validated every 10 epochs": {"validate_every": 10},
    "saved at every epoch": {"checkpoint_every_seconds": 0.0},
}
"""Settings of `experiments.config.Train` beside the defaults."""


def time_epochs(bench: Bench) -> None:
    """A row a way to keep the books."""
    settings = bench.settings
    batch = min(settings.batch, EXAMPLES // settings.steps)
    case = f"resnet18 (width {settings.width}), digits, {settings.steps} steps of {batch}, {settings.precision}"
    for side in bench.missing(SUITE, case, SIDES):
        bench.add(SUITE, case, side, **measure(experiment(settings, batch, SIDES[side])))


def experiment(settings: Settings, batch: int, changes: dict[str, Any]) -> Experiment:
    """The digits in device memory, in epochs of ``settings.steps`` steps."""
    digits: Any = CONFIGS["digits"][0]
    data = replace(digits.data, num_train=settings.steps * batch, resident="yes")
    sizes = {"epochs": WARM_UP + settings.epochs, "batch_size": batch, "log_every": settings.steps}
    plan = replace(digits.train, dtype=settings.precision, **sizes, **changes)
    return replace(digits, data=data, model=ResNet(width=settings.width), train=plan)


def measure(experiment: Experiment) -> dict[str, Any]:
    """Times of the epochs of a run, each followed by that of the same steps alone; and of the end of the run."""
    task = make_task(experiment, ARM)
    alone = task.make_stepper([0], [task.placement.make_state(task.init, 0)])
    epochs, steps = [], []
    left = time.perf_counter()

    def on_epoch(_: list[dict[str, Any]]) -> None:
        nonlocal left
        arrived = time.perf_counter()
        epochs.append(arrived - left)
        take_steps(task, alone)
        left = time.perf_counter()
        steps.append(left - arrived)

    with tempfile.TemporaryDirectory() as folder:
        train(experiment, ARM, 0, Path(folder) / "run", on_epoch=on_epoch)
        end = time.perf_counter() - left
    beside = (np.array(epochs) - steps)[WARM_UP:]
    row = quartiles(beside, "beside", "beside_low", "beside_high")
    row |= {"beside_mean": float(beside.mean()), "beside_least": float(beside.min())}
    row |= {"epoch": float(np.median(epochs[WARM_UP:])), "steps": float(np.median(steps[WARM_UP:]))}
    return row | {"end": end, "rounds": len(beside)}


def take_steps(task: Task, stepper: Any) -> None:
    """The steps of one epoch, in calls as those of the loop, and nothing else."""
    left = task.steps_per_epoch
    while left:
        stepper.advance(min(left, stepper.most_steps))
        left -= min(left, stepper.most_steps)
    jax.block_until_ready(stepper.states())
