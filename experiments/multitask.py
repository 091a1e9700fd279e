"""Several regressions from one table by a head of experts, as a task of the loop."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np

import fsg_jax as fsg
from experiments import build
from experiments.config import BaseExperiment, Variant, change
from experiments.errors import UserError
from experiments.head import Head, make_head, task_passes, usage_record
from experiments.stepper import resident_stepper
from experiments.synthetic_tasks import SyntheticTasks, TaskLabels, make_tables
from experiments.task import Task
from fsg_jax.data.batches import shuffled
from fsg_jax.data.resident import put_dataset
from fsg_jax.models.experts import CAPTURE
from fsg_jax.training.task_losses import of_task


@dataclass(frozen=True)
class TasksExperiment(BaseExperiment):
    """Regressions of made-up tasks."""

    data: SyntheticTasks = field(default_factory=SyntheticTasks)
    model: Head = field(default_factory=Head)

    default_seeds: ClassVar[int] = 1
    """Of every draw of the data."""

    def make_task(self) -> Task:
        """See `BaseExperiment`."""
        return make_task(self)

    def variants(self, streams: tuple[str, ...], folds: tuple[int, ...]) -> list[list[Variant]]:
        """See `BaseExperiment`; the folds are draws of the data, without `folds` five of them."""
        if streams:
            raise UserError(f"--streams: expected none, for {self.name} has no streams, found {' '.join(streams)}")
        draws = folds or tuple(range(self.data.draw, self.data.draw + 5))
        return [[Variant(change(self, {"data.draw": draw}), prefix=f"draw-{draw}-")] for draw in draws]


def make_task(experiment: TasksExperiment) -> Task:
    """The task of one arm; see `experiments.task.make_task`."""
    config, train, arm = experiment.data, experiment.train, experiment.arm
    tables = make_tables(config)
    gate = build.make_gate(experiment.gate, arm)
    options = {"gate": gate, "dtype": np.dtype(train.dtype)}
    head = make_head(experiment.model, dict.fromkeys(tables.tasks, 1), tables.groups, config.inputs, **options)
    errors = {task: partial(fsg.losses.squared_error, key=task) for task in tables.tasks}
    losses = {task: fsg.where_present(error, task) for task, error in errors.items()}
    loss = fsg.make_task_loss(losses)
    order = partial(shuffled, config.train, train.batch_size)
    steps = order(0).steps_per_epoch
    routing: dict[str, Any] = {}
    if arm.routing == "tasks":
        weights = build.weight_optimizer(experiment.optimizer, train.epochs, steps)
        routing["tx"], routing["passes"] = task_passes(head, "params/", loss, weights, experiment.gate)
    metrics = {f"{task}_mse": of_task(task, loss) for task, loss in losses.items()}
    program = build.make_program(
        experiment,
        steps,
        head,
        np.zeros((1, config.inputs), np.float32),
        loss,
        lambda _, batch: dict(batch),
        metrics=metrics,
        inputs="x",
        **routing,
    )
    predict = jax.jit(lambda variables, x: head.apply(variables, x, mutable=[CAPTURE]))

    def judge(table: TaskLabels, state: fsg.TrainState) -> tuple[dict[str, float], Any]:
        """Mean squared error of each task, 1 for its mean, and their mean; and the captured collection."""
        outputs, captured = predict(state.variables if state.ema is None else state.ema, table["x"])
        found = {f"{t}_mse": float(np.mean((np.asarray(outputs[t])[:, 0] - table[t]) ** 2)) for t in tables.tasks}
        return {"mse": float(np.mean([*found.values()]))} | found, captured.get(CAPTURE, {})

    def test(state: fsg.TrainState, _: Path) -> dict[str, Any]:
        found, captured = judge(tables.test, state)
        return {"test": found, **usage_record(head, jax.device_get(captured))}

    put = partial(put_dataset, tables.train, program.placement.replicated)
    shown = {task: {"metric": f"{task}_mse", "smallest": True} for task in tables.tasks}
    return Task(
        init=program.init,
        placement=program.placement,
        make_stepper=resident_stepper(program.step, put, order, program.placement, train, "vmap"),
        steps_per_epoch=steps,
        step_metrics=("loss", *metrics),
        validate=lambda state: judge(tables.validation, state)[0],
        best="mse",
        smallest=True,
        test=test,
        info={"fold": config.draw, "tasks": {"all": {"metric": "mse", "smallest": True}} | shown},
    )
