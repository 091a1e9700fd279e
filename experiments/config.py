"""Typed experiment configuration: every knob is a field, with its default here and nowhere else."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

Augmentation = Literal["crop", "flip", "cutout", "trivial", "mixup", "cutmix", "mixup_or_cutmix"]


@dataclass(frozen=True)
class Data:
    """What is trained on."""

    name: Literal["digits", "cifar100"] = "cifar100"
    path: Path | None = None
    """CIFAR-100: a folder, archive or .npz. Digits need none."""
    source: Literal["auto", "python", "binary", "npz", "tfds"] = "auto"
    checksum: bool = True
    """Compare an archive with the official MD5."""
    download: bool = False
    """Fetch the official archive into `path` if it is not there."""
    validation: int = 5000
    """Images held out of the training split for validation, stratified and fixed."""
    num_train: int | None = None
    """Train on this many of the remaining images, stratified and fixed; None: all."""
    augment: tuple[Augmentation, ...] = ()
    crop_padding: int = 4
    cutout_size: int = 8
    mixup_alpha: float = 0.4
    cutmix_alpha: float = 1.0
    workers: int = 0
    """Grain worker processes; the batches do not depend on it."""
    resident: Literal["auto", "yes", "no"] = "auto"
    """Keep the training images on the device; auto: on an accelerator. The batches do not depend on it."""


@dataclass(frozen=True)
class ResNet:
    """A ResNet of `fsg_jax.models`."""

    name: Literal["resnet18", "resnet34", "resnet50"] = "resnet18"
    width: int = 64
    stem: Literal["cifar", "imagenet"] = "cifar"
    gate_placement: Literal["stage", "block", "residual"] = "stage"
    remat: bool = False


@dataclass(frozen=True)
class ViT:
    """A ViT of `fsg_jax.models`."""

    name: Literal["vit_tiny", "vit_small", "vit_base"] = "vit_tiny"
    patch_size: int = 4
    depth: int = 12
    dropout: float = 0.0
    drop_path: float = 0.0
    remat: bool = False


@dataclass(frozen=True)
class Gate:
    """The static gates of every gated arm, and the optimizer of the arms that give gates their own."""

    init: Literal["xavier", "he", "constant", "open"] = "xavier"
    init_value: float = 0.0
    learning_rate: float = 1e-2
    """Adam, constant; the paper's CIFAR-100 setting is 1e-2."""
    clip: float | None = None
    """Global-norm clipping of the gate gradients."""
    every: int = 1
    """Run the gate pass of sequential routing at every k-th step."""
    l0_weight: float = 1e-2
    """Weight of the mean expected L0 of the arm ``l0``."""
    l0_open: float = 0.7
    """Probability-like opening at the start of the arm ``l0`` (1 - dropout rate in Louizos et al. 2018)."""


@dataclass(frozen=True)
class Optimizer:
    """The optimizer of the weights (and of the gates too where an arm has one optimizer)."""

    name: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.1
    """Peak of the schedule."""
    schedule: Literal["cosine", "linear"] = "cosine"
    """How it falls to 0 after the linear warm-up; with a long warm-up, linear is the one-cycle schedule."""
    warmup_epochs: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    """Of the weights, never of gate logits; L2 for sgd, decoupled for adamw."""
    clip: float | None = None
    label_smoothing: float = 0.0


@dataclass(frozen=True)
class Train:
    """Length, sizes and bookkeeping."""

    epochs: int = 200
    batch_size: int = 128
    eval_batch_size: int = 500
    accumulate: int = 1
    dtype: Literal["float32", "bfloat16"] = "float32"
    ema_decay: float | None = None
    dispatch: Literal["auto", "loop", "scan"] = "auto"
    """Of data on the device: one program a step, or one for the steps between two writes of the log; auto: scan on an
    accelerator, loop on the CPU."""
    fsdp: int = 1
    """Devices over which large parameters are split; the batch is split over all devices in any case."""
    log_every: int = 20
    """Steps between writes of the log; every step is in it."""
    checkpoint_every: int | None = None
    """Steps between checkpoints, beside the one at the end of every epoch."""
    keep_last: int = 2
    test_on: Literal["last", "best", "none"] = "last"
    """Which weights are tested: the last, or those with the best validation accuracy; none: the test split is not
    read, as while hyper-parameters are chosen."""


@dataclass(frozen=True)
class Experiment:
    """One experiment: everything but arm and seed."""

    name: str
    data: Data = field(default_factory=Data)
    model: ResNet | ViT = field(default_factory=ResNet)
    gate: Gate = field(default_factory=Gate)
    optimizer: Optimizer = field(default_factory=Optimizer)
    train: Train = field(default_factory=Train)


@dataclass(frozen=True)
class Arm:
    """What differs between the arms of an ablation: gates and routing, and nothing else."""

    gate: Literal["none", "static", "squeeze_excite"] = "none"
    kind: str = "sigmoid"
    routing: Literal["none", "joint", "sequential"] = "none"
    l0_penalty: bool = False


ARMS: dict[str, Arm] = {
    "baseline": Arm(),
    "fsg": Arm(gate="static"),
    "fsg_joint": Arm(gate="static", routing="joint"),
    "fsg_gr": Arm(gate="static", routing="sequential"),
    "se": Arm(gate="squeeze_excite"),
    "l0": Arm(gate="static", kind="hard_concrete", l0_penalty=True),
}


def get_arm(name: str) -> Arm:
    """The arm of that name.

    Raises:
      ValueError: there is none.
    """
    if name not in ARMS:
        raise ValueError(f"no arm is named {name!r}; there are {', '.join(ARMS)}")
    return ARMS[name]


def change(config: Any, values: dict[str, Any]) -> Any:
    """`config` with other values at some dotted keys."""
    for key, value in values.items():
        name, _, rest = key.partition(".")
        config = replace(config, **{name: change(getattr(config, name), {rest: value}) if rest else value})
    return config


def describe(experiment: Any, arm: str, seed: int) -> dict[str, Any]:
    """The resolved configuration of a run, JSON-able."""
    config = asdict(experiment) | {"arm": {"name": arm} | asdict(get_arm(arm)), "seed": seed}
    return {key: _jsonable(value) for key, value in config.items()}


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _jsonable(v) for key, v in value.items()}
    if isinstance(value, tuple | list):
        return [_jsonable(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined with dots."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
