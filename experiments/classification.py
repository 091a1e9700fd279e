"""Image classification: data, augmentation and judgement of the experiments on digits and CIFAR-100."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import fsg_jax as fsg
from experiments import build, devices
from experiments.checks import check
from experiments.config import Data, Experiment, get_arm
from experiments.errors import UserError
from experiments.feed import Feed, ResidentFeed, StreamFeed
from experiments.task import Task
from fsg_jax import augment, data
from fsg_jax.data.batches import BatchOrder, shuffled
from fsg_jax.data.prefetch import Prefetch
from fsg_jax.data.resident import make_resident_steps, put_dataset
from fsg_jax.typing import Transform

STATISTICS = {"digits": ((0.3053,), (0.3760,)), "cifar100": (data.CIFAR100_MEAN, data.CIFAR100_STD)}


class Splits(NamedTuple):
    """Training and validation images; a network sees the test split in `Task.test` alone, once, at the end."""

    train: data.ImageDataset
    validation: data.ImageDataset


UNSTORED = ("augment", "crop_padding", "cutout_size", "mixup_alpha", "cutmix_alpha", "workers", "resident")
"""Settings of `Data` of what is done with images; configurations that differ in them alone share the images."""


def stored(config: Data) -> Data:
    """`config` with the defaults of what does not tell which images there are."""
    plain = Data()
    return replace(config, **{name: getattr(plain, name) for name in UNSTORED})


def load_split(config: Data, split: str) -> data.ImageDataset:
    """The official training or test split."""
    return _load_split(stored(config), split)


@cache
def _load_split(config: Data, split: str) -> data.ImageDataset:
    if config.name == "digits":
        return data.load_digits(split)
    if config.path is None:
        raise ValueError("data.path is not set: give the CIFAR-100 folder, archive or .npz with --data.path")
    return data.load_cifar100(
        Path(config.path), split, source=config.source, checksum=config.checksum, download=config.download
    )


def load_splits(config: Data) -> Splits:
    """The training split, divided; the same for every arm and seed."""
    return _load_splits(stored(config))


@cache
def _load_splits(config: Data) -> Splits:
    everything = load_split(config, "train")
    if config.validation >= len(everything):
        raise ValueError(f"data.validation is {config.validation}, but there are only {len(everything)} images")
    rest, held_out = data.stratified_holdout(everything.labels, config.validation)
    train = everything.take(rest)
    wanted = len(train) if config.num_train is None else config.num_train
    if wanted > len(train):
        raise ValueError(f"data.num_train is {wanted}, but only {len(train)} training images are left")
    if wanted < len(train):
        train = train.take(data.stratified_holdout(train.labels, wanted)[1])
    return Splits(train, everything.take(held_out))


@lru_cache(maxsize=8)
def make_task(experiment: Experiment, arm_name: str) -> Task:
    """The jitted functions of one arm, and its data; the last few are kept, for other seeds.

    Raises:
      ValueError, OSError: what a run cannot start with, the test files included unless nothing is tested: a run does
        not fail at its end.
    """
    arm = get_arm(arm_name)
    check(experiment)
    test = None if experiment.train.test_on == "none" else load_split(experiment.data, "test")
    splits = load_splits(experiment.data)
    order = batch_order(experiment, 0)
    inputs = np.zeros((1, *splits.train.images.shape[1:]), np.float32)
    model = build.make_model(experiment, arm, splits.train.num_classes, **vars(experiment.model))
    init = build.make_init(experiment, arm, model, order.steps_per_epoch, inputs)
    loss = fsg.losses.make_cross_entropy(label_smoothing=experiment.optimizer.label_smoothing)
    transform = train_transform(experiment.data, splits.train.num_classes)
    placement = devices.placement(experiment.train.fsdp, experiment.train.batch_size)
    shardings = placement.shardings(init)
    step = build.make_step(experiment, arm, loss, transform=transform, shardings=shardings)
    evaluate = partial(_evaluate, experiment, _eval_step(experiment, shardings))
    return Task(
        init=init,
        make_feed=feed_maker(experiment, step, splits.train, placement),
        steps_per_epoch=order.steps_per_epoch,
        step_metrics=("loss", "accuracy"),
        validate=partial(evaluate, splits.validation),
        best="accuracy",
        smallest=False,
        test=lambda state, _: {"test": evaluate(load_split(experiment.data, "test"), state)},
        facts={
            "num_train": len(splits.train),
            "num_validation": len(splits.validation),
            "dropped_per_epoch": order.dropped_per_epoch,
        }
        | ({} if test is None else {"num_test": len(test)}),
    )


def batch_order(experiment: Experiment, seed: int) -> BatchOrder:
    """The order of a run's batches, whichever path reads them."""
    n, size = len(load_splits(experiment.data).train), experiment.train.batch_size
    if size > n:
        raise ValueError(f"train.batch_size is {size}, but there are only {n} training images")
    return shuffled(n, size, seed)


