"""Image classification: data, augmentation and evaluation of the experiments on digits and CIFAR-100."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fsg_jax as fsg
from experiments import build, devices, pretrained
from experiments.config import Arm, Data, Experiment, Gate, Optimizer, Train
from experiments.stepper import Streamed, resident_stepper, streaming
from experiments.task import Task, without_optimizer
from experiments.trained import DATA
from fsg_jax import augment, data
from fsg_jax._checks import check_integer, expect
from fsg_jax.data.batches import BatchOrder, shuffled
from fsg_jax.data.loader import gather
from fsg_jax.data.resident import put_dataset
from fsg_jax.linen.costs import layer_costs
from fsg_jax.typing import Batch, Transform

METRICS = {"accuracy": fsg.metrics.accuracy}
STATISTICS = {"digits": ((0.3053,), (0.3760,)), "cifar100": (data.CIFAR100_MEAN, data.CIFAR100_STD)}
STATISTICS |= {"kvasir_crops": ((0.644, 0.369, 0.269), (0.276, 0.202, 0.174))}


class Splits(NamedTuple):
    """Training and validation images; a network sees the test split only in `Task.test`, once, at the end."""

    train: data.ImageDataset
    validation: data.ImageDataset


UNSTORED = (
    *("image_size", "augment", "crop_padding", "cutout_size", "mixup_alpha", "cutmix_alpha"),
    *("workers", "resident"),
)
"""Settings of `Data` that do not tell which images there are; configurations that differ in no other share them."""


def stored(config: Data) -> Data:
    """`config` with the defaults of what is in `UNSTORED`."""
    plain = Data()
    return replace(config, **{name: getattr(plain, name) for name in UNSTORED})


def load_split(config: Data, split: str) -> data.ImageDataset:
    """The official training or test split, or of crops that for validation."""
    return _load_split(stored(config), split)


@cache
def _load_split(config: Data, split: str) -> data.ImageDataset:
    if config.name == "digits":
        return data.load_digits(split)
    wanted = "the CIFAR-100 folder, archive or .npz" if config.name == "cifar100" else "the .npz of experiments.crops"
    expect(config.path is not None, "data.path", wanted, None)
    if config.name == "kvasir_crops":
        found = data.load_arrays(Path(str(config.path)), split)
        shape, classes = DATA[config.name]
        expect(found.images.shape[1:] == shape, f"{config.path}: images", f"pixels {shape}", found.images.shape[1:])
        expect(found.num_classes == classes, f"{config.path}: class_names", f"{classes} classes", found.num_classes)
        return found
    return data.load_cifar100(
        Path(str(config.path)), split, source=config.source, checksum=config.checksum, download=config.download
    )


def load_splits(config: Data) -> Splits:
    """The training split, divided; the same for every arm and seed."""
    return _load_splits(stored(config))


@cache
def _load_splits(config: Data) -> Splits:
    everything = load_split(config, "train")
    if config.name == "kvasir_crops":
        return Splits(_some(everything, config), load_split(config, "validation"))
    check_integer("data.validation", config.validation, 1, len(everything) - 1)
    rest, held_out = data.stratified_holdout(everything.labels, config.validation)
    return Splits(_some(everything.take(rest), config), everything.take(held_out))


def _some(train: data.ImageDataset, config: Data) -> data.ImageDataset:
    """The training images that `config` asks for."""
    if config.num_train is None:
        return train
    check_integer("data.num_train", config.num_train, 1, len(train))
    whole = config.num_train == len(train)
    return train if whole else train.take(data.stratified_holdout(train.labels, config.num_train)[1])


def make_task(experiment: Experiment) -> Task:
    """The task of one arm; see `experiments.task.make_task`.

    The test files are read too unless nothing is tested, so that a run does not fail at its end.
    """
    config, train = experiment.data, experiment.train
    test = None if train.test_on == "none" else load_split(config, "test")
    splits = load_splits(config)
    num_train, classes = len(splits.train), splits.train.num_classes
    height, width, channels = splits.train.images.shape[1:]
    shape = (1, config.image_size or height, config.image_size or width, channels)
    start, weights, normalize = experiment.model.pretrained, None, normalization(experiment)
    if start is not None:
        weights = {"": pretrained.load(start, channels, config.image_size, experiment.model.pretrained_part)}
    order = partial(batch_order, num_train, train.batch_size)
    model = build.make_model(experiment.gate, experiment.arm, train.dtype, classes, **experiment.model.options())
    program = build.make_program(
        experiment,
        order(0).steps_per_epoch,
        model,
        np.zeros(shape, np.float32),
        fsg.losses.make_cross_entropy(label_smoothing=experiment.optimizer.label_smoothing),
        train_transform(config, classes, normalize),
        weights,
        metrics=METRICS,
    )
    name = experiment.model.name
    in_memory = devices.choose(config.resident, accelerator="yes", cpu="no") == "yes"
    if in_memory:
        put = partial(put_images, stored(config), program.placement)
        make_stepper = resident_stepper(program.step, put, order, program.placement, train, devices.seed_mode(name))
    else:
        streamed = Streamed(order, partial(gather, splits.train), config.workers)
        make_stepper = streaming(program.step, streamed, program.placement)
    eval_step = _make_eval_step(experiment, program.shardings) if program.shardings else _eval_step(_judged(experiment))
    evaluate = partial(_evaluate, eval_step, program.placement)
    size = train.eval_batch_size
    batches = partial(held_batches if in_memory else eval_batches, stored(config), program.placement, size)
    info = {"num_train": num_train, "num_validation": len(splits.validation)}
    variables = jax.eval_shape(program.init, jax.random.key(0)).variables
    info |= {"flops": sum(cost.flops for cost in layer_costs(model, variables, np.zeros(shape, np.float32)).values())}
    info |= {"dropped_per_epoch": order(0).dropped_per_epoch} | ({} if test is None else {"num_test": len(test)})
    return Task(
        init=program.init,
        placement=program.placement,
        make_stepper=make_stepper,
        steps_per_epoch=order(0).steps_per_epoch,
        step_metrics=("loss", "accuracy"),
        validate=lambda state: evaluate(batches(), state),
        best="accuracy",
        smallest=False,
        test=lambda state, _: {"test": evaluate(eval_batches(config, program.placement, size, "test"), state)},
        info=info,
        seeds_together=devices.seeds_together(name) if in_memory else 1,
    )


def batch_order(num_train: int, batch_size: int, seed: int) -> BatchOrder:
    """The order of a run's batches, whichever path reads them."""
    check_integer("train.batch_size", batch_size, 1, num_train)
    return shuffled(num_train, batch_size, seed)


