"""Typed configuration of the polyp-sizing experiments; what is not here is that of `experiments.config`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from experiments.config import BaseExperiment, Count, Depth, Side, Start, Variant, Width, Workers, change, within
from experiments.head import Head

if TYPE_CHECKING:
    from experiments.task import Task

Stream = Literal["rgb", "mask", "depth"]


@dataclass(frozen=True)
class PolypData:
    """Frames, roles, sampling and augmentation."""

    index: tuple[Path, ...] = ()
    """Index folders, made by ``python -m experiments.index``; one for each dataset."""
    splits: Path | None = None
    """Folds, made by ``python -m experiments.split``."""
    fold: Annotated[int, within(0, 999)] = 0
    """The test fold; the next one validates."""
    depth_root: Path | None = None
    """Depth maps, made by ``python -m experiments.depth`` or elsewhere; needed by the stream ``depth``."""
    cache: Path | None = None
    """Decoded frames, made by ``python -m experiments.cache``."""
    frame_size: Side = 384
    """Side of the whole frame in pixels, from which boxes are cropped."""
    input_size: Side = 384
    """Side of what the network is given."""
    keep_aspect: bool = False
    """Keep the aspect ratio of frame and crop, since size is metric; the paper does not."""
    frames_per_polyp: Annotated[int, within(1, 2**20)] = 40
    """Drawn from each polyp in an epoch."""
    validation_frames: Count | None = 100
    """Of each polyp, evenly spaced; None: all."""
    test_frames: Count | None = None
    """Likewise, of the test fold."""
    expand: float = 0.5
    """Share of the box's extent by which a crop is larger on each side."""
    circle: float | None = 1.0
    """Radius of the circular field of view, where 1 touches the sides; None: the whole frame."""
    rotation: float = 30.0
    """Largest rotation in degrees."""
    flip: float = 0.5
    """Probability of a flip, left to right and top to bottom each."""
    jitter: tuple[float, float, float, float] = (0.15, 0.15, 0.15, 0.01)
    """Brightness, contrast, saturation and hue."""
    noise: float = 0.01
    """Standard deviation of Gaussian noise, where images are in [0, 1]."""
    workers: Workers = 0
    """Grain worker processes; the batches do not depend on it."""
    threads: Annotated[int, within(1, 2**10)] = 4
    """Threads that decode side by side, in this process or in each worker."""


@dataclass(frozen=True)
class MultiStream(Start):
    """One backbone a stream, fused; see `fsg_jax.models.MultiStream`. Pretrained, all streams start from one backbone.

    The stem of the depth stream is then adapted to one channel; its images stay in [0, 1].
    """

    backbone: Literal[
        "resnet18",
        "resnet34",
        "resnet50",
        "efficientnet_b0",
        "tf_efficientnet_b0",
        "efficientnet_lite0",
        "vit_tiny",
        "vit_small",
        "vig_tiny",
        "vig_small",
    ] = "resnet18"
    streams: tuple[Stream, ...] = ("rgb",)
    hidden: Annotated[int, within(0, 2**16)] = 128
    """Width of the layer after the streams are joined; 0: none, as in the paper's ViT."""
    dropout: float = 0.0
    width: Width | None = None
    """Of a ResNet's first stage; None: its usual one."""
    patch_size: Side | None = None
    """Of a ViT or ViG; None: 16."""
    depth: Depth | None = None
    """Blocks of a ViT or ViG; None: 12."""
    remat: bool = False

    def options(self) -> dict[str, Any]:
        """Arguments of the model."""
        given = {name: getattr(self, name) for name in ("width", "patch_size", "depth")}
        backbone = {name: value for name, value in given.items() if value is not None}
        own = {name: getattr(self, name) for name in ("backbone", "streams", "hidden", "dropout", "remat")}
        own |= {"widths": dict(self.widths)} if self.widths else {}
        return {"name": "multistream", **own, "backbone_options": backbone}


@dataclass(frozen=True)
class SizeLoss:
    """Of a regression: ``w(y) (alpha |e| + beta e^2 + gamma smoothL1(e))`` on scaled sizes; thresholds in mm."""

    alpha: float = 0.0
    beta: float = 0.0
    gamma: float = 1.0
    threshold1: float = 5.0
    weight1: float = 3.0
    """From `threshold1` to `threshold2`."""
    threshold2: float = 10.0
    weight2: float = 5.0
    """From `threshold2`."""
    reference_inert_weights: bool = False
    """Compare mm with scaled sizes, as the released code does: the weights then never act."""
    clamp_mm: tuple[float, float] = (0.5, 22.0)
    """Predictions are kept in this range, as in the released code; widen it for larger polyps."""


@dataclass(frozen=True)
class PolypExperiment(BaseExperiment):
    """One polyp sizing."""

    data: PolypData = field(default_factory=PolypData)
    model: MultiStream = field(default_factory=MultiStream)
    target: Literal["regression", "binary_10", "binary_5", "tri_class", "ordinal"] = "regression"
    """What is predicted: mm, or a class of size."""
    loss: SizeLoss = field(default_factory=SizeLoss)
    gate_loss: Literal["same", "paper"] = "same"
    """What the gate pass minimises: the loss of the weights, or for a regression the paper's own weighting."""

    default_seeds: ClassVar[int] = 1

    def make_task(self) -> "Task":
        """See `BaseExperiment`."""
        from experiments.endoscopy.size_task import make_task  # needs the endoscopy extra

        return make_task(self)

    def variants(self, streams: tuple[str, ...], folds: tuple[int, ...]) -> list[list[Variant]]:
        """See `BaseExperiment`; without `folds`, all folds of the split file."""
        return polyp_variants(self, streams, folds)


@dataclass(frozen=True)
class PolypTasksExperiment(BaseExperiment):
    """Several questions about a polyp, answered by one network."""

    data: PolypData = field(default_factory=PolypData)
    model: MultiStream = field(default_factory=MultiStream)
    head: Head = field(default_factory=Head)
    tasks: tuple[Literal["size", "size_class", "histology", "site"], ...] = ("size", "size_class", "histology", "site")
    weights: tuple[tuple[str, float], ...] = ()
    """Weight of the loss of a task, by its name; 1 where none is given."""
    loss: SizeLoss = field(default_factory=SizeLoss)
    """Of the task ``size``."""

    default_seeds: ClassVar[int] = 1

    def make_task(self) -> "Task":
        """See `BaseExperiment`."""
        from experiments.endoscopy.polyp_tasks import make_task  # needs the endoscopy extra

        return make_task(self)

    def variants(self, streams: tuple[str, ...], folds: tuple[int, ...]) -> list[list[Variant]]:
        """See `BaseExperiment`; without `folds`, all folds of the split file."""
        return polyp_variants(self, streams, folds)


def polyp_variants(experiment: Any, streams: tuple[str, ...], folds: tuple[int, ...]) -> list[list[Variant]]:
    """A list for each fold, of all in the split file if none is given, with a variant for each set of streams."""
    from experiments.endoscopy.cohort import num_folds

    def variant(names: str, fold: int) -> Variant:
        changed = change(experiment, {"model.streams": tuple(names.split("+")), "data.fold": fold})
        return Variant(changed, names, f"fold-{fold}-")

    streams = streams or ("+".join(experiment.model.streams),)
    return [[variant(names, fold) for names in streams] for fold in folds or range(num_folds(experiment.data.splits))]