def feed_maker(
    experiment: Experiment, step: fsg.TrainStep, train: data.ImageDataset, placement: devices.Placement
) -> Any:
    """``make_feed(seeds, states)``, on the device-resident path or the streaming one; compiles nothing yet."""
    options = experiment.train
    resident = devices.is_resident(experiment.data.resident)
    dispatch = devices.choose(options.dispatch, accelerator="scan", cpu="loop")
    steps = cache(lambda mode: make_resident_steps(step, dispatch, seeds=mode))
    stream = build.jit_stream_step(step)

    def make_feed(seeds: Sequence[int], states: Sequence[fsg.TrainState]) -> Feed:
        if resident:
            orders = [batch_order(experiment, seed) for seed in seeds]
            mode = devices.seed_mode(experiment.model) if len(seeds) > 1 else None
            most = options.log_every if dispatch == "scan" else 1
            arrays = on_device(stored(experiment.data), placement)
            return ResidentFeed(steps(mode), arrays, orders, states, placement.put_rows, most)
        if len(seeds) > 1:
            raise UserError("several seeds in one program need --data.resident yes; or run them apart, --together 1")
        (seed,), (state,) = seeds, states
        loader = data.make_loader(
            train,
            options.batch_size,
            seed=seed,
            workers=experiment.data.workers,
            start=int(state.step),
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        return StreamFeed(stream, Prefetch(iter(loader), placement.put_batch), state)

    return make_feed


@cache
def on_device(config: Data, placement: devices.Placement) -> dict[str, jax.Array]:
    """The training images on the devices, once for all arms."""
    return put_dataset(load_splits(config).train, placement.replicated)


def _eval_step(experiment: Experiment, shardings: Any) -> fsg.EvalStep:
    return fsg.make_eval_step(
        fsg.losses.cross_entropy,
        transform=augment.normalize(*STATISTICS[experiment.data.name]),
        ema=experiment.train.ema_decay is not None,
        shardings=shardings,
    )


def _evaluate(
    experiment: Experiment, eval_step: fsg.EvalStep, dataset: data.ImageDataset, state: fsg.TrainState
) -> dict[str, float]:
    """Mean loss and accuracy over every image of `dataset`, each counted once."""
    rows = []
    placement = devices.placement(experiment.train.fsdp, experiment.train.batch_size)
    for batch in data.eval_batches(dataset, placement.round_up(min(experiment.train.eval_batch_size, len(dataset)))):
        inputs = placement.put_whole({k: batch[k] for k in ("image", "label", "valid")})
        rows.append(eval_step(state, inputs))
    rows = jax.device_get(rows)
    weights = [row["count"] for row in rows]
    return {k: float(np.average([row[k] for row in rows], weights=weights)) for k in ("loss", "accuracy")}


def train_transform(config: Data, num_classes: int) -> Transform:
    """Augmentation and normalisation, in the order of ``data.augment``.

    Cutout and mixing come after normalisation: cutout fills with the mean.
    """
    mixing = {"num_classes": num_classes}
    before: dict[str, Any] = {
        "crop": partial(augment.random_crop, config.crop_padding),
        "flip": augment.random_flip,
        "trivial": augment.trivial_augment,
    }
    after: dict[str, Any] = {
        "cutout": partial(augment.cutout, config.cutout_size),
        "mixup": partial(augment.mixup, config.mixup_alpha, **mixing),
        "cutmix": partial(augment.cutmix, config.cutmix_alpha, **mixing),
        "mixup_or_cutmix": partial(augment.mixup_or_cutmix, config.mixup_alpha, config.cutmix_alpha, **mixing),
    }
    first = [before[name]() for name in config.augment if name in before]
    last = [after[name]() for name in config.augment if name in after]
    return augment.chain(*first, augment.normalize(*STATISTICS[config.name]), *last)
