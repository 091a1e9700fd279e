"""Polyp sizing as a task of the loop."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa

import fsg_jax as fsg
from experiments import build, devices, pretrained
from experiments.endoscopy.augmentation import ENDOSCOPY, eval_transform, train_transform
from experiments.endoscopy.cohort import eval_batches, load_cohort, open_source, read_rows, train_order
from experiments.endoscopy.input_panels import example_rows, write_panels
from experiments.endoscopy.polyp_config import PolypExperiment, SizeLoss
from experiments.endoscopy.predictions import FILE, predict, summarise, with_baselines, write_predictions
from experiments.stepper import Streamed, streaming
from experiments.task import Task
from fsg_jax.endoscopy import sizing
from fsg_jax.endoscopy.inputs import INPUT_CHANNELS
from fsg_jax.endoscopy.sizing.targets import SizeTarget
from fsg_jax.training.state import gather_leaves
from fsg_jax.typing import Batch, Loss, Transform


def make_task(experiment: PolypExperiment) -> Task:
    """The task of one arm; see `experiments.task.make_task`."""
    config, train, streams = experiment.data, experiment.train, experiment.model.streams
    cohort, source = load_cohort(config), open_source(config, "depth" in streams)
    order = partial(train_order, cohort.polyps, cohort.digest, config.frames_per_polyp, train.batch_size)
    target = make_target(experiment.target, experiment.loss)
    metrics = step_metrics(target)
    size, start = config.input_size, experiment.model.pretrained
    statistics = ENDOSCOPY if start is None else pretrained.statistics(start, 3)
    program = build.make_program(
        experiment,
        order(0).steps_per_epoch,
        build.make_model(
            experiment.gate, experiment.arm, train.dtype, target.num_outputs, **experiment.model.options()
        ),
        {name: np.zeros((1, size, size, INPUT_CHANNELS[name]), np.float32) for name in streams},
        target.loss,
        train_transform(config, streams, statistics),
        None if start is None else {name: pretrained.load(start, INPUT_CHANNELS[name], size) for name in streams},
        metrics=metrics,
        # An arm with one optimizer has one loss; None is that of the weights.
        gate_loss=target.gate_loss if experiment.gate_loss == "paper" and experiment.arm.routing != "none" else None,
    )
    streamed = Streamed(order, partial(read_rows, source), config.workers, config.threads)
    predictor = make_predictor(eval_transform(config, streams, statistics), target, program.shardings)

    def predicted(state: fsg.TrainState, rows: np.ndarray) -> pa.Table:
        batches = eval_batches(source, rows, train.eval_batch_size, config.threads)
        return predict(partial(predictor, state), batches, cohort.table.take(rows))

    def test(state: fsg.TrainState, folder: Path) -> dict[str, Any]:
        table = with_baselines(predicted(state, cohort.test), cohort)
        devices.on_first(lambda: write_predictions(folder, table, config.fold))
        rows = example_rows(cohort.test_polyps)
        panels = devices.on_first(lambda: write_panels(source, cohort.table, rows, config, streams, folder)) or []
        return {"test": summarise(table, target), "predictions": FILE, "panels": panels}

    return Task(
        init=program.init,
        placement=program.placement,
        make_stepper=streaming(program.step, streamed, program.placement),
        steps_per_epoch=order(0).steps_per_epoch,
        step_metrics=("loss", *metrics),
        validate=lambda state: summarise(predicted(state, cohort.validation), target),
        best="loss",
        smallest=True,
        test=test,
        info=cohort.info
        | {"streams": list(streams), "fold": config.fold, "dropped_per_epoch": order(0).dropped_per_epoch},
    )


def make_target(name: str, config: SizeLoss) -> SizeTarget:
    """What is predicted, with the loss that the configuration asks for."""
    options = {key: value for key, value in vars(config).items() if key != "clamp_mm"}
    loss = sizing.weighted_regression_loss(**options) if name == "regression" else None
    return sizing.make_target(name, loss=loss, clamp_mm=config.clamp_mm)


def step_metrics(target: SizeTarget) -> dict[str, Loss]:
    """What is logged of a step besides the loss."""
    if target.scheme is None:

        def absolute_error_mm(outputs: Any, batch: Batch) -> jax.Array:
            return jnp.abs(target.decode(outputs)["predicted_mm"] - batch["size_mm"])

        return {"absolute_error_mm": absolute_error_mm}
    scheme = target.scheme

    def accuracy(outputs: Any, batch: Batch) -> jax.Array:
        probabilities = target.decode(outputs)
        predicted = jnp.stack([probabilities[name] for name in scheme.columns]).argmax(0)
        return (predicted == sizing.class_of(batch["size_mm"], scheme)).astype(jnp.float32)

    return {"accuracy": accuracy}


def make_predictor(transform: Transform, target: SizeTarget, shardings: Any) -> Any:
    """``predictor(state, batch)``, jitted: columns of predictions and the loss, a value a frame."""

    @jax.jit
    def predictor(state: fsg.TrainState, batch: Batch) -> dict[str, jax.Array]:
        batch = transform(jax.random.key(0), batch)
        variables = state.variables if state.ema is None else state.ema
        variables = variables if shardings is None else gather_leaves(variables, shardings.variables)
        outputs: Any = state.model.apply(variables, batch["image"], train=False)
        return target.decode(outputs) | {"loss": target.loss(outputs, batch)}

    return predictor
