"""Several questions about a polyp by one network with a head of experts, as a task of the loop."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa

import fsg_jax as fsg
from experiments import build, devices, pretrained
from experiments.endoscopy.augmentation import ENDOSCOPY, eval_transform, train_transform
from experiments.endoscopy.cohort import Cohort, eval_batches, load_cohort, open_source, read_rows, train_order
from experiments.endoscopy.polyp_config import PolypTasksExperiment
from experiments.endoscopy.predictions import FILE, collect, keyed, polyp_names, write_predictions
from experiments.endoscopy.task_targets import (
    Target,
    decode,
    groups_of,
    is_unknown,
    make_targets,
    polyp_metrics,
    step_losses,
    truths,
)
from experiments.head import factory, make_head, task_passes, usage_record
from experiments.stepper import Streamed, streaming
from experiments.task import Task
from fsg_jax.endoscopy.inputs import INPUT_CHANNELS
from fsg_jax.models.experts import CAPTURE
from fsg_jax.training.state import gather_leaves
from fsg_jax.typing import Batch


def make_task(experiment: PolypTasksExperiment) -> Task:
    """The task of one arm; see `experiments.task.make_task`."""
    config, train, arm, streams = experiment.data, experiment.train, experiment.arm, experiment.model.streams
    cohort, source = load_cohort(config), open_source(config, "depth" in streams)
    order = partial(train_order, cohort.polyps, cohort.digest, config.frames_per_polyp, train.batch_size)
    steps, size, start = order(0).steps_per_epoch, config.input_size, experiment.model.pretrained
    statistics = ENDOSCOPY if start is None else pretrained.statistics(start, 3)
    targets = make_targets(experiment.tasks, experiment.loss)

    make_model = partial(build.make_model, experiment.gate, arm, train.dtype, 0, **experiment.model.options())
    outputs = {name: target.outputs for name, target in targets.items()}
    head = make_head(experiment.head, outputs, groups_of([*targets]), make_model().num_features)
    loss = fsg.make_task_loss({name: target.loss for name, target in targets.items()}, dict(experiment.weights))
    routing: dict[str, Any] = {}
    if arm.routing == "tasks":
        weights = build.weight_optimizer(experiment.optimizer, train.epochs, steps)
        routing["tx"], routing["passes"] = task_passes(head, "params/head/", loss, weights, experiment.gate)
    metrics = step_losses(targets)
    program = build.make_program(
        experiment,
        steps,
        make_model(head=factory(head)),
        {name: np.zeros((1, size, size, INPUT_CHANNELS[name]), np.float32) for name in streams},
        loss,
        train_transform(config, streams, statistics),
        None if start is None else {name: pretrained.load(start, INPUT_CHANNELS[name], size) for name in streams},
        metrics=metrics,
        **routing,
    )
    prepare = eval_transform(config, streams, statistics)

    @jax.jit
    def predictor(state: fsg.TrainState, batch: Batch) -> tuple[dict[str, jax.Array], Any]:
        """Columns of predictions and the loss of each task, a value a frame, and the use of the experts."""
        batch = prepare(jax.random.key(0), batch)
        variables = state.variables if state.ema is None else state.ema
        if program.shardings is not None:
            variables = gather_leaves(variables, program.shardings.variables)
        outputs, captured = state.model.apply(variables, batch["image"], train=False, mutable=[CAPTURE])
        found = decode(targets, outputs, experiment.loss.clamp_mm)
        for name, target in targets.items():
            values, there = target.loss(outputs[name], batch)
            found[f"loss_{name}"] = jax.numpy.where(there > 0, values, np.nan)
        return found, captured.get(CAPTURE, {}).get("head", {})

    def predicted(state: fsg.TrainState, rows: np.ndarray) -> tuple[pa.Table, Any]:
        batches = eval_batches(source, rows, train.eval_batch_size, config.threads)
        return predict(partial(predictor, state), batches, cohort.table.take(rows), targets)

    def test(state: fsg.TrainState, folder: Path) -> dict[str, Any]:
        table, captured = predicted(state, cohort.test)
        table = with_guesses(table, cohort, targets)
        devices.on_first(lambda: write_predictions(folder, table, config.fold))
        used = usage_record(head, captured)
        return {"test": summarise(table, targets), "predictions": FILE, "panels": [], **used}

    shown = {
        name: {"metric": target.metric, "smallest": target.smallest, "classes": list(target.classes)}
        for name, target in targets.items()
    }
    return Task(
        init=program.init,
        placement=program.placement,
        make_stepper=streaming(
            program.step, Streamed(order, partial(read_rows, source), config.workers, config.threads), program.placement
        ),
        steps_per_epoch=steps,
        step_metrics=("loss", *metrics),
        validate=lambda state: summarise(predicted(state, cohort.validation)[0], targets),
        best="loss",
        smallest=True,
        test=test,
        info=cohort.info
        | {"streams": list(streams), "fold": config.fold, "tasks": shown, "labelled": labelled(cohort, targets)}
        | {"dropped_per_epoch": order(0).dropped_per_epoch},
    )


def predict(predictor: Any, batches: Any, table: pa.Table, targets: Mapping[str, Target]) -> tuple[pa.Table, Any]:
    """One row a frame: its keys, box, truths, predictions and losses; and the use of the experts.

    Raises:
      NotFiniteError: a prediction is NaN or Inf, or a loss where there is a label.
    """
    found, captured = collect(predictor, batches)
    known = {name: truths(table, name) for name in targets}
    lack = {f"loss_{name}": is_unknown(known[name], target) for name, target in targets.items()}
    shown = keyed(table, found, lack)
    for name, labels in known.items():
        shown = shown.append_column(f"true_{name}", pa.array(labels))
    return shown, captured


def by_polyp(table: pa.Table, targets: Mapping[str, Target]) -> dict[str, np.ndarray]:
    """A row a polyp: its truths, and the means of the predictions of its frames."""
    _, firsts, rows = np.unique(polyp_names(table), return_index=True, return_inverse=True)
    columns = {name: table.column(f"true_{name}").to_numpy()[firsts] for name in targets}
    for name in table.column_names:
        if name.startswith(("p_", "predicted_mm")):
            columns[name] = np.bincount(rows, table.column(name).to_numpy().astype(np.float64)) / np.bincount(rows)
    return columns


def summarise(table: pa.Table, targets: Mapping[str, Target]) -> dict[str, float]:
    """The sum of the mean losses of the tasks, each over the frames that have its label, and metrics over polyps."""
    losses = {f"{name}_loss": table.column(f"loss_{name}").to_numpy() for name in targets}
    means = {name: float(np.nanmean(values)) for name, values in losses.items() if not np.isnan(values).all()}
    return {"loss": sum(means.values())} | means | polyp_metrics(targets, by_polyp(table, targets))


def with_guesses(table: pa.Table, cohort: Cohort, targets: Mapping[str, Target]) -> pa.Table:
    """`table` with what can be guessed without a network, ``guess_TASK``: the median size, or the commonest class.

    Over the training polyps that have the label.
    """
    firsts = np.array([rows[0] for rows in cohort.polyps])
    for name, target in targets.items():
        known = truths(cohort.table.take(firsts), name)
        known = known[~is_unknown(known, target)]
        guess = 0.0 if not len(known) else np.bincount(known).argmax() if target.classes else np.median(known)
        table = table.append_column(f"guess_{name}", pa.array(np.full(table.num_rows, guess, np.float64)))
    return table


def labelled(cohort: Cohort, targets: Mapping[str, Target]) -> dict[str, dict[str, int]]:
    """How many polyps of the training and the test fold have the label of each task."""
    roles = {"train": cohort.polyps, "test": cohort.test_polyps}
    found: dict[str, dict[str, int]] = {}
    for name, target in targets.items():
        known = truths(cohort.table, name)
        there = ~is_unknown(known, target)
        found[name] = {role: sum(bool(there[rows[0]]) for rows in polyps) for role, polyps in roles.items()}
    return found
