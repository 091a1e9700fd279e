"""From a configuration to data, model, optimizers and steps."""

import math
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import fsg_jax as fsg
from experiments.checks import check
from experiments.config import Arm, Data, Experiment, Gate, get_arm
from fsg_jax import augment, data
from fsg_jax.typing import Key, Transform

STATISTICS = {"digits": ((0.3053,), (0.3760,)), "cifar100": (data.CIFAR100_MEAN, data.CIFAR100_STD)}


class Splits(NamedTuple):
    """Training and validation images; the test split is loaded by `load_test`, once, at the end."""

    train: data.ImageDataset
    validation: data.ImageDataset


class Program(NamedTuple):
    """What is compiled once and serves every seed of an arm."""

    init: Callable[[Key], fsg.TrainState]
    train_step: fsg.TrainStep
    eval_step: fsg.EvalStep


@cache
def load_split(config: Data, split: str) -> data.ImageDataset:
    """The official training or test split."""
    if config.name == "digits":
        return data.load_digits(split)
    if config.path is None:
        raise ValueError("data.path is not set: give the CIFAR-100 folder, archive or .npz with --data.path")
    return data.load_cifar100(
        Path(config.path), split, source=config.source, checksum=config.checksum, download=config.download
    )


@cache
def load_splits(config: Data) -> Splits:
    """The training split, divided; the same for every arm and seed."""
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


def steps_per_epoch(experiment: Experiment) -> int:
    """Whole batches in an epoch."""
    n, size = len(load_splits(experiment.data).train), experiment.train.batch_size
    if size > n:
        raise ValueError(f"train.batch_size is {size}, but there are only {n} training images")
    return n // size


@cache
def build(experiment: Experiment, arm_name: str) -> Program:
    """The jitted functions of one arm.

    Raises:
      ValueError, OSError: what a run cannot start with, the test files included: a run does not fail at its end.
    """
    arm = get_arm(arm_name)
    check(experiment)
    load_split(experiment.data, "test")
    classes = load_splits(experiment.data).train.num_classes
    loss = fsg.losses.make_cross_entropy(label_smoothing=experiment.optimizer.label_smoothing)
    penalty = fsg.gate_penalty("l0", experiment.gate.l0_weight, reduction="mean") if arm.l0_penalty else None
    train_step = fsg.make_train_step(
        loss,
        routing=arm.routing,
        penalty=penalty,
        gate_every=experiment.gate.every if arm.routing == "sequential" else 1,
        accumulate=experiment.train.accumulate,
        transform=train_transform(experiment.data, classes),
    )
    eval_step = fsg.make_eval_step(
        fsg.losses.cross_entropy,
        transform=augment.normalize(*STATISTICS[experiment.data.name]),
        ema=experiment.train.ema_decay is not None,
    )
    init = build_init(experiment, arm, classes)
    jax.eval_shape(init, jax.random.key(0))
    return Program(init, train_step, eval_step)


def build_init(experiment: Experiment, arm: Arm, num_classes: int) -> Callable[[Key], fsg.TrainState]:
    """``init(key)``, jitted: the state at step 0."""
    model, tx = build_model(experiment, arm, num_classes), build_optimizer(experiment, arm)
    inputs = np.zeros((1, *load_splits(experiment.data).train.images.shape[1:]), np.float32)
    return jax.jit(lambda key: fsg.init_state(model, tx, key, inputs, ema_decay=experiment.train.ema_decay))


def build_model(experiment: Experiment, arm: Arm, num_classes: int) -> nn.Module:
    """The model of an arm: the same for all arms but for the gate put into it."""
    kwargs = {k: v for k, v in vars(experiment.model).items() if k != "name"}
    return fsg.create_model(
        experiment.model.name,
        num_classes=num_classes,
        gate=build_gate(experiment.gate, arm),
        dtype=jnp.dtype(experiment.train.dtype),
        **kwargs,
    )


def build_gate(config: Gate, arm: Arm) -> Any:
    """The gate factory of an arm, or None."""
    if arm.gate == "none":
        return None
    if arm.gate == "squeeze_excite":
        return fsg.SqueezeExcite
    if arm.kind == "hard_concrete":
        logit = math.log(config.l0_open / (1 - config.l0_open))
        return partial(fsg.Gate, kind=arm.kind, logits_init="constant", init_value=logit)
    return partial(fsg.Gate, kind=arm.kind, logits_init=config.init, init_value=config.init_value)


def build_optimizer(experiment: Experiment, arm: Arm) -> Any:
    """One optimizer for everything, or one for the weights and one for the gates."""
    weights = weight_optimizer(experiment)
    if arm.routing == "none":
        return weights
    clip = [] if experiment.gate.clip is None else [optax.clip_by_global_norm(experiment.gate.clip)]
    return fsg.routed(params=weights, gates=optax.chain(*clip, optax.adam(experiment.gate.learning_rate)))


def weight_optimizer(experiment: Experiment) -> optax.GradientTransformation:
    """Clipping, weight decay of the weights alone, warm-up and cosine."""
    config, epoch = experiment.optimizer, steps_per_epoch(experiment)
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, round(config.warmup_epochs * epoch), experiment.train.epochs * epoch
    )
    clip = [] if config.clip is None else [optax.clip_by_global_norm(config.clip)]
    if config.name == "adamw":
        return optax.chain(*clip, optax.adamw(schedule, weight_decay=config.weight_decay, mask=is_weight))
    decay = optax.add_decayed_weights(config.weight_decay, mask=is_weight)
    return optax.chain(*clip, decay, optax.sgd(schedule, momentum=config.momentum, nesterov=True))


def is_weight(tree: Any) -> Any:
    """True at the leaves that are not gate logits."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[0].key != fsg.GATES, tree)


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
