"""Typed experiment configuration: every knob is a field, with its default and its range here and nowhere else."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, TypeVar, Union, get_args, get_origin
from typing import get_type_hints as type_hints

from experiments.errors import UserError
from fsg_jax._checks import check_choice, check_integer, check_nonnegative, check_positive, check_rates, expect, look_up

if TYPE_CHECKING:
    from tyro.conf import Suppress

    from experiments.task import Task
else:
    try:
        from tyro.conf import Suppress
    except ImportError:  # where no command line is parsed
        Suppress = Annotated[TypeVar("T"), None]


def check_bounded(name: str, value: Any, low: int, high: int) -> None:
    """As `check_integer`, where `high` is a bound of what is sensible, named only to who exceeds it."""
    check_integer(name, value, low)
    expect(value <= high, name, f"an integer <= {high}", value)


def within(low: int, high: int) -> Callable[..., None]:
    """A check that every value is an integer from `low` to `high`."""

    def check(**values: Any) -> None:
        for name, value in values.items():
            check_bounded(name, value, low, high)

    return check


# What stands beside the type is called by `check`, with the key and the value.
Count = Annotated[int, within(1, 2**31 - 1)]
"""Up to what the step counter holds."""
Side = Annotated[int, within(1, 2**13)]
"""Of an image, in pixels."""
Width = Annotated[int, within(1, 2**14)]
Depth = Annotated[int, within(1, 2**10)]
Workers = Annotated[int, within(0, 2**10)]
NotNegative = Annotated[float, check_nonnegative]
Positive = Annotated[float, check_positive]
Share = Annotated[float, check_rates]
OpenShare = Annotated[float, check_positive, check_rates]
"""Above 0 and below 1."""
Augmentation = Literal["crop", "flip", "cutout", "trivial", "mixup", "cutmix", "mixup_or_cutmix"]


@dataclass(frozen=True)
class Data:
    """The images that a classification is trained on."""

    name: Literal["digits", "cifar100", "kvasir_crops"] = "cifar100"
    path: Path | None = None
    """CIFAR-100: a folder, archive or .npz; crops of Kvasir-SEG: the .npz of `experiments.crops`. Digits need none."""
    source: Literal["auto", "python", "binary", "npz", "tfds"] = "auto"
    checksum: bool = True
    """Compare an archive with the official MD5."""
    download: bool = False
    """Fetch the official archive into `path` if it is not there."""
    validation: Count = 5000
    """Images held out of the training split for validation, stratified and fixed; crops have their own split."""
    num_train: Count | None = None
    """Train on this many of the remaining images, stratified and fixed; None: all."""
    image_size: Side | None = None
    """Side to which images are resized on the device, by bilinear interpolation, after geometric augmentation; None:
    as they are."""
    augment: tuple[Augmentation, ...] = ()
    crop_padding: Annotated[int, within(0, 2**10)] = 4
    cutout_size: Side = 8
    """In pixels of the resized image."""
    mixup_alpha: float = 0.4
    cutmix_alpha: float = 1.0
    workers: Workers = 0
    """Grain worker processes; the batches do not depend on it."""
    resident: Literal["auto", "yes", "no"] = "auto"
    """Keep the training images on the device; auto: on an accelerator. The batches do not depend on it."""


@dataclass(frozen=True)
class Start:
    """Where the weights of a model come from."""

    pretrained: str | None = None
    """A name, file, folder or repository that `fsg_jax.load_pretrained` reads, whose mean and standard deviation then
    normalise the images; None: all weights start by the seed."""
    pretrained_digest: str | None = None
    """Of these weights, by which a run knows them; None: found when the run starts."""
    pretrained_part: Literal["backbone", "all"] = "backbone"
    """Which of them: the backbone, for a new task, where gates and head start by the seed; or the gates and the head
    too, to train a network on, such as a pruned one."""
    widths: tuple[tuple[str, int], ...] = ()
    """Channels at single sites of a pruned network; those of the weights are found when the run starts."""

    def options(self) -> dict[str, Any]:
        """Arguments of `fsg_jax.create_model`, the name among them."""
        own = {name: value for name, value in vars(self).items() if name not in {f.name for f in fields(Start)}}
        return own | ({"widths": dict(self.widths)} if self.widths else {})


@dataclass(frozen=True)
class ResNet(Start):
    """A ResNet of `fsg_jax.models`."""

    name: Literal["resnet18", "resnet34", "resnet50"] = "resnet18"
    width: Width = 64
    stem: Literal["cifar", "imagenet"] = "cifar"
    gate_placement: Literal["stage", "block", "residual", "hidden"] = "stage"
    remat: bool = False


@dataclass(frozen=True)
class ViT(Start):
    """A ViT of `fsg_jax.models`."""

    name: Literal["vit_tiny", "vit_small", "vit_base"] = "vit_tiny"
    patch_size: Side = 4
    depth: Depth = 12
    dim: Width | None = None
    """Channels of a token; None: the variant's."""
    num_heads: Width | None = None
    """Heads, which divide `dim`; None: the variant's."""
    gate_placement: Literal["branch", "hidden", "output", "output_heads"] = "branch"
    output_gate: Literal["headwise", "elementwise"] | None = None
    """A gate that depends on the input, before the projection of the attention."""
    dropout: float = 0.0
    drop_path: float = 0.0
    remat: bool = False

    def options(self) -> dict[str, Any]:
        """See `Start`; without the widths that are the variant's."""
        own = super().options()
        return {name: value for name, value in own.items() if name not in ("dim", "num_heads") or value is not None}