@cache
def put_images(config: Data, placement: devices.Placement) -> dict[str, jax.Array]:
    """The training images on the devices, once for all arms."""
    return put_dataset(load_splits(config).train, placement.replicated)


def eval_batches(
    config: Data, placement: devices.Placement, batch_size: int, split: str = "validation"
) -> Iterator[Batch]:
    """All validation or test images once, on the devices."""
    dataset = load_split(config, split) if split == "test" else load_splits(config).validation
    batches = data.eval_batches(dataset, placement.round_up(min(batch_size, len(dataset))))
    return (placement.put_whole({k: batch[k] for k in ("image", "label", "valid")}) for batch in batches)


@cache
def held_batches(config: Data, placement: devices.Placement, batch_size: int) -> list[Batch]:
    """The validation images in device memory, as they are needed at every epoch; once for all arms."""
    return [jax.tree.map(jnp.asarray, batch) for batch in eval_batches(config, placement, batch_size)]


def _judged(experiment: Experiment) -> Experiment:
    """The configuration with what evaluation depends on alone."""
    train = Train(ema_decay=experiment.train.ema_decay)
    return replace(experiment, arm=Arm(), gate=Gate(), optimizer=Optimizer(), train=train, added_arms=())


@lru_cache(maxsize=32)
def _eval_step(judged: Experiment) -> fsg.EvalStep:
    """One for all arms, so that those with the same model share its program."""
    return _make_eval_step(judged, None)


def _make_eval_step(experiment: Experiment, shardings: Any) -> fsg.EvalStep:
    transform, ema = evaluation_transform(experiment), experiment.train.ema_decay is not None
    options: dict[str, Any] = {"metrics": METRICS, "ema": ema, "shardings": shardings}
    return fsg.make_eval_step(fsg.losses.cross_entropy, transform=transform, **options)


def _evaluate(
    eval_step: fsg.EvalStep, placement: devices.Placement, batches: Iterable[Batch], state: fsg.TrainState
) -> dict[str, float]:
    """Mean loss and accuracy over every image, each counted once."""
    means = fsg.evaluate(eval_step, without_optimizer(state), batches)
    return {name: means[name] for name in ("loss", "accuracy")}


def normalization(experiment: Experiment) -> Transform:
    """By the statistics of the data, or by those with which pretrained weights were trained."""
    name, start = experiment.data.name, experiment.model.pretrained
    own = STATISTICS[name]
    return augment.normalize(*(own if start is None else pretrained.statistics(start, len(own[0]))))


def evaluation_transform(experiment: Experiment) -> Transform:
    """From stored images to what the network is given in evaluation."""
    return augment.chain(*resizing(experiment.data), normalization(experiment))


def resizing(config: Data) -> list[Transform]:
    """The transform that resizes images, if they are resized."""
    return [] if config.image_size is None else [augment.resize(config.image_size)]


def train_transform(config: Data, num_classes: int, normalize: Transform) -> Transform:
    """Augmentation, resizing and normalisation; augmentation in the order of ``data.augment``.

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
    return augment.chain(*first, *resizing(config), normalize, *last)
