"""What an epoch of `experiments.train` costs beside its steps and validation."""

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
    """Seconds of the epochs of a run, back to back, and before and after it those of the same steps alone, and of
    validation alone: what is saved in the background would slow them down.
    """
    task, rounds = make_task(experiment, ARM), experiment.train.epochs - WARM_UP
    stepper = task.make_stepper([0], [task.placement.make_state(task.init, 0)])
    alone = time_alone(task, stepper, rounds // 2 + WARM_UP)[WARM_UP:]
    ends, validated = [0.0], []

    def on_epoch(rows: list[dict[str, Any]]) -> None:
        ends.append(time.perf_counter())
        validated.append("val_loss" in rows[0])

    with tempfile.TemporaryDirectory() as folder:
        train(experiment, ARM, 0, Path(folder) / "run", on_epoch=on_epoch)
        end = time.perf_counter() - ends[-1]
    steps, validation = np.median([*alone, *time_alone(task, stepper, rounds // 2)], axis=0).tolist()
    epochs = np.diff(ends)[WARM_UP:]
    books = epochs - steps - validation * np.array(validated[WARM_UP:])
    row = quartiles(books, "books", "books_low", "books_high")
    row |= {"books_mean": float(books.mean()), "books_least": float(books.min()), "epoch": float(np.median(epochs))}
    return row | {"steps": steps, "validation": validation, "end": end, "rounds": len(books)}


def time_alone(task: Task, stepper: Any, rounds: int) -> list[tuple[float, float]]:
    """Seconds of the steps of an epoch, in calls as those of the loop, and of validation, `rounds` times in turns."""
    found = []
    for _ in range(rounds):
        began, left = time.perf_counter(), task.steps_per_epoch
        while left:
            steps = min(left, stepper.most_steps)
            stepper.advance(steps)
            left -= steps
        jax.block_until_ready(stepper.states())
        middle = time.perf_counter()
        task.validate(stepper.states()[0])
        found.append((middle - began, time.perf_counter() - middle))
    return found
