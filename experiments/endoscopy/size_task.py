"""Polyp sizing as a task of the loop."""

from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fsg_jax as fsg
from experiments import build, devices
from experiments.checks import check
from experiments.config import Arm, get_arm
from experiments.endoscopy import cohort as data
from experiments.endoscopy.augmentation import eval_transform, train_transform
from experiments.endoscopy.input_panels import example_rows, write_panels
from experiments.endoscopy.polyp_config import PolypExperiment
from experiments.endoscopy.predictions import Predictor, predict, summarise, with_baselines, write_predictions
from experiments.feed import Feed, StreamFeed
from experiments.task import Task
from fsg_jax.data.prefetch import Prefetch
from fsg_jax.endoscopy import sizing
from fsg_jax.endoscopy.inputs import INPUT_CHANNELS
from fsg_jax.endoscopy.sizing.targets import SizeTarget
from fsg_jax.training.state import gather_leaves
from fsg_jax.typing import Batch, Loss


@cache
def make_task(experiment: PolypExperiment, arm_name: str) -> Task:
    """The jitted functions of one arm, and its data.

    Raises:
      ValueError, OSError: what a run cannot start with.
    """
    arm = get_arm(arm_name)
    check(experiment)
    cohort = data.load_cohort(experiment.data)
    data.open_source(experiment.data, "depth" in experiment.model.streams)
    order = data.train_order(experiment, 0)
    target = make_target(experiment)
    model = build.make_model(experiment, arm, target.num_outputs, **experiment.model.options())
    init = build.make_init(experiment, arm, model, order.steps_per_epoch, example_inputs(experiment))
    transform = train_transform(experiment.data, experiment.model.streams)
    metrics = step_metrics(target)
    gate_loss = chosen_gate_loss(experiment, arm, target)
    placement = devices.placement(experiment.train.fsdp, experiment.train.batch_size)
    shardings = placement.shardings(init)
    options = {"metrics": metrics, "gate_loss": gate_loss, "shardings": shardings}
    step = build.make_step(experiment, arm, target.loss, transform=transform, **options)
    predictor = make_predictor(experiment, target, shardings)
    return Task(
        init=init,
        make_feed=partial(make_feed, experiment, build.jit_stream_step(step)),
        steps_per_epoch=order.steps_per_epoch,
        step_metrics=("loss", *metrics),
        validate=lambda state: summarise(predict(experiment, predictor, state, cohort.validation), target),
        best="loss",
        smallest=True,
        test=partial(_test, experiment, predictor, target),
        facts=cohort.facts
        | {
            "streams": list(experiment.model.streams),
            "fold": experiment.data.fold,
            "dropped_per_epoch": order.dropped_per_epoch,
        },
    )


def _test(
    experiment: PolypExperiment, predictor: Predictor, target: SizeTarget, state: fsg.TrainState, folder: Path
) -> dict[str, Any]:
    cohort = data.load_cohort(experiment.data)
    table = with_baselines(predict(experiment, predictor, state, cohort.test), cohort)
    devices.on_first(lambda: write_predictions(folder, table, experiment.data.fold))
    panels = devices.on_first(lambda: _write_examples(experiment, folder)) or []
    return {"test": summarise(table, target), "predictions": "predictions.parquet", "panels": panels}


def _write_examples(experiment: PolypExperiment, folder: Path) -> list[str]:
    config, streams = experiment.data, experiment.model.streams
    cohort, source = data.load_cohort(config), data.open_source(config, "depth" in streams)
    rows = example_rows(cohort.test_polyps)
    return write_panels(source, cohort.table, rows, config, streams, folder)


def make_feed(
    experiment: PolypExperiment, step: fsg.TrainStep, seeds: Sequence[int], states: Sequence[fsg.TrainState]
) -> Feed:
    """The streaming path: video does not fit the device."""
    if len(seeds) > 1:
        raise ValueError("several seeds in one program need data on the device; polyp frames are streamed")
    placement = devices.placement(experiment.train.fsdp, experiment.train.batch_size)
    loader = data.train_loader(experiment, seeds[0], int(states[0].step))
    return StreamFeed(step, Prefetch(iter(loader), placement.put_batch), states[0])


def make_target(experiment: PolypExperiment) -> SizeTarget:
    """What is predicted, with the loss that the configuration asks for."""
    options = {name: value for name, value in vars(experiment.loss).items() if name != "clamp_mm"}
    loss = sizing.weighted_regression_loss(**options) if experiment.target == "regression" else None
    return sizing.make_target(experiment.target, loss=loss, clamp_mm=experiment.loss.clamp_mm)


def example_inputs(experiment: PolypExperiment) -> dict[str, np.ndarray]:
    """A batch of one of what the model is given."""
    size = experiment.data.input_size
    return {s: np.zeros((1, size, size, INPUT_CHANNELS[s]), np.float32) for s in experiment.model.streams}


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


def chosen_gate_loss(experiment: PolypExperiment, arm: Arm, target: SizeTarget) -> Loss | None:
    """None is the loss of the weights; an arm with one optimizer has no other."""
    return target.gate_loss if experiment.gate_loss == "paper" and arm.routing != "none" else None


def make_predictor(experiment: PolypExperiment, target: SizeTarget, shardings: Any) -> Predictor:
    """``predictor(state, batch)``, jitted: columns of predictions and the loss, a value a frame."""
    transform = eval_transform(experiment.data, experiment.model.streams)

    @jax.jit
    def predictor(state: fsg.TrainState, batch: Batch) -> dict[str, jax.Array]:
        batch = transform(jax.random.key(0), batch)
        variables = state.variables if state.ema is None else state.ema
        variables = variables if shardings is None else gather_leaves(variables, shardings.variables)
        outputs: Any = state.model.apply(variables, batch["image"], train=False)
        return target.decode(outputs) | {"loss": target.loss(outputs, batch)}

    return predictor