@dataclass(frozen=True)
class ViG(ViT):
    """A ViG (gated linear attention) of `fsg_jax.models`."""

    name: Literal["vig_tiny", "vig_small", "vig_base"] = "vig_tiny"  # type: ignore[assignment]
    mixer: Literal["gla", "softmax"] = "gla"
    """softmax: the attention of a ViT in its place."""
    locality: bool = True
    """Of gla: the depthwise convolution and the mixing with its output."""
    directional: bool = True
    """Of gla: gates of its own for each direction."""

    def options(self) -> dict[str, Any]:
        """See `Start`; without the arms of gla, the model's own mixer."""
        from fsg_jax.models.vig import VIGS

        own = super().options()
        arms = {name: own.pop(name) for name in ("locality", "directional")}
        softmax, left_out = own.pop("mixer") == "softmax", [name for name, value in arms.items() if not value]
        expect(not (softmax and left_out), "model.mixer", f"gla for model.{' and '.join(left_out)}=False", "softmax")
        mixer = None if softmax else partial(VIGS[self.name]["mixer"], **arms)
        return own | ({"mixer": mixer} if softmax or left_out else {})


@dataclass(frozen=True)
class EfficientNet(Start):
    """An EfficientNet of `fsg_jax.models`."""

    name: Literal["efficientnet_lite0", "efficientnet_b0", "tf_efficientnet_b0"] = "efficientnet_lite0"
    gate_placement: Literal["stage", "block", "hidden"] = "stage"
    dropout: float = 0.0
    drop_path: float = 0.0
    remat: bool = False


@dataclass(frozen=True)
class VGG(Start):
    """A VGG of `fsg_jax.models`, with or without attention over its maps."""

    name: Literal["vgg16", "vgg_att"] = "vgg16"
    width: Width = 64
    attention: bool | None = None
    """Classify from attention over the maps, or from the global descriptor; None: as the variant does."""
    levels: Literal[1, 2, 3] = 3
    score: Literal["dot", "additive", "additive_tanh"] = "additive"
    normalise: Literal["softmax", "sigmoid", "sigmoid_mean"] = "softmax"
    combine: Literal["concat", "mean_prob", "sum_log_prob", "sum_logits"] = "concat"
    project: Literal["down", "up"] = "down"
    head_norm: bool = True
    branch_gradient: Literal["sum", "mean"] = "sum"
    taps: Literal["before", "after"] = "before"
    initial: Literal["scaled", "reference"] = "scaled"
    dropout: Share = 0.5
    """Before the layer of the global descriptor, and on the query."""
    head_dropout: Share = 0.5
    conv_dropout: tuple[Share, Share] = (0.3, 0.4)
    """After convolutions of the first stage, and of the others."""
    gate_placement: Literal["stage", "hidden"] = "stage"
    remat: bool = False

    def options(self) -> dict[str, Any]:
        """See `Start`."""
        from fsg_jax.models import SpatialAttention

        own = super().options()
        attention = own.pop("attention")
        return own | ({} if attention is None else {"attention": SpatialAttention if attention else None})


@dataclass(frozen=True)
class AttentiveResNet(VGG):
    """A pre-activation ResNet of `fsg_jax.models`, with or without attention over its maps."""

    name: Literal["resnet_att"] = "resnet_att"  # type: ignore[assignment]
    depth: Depth = 164
    """9 n + 2."""
    width: Width = 16
    head_dropout: Share = 0.3
    conv_dropout: Share = 0.4  # type: ignore[assignment]
    gate_placement: Literal["stage", "residual", "hidden"] = "stage"  # type: ignore[assignment]


@dataclass(frozen=True)
class Gate:
    """The static gates of every gated arm, and the optimizer of the arms that give gates their own."""

    init: Literal["xavier", "he", "constant", "open"] = "xavier"
    init_value: float = 0.0
    learning_rate: NotNegative = 1e-2
    """Adam, constant; the paper's CIFAR-100 setting is 1e-2."""
    clip: Positive | None = None
    """Global-norm clipping of the gate gradients."""
    every: Count = 1
    """Run the gate pass of sequential routing at every k-th step."""
    l0_weight: NotNegative = 1e-2
    """Weight of the mean expected L0 of the arm ``l0``."""
    l0_open: OpenShare = 0.7
    """Probability-like opening at the start of the arm ``l0`` (1 - dropout rate in Louizos et al. 2018)."""


