"""Every registered model at a reduced size, with the gate placements that it has: the table of test_registry.py."""

from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import timm_weights

from fsg_jax.gates.gate import Gate
from fsg_jax.models import Stage, create_model

BATCH, CLASSES = 4, 5


@dataclass(frozen=True)
class Reduced:
    """Options of a reduced model.

    Attributes:
      options: arguments of `create_model`; the number of heads, the kind of block and the like stay the variant's.
      placements: further arguments, one entry for each place where the model can have its gates, the default first.
      size: height and width of its images, unequal so that exchanged axes are seen.
      channels: of its images by stream; empty if it takes one image.
      noise: of changes in a training step, times that of other models: norms over the few rows of a batch scale it up.
        Processors round differently; it is about half as much again as the largest that one of them was seen to have.
      shifts: pattern of the leaves that only shift what a 1x1 convolution and BatchNorm then take the mean from, so
        that their gradient is 0 in training.
    """

    options: dict[str, Any]
    placements: tuple[dict[str, Any], ...] = ({},)
    size: tuple[int, int] = (12, 8)
    channels: dict[str, int] = field(default_factory=dict)
    noise: float = 1.0
    shifts: str = "none"


def resnet(**options: Any) -> Reduced:
    placements = tuple({"gate_placement": place} for place in ("stage", "block", "residual", "hidden"))
    return Reduced({"width": 8, **options}, placements, size=(13, 10))


def efficientnet() -> Reduced:
    return Reduced(
        {"stages": (Stage(1, 8, 1, 3, 1), Stage(3, 16, 2, 5, 2)), "stem_features": 8, "features": 16},
        tuple({"gate_placement": place} for place in ("stage", "block", "hidden")),
        size=(16, 12),
        shifts="params/.*/project_bn/bias",
    )


VIT_PLACEMENTS = tuple({"gate_placement": place} for place in ("branch", "hidden"))
OUTPUT_PLACEMENTS = (
    {"gate_placement": "output", "output_gate": "elementwise"},
    {"gate_placement": "output_heads", "output_gate": "headwise"},
)
ALL_PLACEMENTS = (VIT_PLACEMENTS[0], *OUTPUT_PLACEMENTS, VIT_PLACEMENTS[1])
VGG_STAGES = ((1, 2, False), (2, 2, True), (2, 1, True), (2, 1, True))
ATTENTION = {"score": "additive", "normalise": "sigmoid", "dropout": 0.0, "head_dropout": 0.0}


def vgg(shifts: str = "stage.*/conv", **options: Any) -> Reduced:
    options |= {"stages": VGG_STAGES, "tapped": (0, 1, 2), "width": 4, "conv_dropout": (0.0, 0.0)}
    placements = tuple({"gate_placement": place} for place in ("stage", "hidden"))
    return Reduced(options, placements, noise=15.0, shifts=f"params/({shifts})/bias")


STREAM_BACKBONE = {"stage_sizes": (1,), "width": 8}
REDUCED = {
    "resnet18": resnet(stage_sizes=(1, 1)),
    "resnet34": resnet(stage_sizes=(2, 1), stem="imagenet"),
    "resnet50": resnet(stage_sizes=(2, 1), stem="imagenet"),
    "efficientnet_b0": efficientnet(),
    "tf_efficientnet_b0": efficientnet(),
    "efficientnet_lite0": efficientnet(),
    "vgg16": vgg("stage.*/conv|fc", dropout=0.0, head_dropout=0.0),
    "vgg_att": vgg(**ATTENTION, levels=2, query_norm=True),
    "resnet_att": Reduced(
        {"depth": 11, "width": 4, "conv_dropout": 0.0, **ATTENTION, "score": "additive_tanh"},
        tuple({"gate_placement": place} for place in ("stage", "residual", "hidden")),
        noise=5.0,
        shifts="params/g_conv/bias",
    ),
    "vit_tiny": Reduced({"patch_size": 4, "dim": 24, "depth": 2}, ALL_PLACEMENTS),
    "vit_small": Reduced({"patch_size": 4, "dim": 24, "depth": 1}, VIT_PLACEMENTS),
    "vit_base": Reduced({"patch_size": 4, "dim": 24, "depth": 1}, VIT_PLACEMENTS),
    "vig_tiny": Reduced({"patch_size": 4, "dim": 24, "depth": 2}, ALL_PLACEMENTS),
    "vig_small": Reduced({"patch_size": 4, "dim": 24, "depth": 1}, VIT_PLACEMENTS),
    "vig_base": Reduced({"patch_size": 4, "dim": 48, "depth": 1}, VIT_PLACEMENTS),
    "multistream": Reduced(
        {"streams": ("rgb", "depth"), "hidden": 6, "backbone_options": STREAM_BACKBONE},
        (
            {},
            {"backbone_options": {**STREAM_BACKBONE, "gate_placement": "residual"}},
            {"backbone_options": {**STREAM_BACKBONE, "gate_placement": "hidden"}},
        ),
        size=(13, 10),
        channels={"rgb": 3, "depth": 1},
    ),
}


TWINS = (
    *("resnet34", "tf_efficientnet_b0", "efficientnet_lite0", "vgg16"),
    *("vit_small", "vit_base", "vig_small", "vig_base"),
)
"""Models that are another one of the table with other numbers: most of their tests are slow ones."""
RELATIVES = ("resnet50", "resnet_att", "vig_tiny")
"""Models made of parts of others, with test files of their own for what they add: so are most of the tests here."""


def by_family(name: str, *values: Any, also: bool = False, **options: Any) -> Any:
    """A parameter set for `pytest.mark.parametrize`, slow for `TWINS` and `RELATIVES`, and `also` where that holds."""
    slow = (pytest.mark.slow,) if also or name in TWINS + RELATIVES else ()
    return pytest.param(name, *values, marks=slow, **options)


def reduced(name: str, /, gate: Any = Gate, num_classes: int = CLASSES, **options: Any) -> nn.Module:
    return create_model(name, num_classes=num_classes, gate=gate, **{**REDUCED[name].options, **options})


@cache
def inputs(name: str) -> Any:
    """A batch of images by the rule, by stream where the model takes several."""
    draw = partial(timm_weights.images, batch=BATCH, height=REDUCED[name].size[0], width=REDUCED[name].size[1])
    by_stream = {stream: draw(f"{name}/{stream}", channels=c) for stream, c in REDUCED[name].channels.items()}
    return jax.tree.map(jnp.asarray, by_stream or draw(f"{name}/x", channels=3))


def labels() -> np.ndarray:
    return np.arange(BATCH, dtype=np.int32)


def variables(name: str, gate: Any = Gate, num_classes: int = CLASSES, **options: Any) -> dict[str, Any]:
    """Weights by the rule: nothing is at its initial value, and nothing is compiled."""
    return jax.tree.map(jnp.asarray, timm_weights.fill(reduced(name, gate, num_classes, **options), inputs(name)))