@dataclass(frozen=True)
class Optimizer:
    """The optimizer of the weights (and of the gates too where an arm has one optimizer)."""

    name: Literal["sgd", "adamw"] = "sgd"
    learning_rate: NotNegative = 0.1
    """Peak of the schedule."""
    schedule: Literal["cosine", "linear", "halving"] = "cosine"
    """How it falls after the linear warm-up: to 0, where linear with a long warm-up is the one-cycle schedule; or by a
    half every `halve_every` epochs."""
    halve_every: Positive = 25.0
    warmup_epochs: NotNegative = 1.0
    """Less than the epochs of training."""
    momentum: Share = 0.9
    nesterov: bool = True
    weight_decay: NotNegative = 5e-4
    """Of the weights, never of gate logits; L2 for sgd, decoupled for adamw."""
    clip: Positive | None = None
    label_smoothing: Share = 0.0


@dataclass(frozen=True)
class Train:
    """Length, sizes and bookkeeping."""

    epochs: Count = 200
    batch_size: Count = 128
    eval_batch_size: Count = 500
    accumulate: Count = 1
    """Parts of equal size into which a batch is split to save memory."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    ema_decay: OpenShare | None = None
    dispatch: Literal["auto", "loop", "scan"] = "auto"
    """Of data on the device: one program a step, or one for the steps between two writes of the log; auto: scan on an
    accelerator, loop on the CPU."""
    fsdp: Count = 1
    """Devices over which large parameters are split; the batch is split over all devices in any case."""
    log_every: Count = 20
    """Steps between writes of the log; every step is in it."""
    validate_every: Count = 1
    """Epochs between validations; the last epoch is always validated. The best epoch is one of those validated."""
    checkpoint_every_seconds: NotNegative = 60.0
    """Seconds of work that a kill may cost; 0: a checkpoint at the end of every epoch. The last epoch is always saved,
    and the best one before any later checkpoint."""
    checkpoint_every: Count | None = None
    """Steps between checkpoints, beside those by the clock."""
    keep_last: Count = 2
    test_on: Literal["last", "best", "none"] = "last"
    """Which weights are tested: the last, or those of the best epoch on the validation split; none: the test split is
    not read, as while hyper-parameters are chosen."""


@dataclass(frozen=True)
class Arm:
    """The gates of an arm and who moves them; no option sets them, for they are what arms are made of."""

    name: str = "baseline"
    gate: Literal["none", "static", "squeeze_excite"] = "none"
    kind: str = "sigmoid"
    routing: Literal["none", "joint", "sequential", "tasks"] = "none"
    """``tasks``: a pass a task moves its gates in a head of experts by its own loss; then the weights move."""
    l0_penalty: bool = False


ARMS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "fsg": {"arm.gate": "static"},
    "fsg_joint": {"arm.gate": "static", "arm.routing": "joint"},
    "fsg_gr": {"arm.gate": "static", "arm.routing": "sequential"},
    "se": {"arm.gate": "squeeze_excite"},
    "l0": {"arm.gate": "static", "arm.kind": "hard_concrete", "arm.l0_penalty": True},
}
"""Named overrides of any keys of the configuration."""


class AddedArm(NamedTuple):
    """One beside `ARMS`, from `experiments.arms.add_arm`."""

    name: str
    overrides: tuple[tuple[str, Any], ...]


class Variant(NamedTuple):
    """A configuration at one point of the axes of an ablation; its runs lie in ``FOLDER/ARM/PREFIXseed-S``."""

    experiment: "BaseExperiment"
    folder: str = ""
    prefix: str = ""


@dataclass(frozen=True)
class BaseExperiment(ABC):
    """What all experiments have: everything but the seed."""

    name: str
    data: Any
    model: Any
    gate: Gate = field(default_factory=Gate)
    optimizer: Optimizer = field(default_factory=Optimizer)
    train: Train = field(default_factory=Train)
    arm: Suppress[Arm] = field(default_factory=Arm)
    """Of a run, from `in_arm`."""
    added_arms: Suppress[tuple[AddedArm, ...]] = ()

    default_seeds: ClassVar[int] = 3
    """Number of seeds of an ablation."""

    @abstractmethod
    def make_task(self) -> "Task":
        """What the training loop needs of an arm; called by `experiments.task.make_task` on a checked configuration.

        Raises:
          ValueError, OSError: a run cannot start with this configuration.
        """

    def variants(self, streams: tuple[str, ...], folds: tuple[int, ...]) -> list[list[Variant]]:
        """The points of an ablation: a list for each fold, with a variant for each set of streams.

        Raises:
          UserError: the experiment does not have the axis.
        """
        if streams or folds:
            axis, values = ("streams", streams) if streams else ("folds", folds)
            found = " ".join(map(str, values))
            raise UserError(f"--{axis}: expected none, for {self.name} has no {axis} to choose from, found {found}")
        return [[Variant(self)]]


@dataclass(frozen=True)
class Experiment(BaseExperiment):
    """One classification of images."""

    data: Data = field(default_factory=Data)
    model: ResNet | ViT | ViG | EfficientNet | VGG | AttentiveResNet = field(default_factory=ResNet)

    def make_task(self) -> "Task":
        """See `BaseExperiment`."""
        from experiments.classification import make_task

        return make_task(self)


def check(experiment: BaseExperiment) -> None:
    """Compares every value with its type and its range.

    Raises:
      ValueError: the key, what was expected, and what was found.
    """
    check_values(experiment)
    train, warmup = experiment.train, experiment.optimizer.warmup_epochs
    if train.batch_size % train.accumulate:
        wanted = f"a multiple of train.accumulate, {train.accumulate}"
        raise ValueError(f"train.batch_size: expected {wanted}, found {train.batch_size}")
    if warmup >= train.epochs:
        raise ValueError(f"optimizer.warmup_epochs: expected less than train.epochs, {train.epochs}, found {warmup}")
    arm = experiment.arm
    idle = (Arm.routing, "tasks") if arm.gate == "none" else (Arm.routing,)
    if arm.gate != "static" and (arm.routing not in idle or (arm.kind, arm.l0_penalty) != (Arm.kind, Arm.l0_penalty)):
        raise ValueError(f"arm.gate: expected static for such arm.routing, kind or l0_penalty, found {arm.gate}")
    if arm.l0_penalty and arm.kind not in ("hard_concrete", "straight_through"):
        raise ValueError(f"arm.kind: expected hard_concrete or straight_through for arm.l0_penalty, found {arm.kind}")


def check_values(experiment: BaseExperiment) -> None:
    """Compares every value with its own type and range alone; raises as `check` does."""
    _check_value("", experiment, type(experiment))


def _check_value(key: str, value: Any, hint: Any) -> None:
    kind, parts = get_origin(hint), get_args(hint)
    if is_dataclass(value):
        hints = type_hints(type(value), include_extras=True)
        for name in (f.name for f in fields(value)):
            _check_value(f"{key}.{name}".lstrip("."), getattr(value, name), hints[name])
    elif kind is Annotated:
        _check_value(key, value, parts[0])
        for check_range in filter(callable, hint.__metadata__):
            check_range(**{key: value})
    elif kind in (Union, UnionType):
        if value is not None:
            _check_value(key, value, next(part for part in parts if part is not NoneType))
    elif kind is Literal:
        check_choice(key, value, parts)
    elif kind is tuple and isinstance(value, tuple):
        if parts[-1] is not ... and len(value) != len(parts):
            raise ValueError(f"{key}: expected {len(parts)} values, found {value!r}")
        for i, element in enumerate(value):
            _check_value(key, element, parts[0 if parts[-1] is ... else i])
    else:
        hint = kind or hint
        right = (int, float) if hint is float else hint
        if not isinstance(value, right) or (isinstance(value, bool) and hint is not bool):
            raise ValueError(f"{key}: expected {hint.__name__}, found {value!r}")


def in_arm(experiment: BaseExperiment, name: str) -> BaseExperiment:
    """The configuration of one arm; a ValueError if there is none of that name."""
    overrides = look_up(ARMS | dict(experiment.added_arms), name, "arm")
    return change(experiment, {"arm": Arm(name), **dict(overrides), "added_arms": ()})


def change(config: Any, values: dict[str, Any]) -> Any:
    """`config` with other values at some dotted keys."""
    for key, value in values.items():
        name, _, rest = key.partition(".")
        config = replace(config, **{name: change(getattr(config, name), {rest: value}) if rest else value})
    return config


def settings(experiment: BaseExperiment) -> dict[str, Any]:
    """The values by dotted key, without arms."""
    arms = ("arm.", "added_arms")
    return {key: value for key, value in flatten(asdict(experiment)).items() if not key.startswith(arms)}


def describe(experiment: BaseExperiment, arm: str | None = None, seed: int | None = None) -> dict[str, Any]:
    """The resolved configuration of an ablation, of a search of an arm, or of a run, JSON-able."""
    config = asdict(experiment if arm is None else in_arm(experiment, arm))
    del config["added_arms"]
    own = {"arm": config.pop("arm")}
    if arm is not None:
        config |= own
    if seed is not None:
        config["seed"] = seed
    return json.loads(json.dumps(config, default=str))


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined with dots."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
