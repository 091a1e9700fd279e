"""EfficientNet with gates by injection (Tan & Le 2019; Roffo et al. 2024)."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from flax.core import FrozenDict
from jax.nn import initializers
from jaxtyping import Array, Float

from fsg_jax._checks import check_choice, check_integer, check_positive, check_rates
from fsg_jax.gates.channel_attention import pool_channels, scale_channels
from fsg_jax.gates.sites import Shortcut, Site, Use, check_linear, factory_of
from fsg_jax.models.arguments import check_factory, check_images, check_widths
from fsg_jax.models.layers import DropPath, FeatureMaps, ModuleDef, apply_gate, fan_in_uniform
from fsg_jax.models.norms import BATCH_NORMS, NORMS
from fsg_jax.models.resnet import BatchNorm

GATE_PLACEMENTS = ("stage", "block", "hidden")
"""Gates after the stages, after the blocks, or on the expanded channels inside."""
SQUEEZE_RATIO = 0.25
ACTIVATIONS = {"silu": nn.silu, "relu6": nn.relu6}
PADDINGS = ("symmetric", "same")

TFBatchNorm = partial(nn.BatchNorm, momentum=0.9, epsilon=1e-3)
"""BatchNorm with the epsilon of weights that were trained with TensorFlow; momentum as in timm."""

he_fan_out = initializers.variance_scaling(2.0, "fan_out", "normal")
# A depthwise kernel has one input and one output channel a group: its fan-out is the fan-in Flax counts.
he_depthwise = initializers.variance_scaling(2.0, "fan_in", "normal")


class Stage(NamedTuple):
    """A row of Tan & Le 2019, table 1: `blocks` of `MBConv`, of which the first has the stride."""

    expansion: int
    features: int
    blocks: int
    kernel_size: int
    strides: int


def make_conv(
    make: ModuleDef,
    features: int,
    size: int,
    strides: int = 1,
    groups: int = 1,
    padding: str = "symmetric",
    **options: Any,
) -> nn.Module:
    """A convolution without bias, padded as in `EfficientNet`, that starts by He's fan-out rule."""
    init = he_depthwise if groups > 1 else he_fan_out
    options |= {"padding": "SAME" if padding == "same" else size // 2, "feature_group_count": groups}
    return make(features, (size, size), strides=strides, use_bias=False, kernel_init=init, **options)


class Squeeze(nn.Module):
    """``y = x * sigmoid(W2 act(W1 mean(x) + b1) + b2)``: the squeeze-and-excitation of the backbone itself."""

    hidden: int
    activation: str = "silu"

    @nn.compact
    def __call__(self, x: FeatureMaps) -> FeatureMaps:
        """The same shape and dtype as `x`; computed in float32."""
        pooled = pool_channels(x, -1)
        s = ACTIVATIONS[self.activation](nn.Dense(self.hidden, kernel_init=he_fan_out, name="fc1")(pooled))
        s = nn.sigmoid(nn.Dense(x.shape[-1], kernel_init=he_fan_out, name="fc2")(s))
        return scale_channels(x, s, -1)


class MBConv(nn.Module):
    """Inverted residual: expand (1x1), depthwise, squeeze-and-excitation, project (1x1), plus `x` where it fits.

    Sandler et al. 2018 with Hu et al. 2018. No expansion if `expansion` is 1; the squeezed width is a quarter of
    the channels of the input. `hidden_gate` makes the gate before the squeeze-and-excitation, if there is an expansion,
    and `hidden` is the number of expanded channels if it is not that of `expansion`. Other attributes as in
    `EfficientNet`.
    """

    features: int
    expansion: int
    kernel_size: int
    strides: int
    drop_path: float = 0.0
    gate: ModuleDef | None = None
    hidden_gate: ModuleDef | None = None
    hidden: int | None = None
    norm: ModuleDef = BatchNorm
    dtype: Any = jnp.float32
    squeeze: bool = True
    activation: str = "silu"
    padding: str = "symmetric"
    conv: ModuleDef = nn.Conv

    @nn.compact
    def __call__(self, x: FeatureMaps, train: bool = False) -> FeatureMaps:
        """Maps to (batch, height / strides, width / strides, features), sizes rounded up."""
        act = ACTIVATIONS[self.activation]
        conv = partial(make_conv, self.conv, padding=self.padding, dtype=self.dtype)
        norm = partial(self.norm, use_running_average=not train, dtype=self.dtype)
        channels = x.shape[-1]
        hidden = self.hidden or channels * self.expansion
        y = x
        if self.expansion != 1:
            y = act(norm(name="expand_bn")(conv(hidden, 1, name="expand_conv")(y)))
        y = conv(hidden, self.kernel_size, self.strides, groups=hidden, name="depthwise_conv")(y)
        y = act(norm(name="depthwise_bn")(y))
        if self.expansion != 1:
            y = apply_gate(self.hidden_gate, y, name="gate1", train=train)
        if self.squeeze:
            y = Squeeze(max(1, round(channels * SQUEEZE_RATIO)), self.activation, name="se")(y)
        y = norm(name="project_bn")(conv(self.features, 1, name="project_conv")(y))
        if self.strides == 1 and channels == self.features:
            y = x + DropPath(self.drop_path, name="drop_path")(y, train=train)
        return apply_gate(self.gate, y, name="gate", train=train)


class EfficientNet(nn.Module):
    """EfficientNet with an optional gate after each stage or each block.

    ``efficientnet_b0`` pads symmetrically and its BatchNorm has epsilon 1e-5 and momentum 0.9, as in timm;
    ``tf_efficientnet_b0`` and ``efficientnet_lite0`` (timm's ``tf_efficientnet_lite0``) pad asymmetrically and have
    epsilon 1e-3, as the original, whose momentum is 0.99. Convolutions start by He's fan-out rule. Parameters and batch
    statistics are float32.

    Attributes:
      num_classes: logits; 0 gives the pooled features instead and makes no head.
      stages: the rows of the architecture.
      stem_features: channels of the stem, a 3x3 convolution of stride 2.
      features: channels of the last 1x1 convolution, the pooled features.
      gate: factory, ``gate(name=...)``, of modules called as ``module(x, train=train)``; None makes none.
      gate_placement: ``"stage"``, on the output of each stage (Roffo et al. 2024); ``"block"``, on that of each
        block, after its shortcut; ``"hidden"``, inside the blocks with an expansion, before the
        squeeze-and-excitation: what `fsg_jax.prune` can remove.
      dropout: rate on the pooled features.
      drop_path: stochastic depth; block k of n, from 0, is dropped with the rate ``drop_path * k / n`` if it has
        a shortcut.
      dtype: of the computation up to the pooling, save the squeeze-and-excitation weights, which are float32.
      remat: recompute each block in the backward pass; same variables, less memory.
      norm: factory called as ``norm(use_running_average=, dtype=, name=)``.
      squeeze: whether blocks have their squeeze-and-excitation; the Lite variants have none.
      activation: ``"silu"`` or ``"relu6"``.
      padding: of convolutions; ``"symmetric"``, half of the kernel on every side; ``"same"``, TensorFlow's rule, which
        at stride 2 pads even sizes more at the bottom and at the right.
      widths: expanded channels of blocks where they are not those of the stage, by the name that the gate there has in
        the placement ``"hidden"``, e.g. ``{"stage2_0/gate1": 64}``.
      conv: factory of the convolutions, such as ``nn.Conv`` or a partial of it with another ``conv_general_dilated``;
        that of `fsg_jax.models.convolution` is much faster on a CPU.

    Raises:
      ValueError: on construction, for an attribute out of its range.
    """

    num_classes: int
    stages: Sequence[Stage]
    stem_features: int = 32
    features: int = 1280
    gate: ModuleDef | None = None
    gate_placement: str = "stage"
    dropout: float = 0.0
    drop_path: float = 0.0
    dtype: Any = jnp.float32
    remat: bool = False
    norm: ModuleDef = BatchNorm
    squeeze: bool = True
    activation: str = "silu"
    padding: str = "symmetric"
    widths: Mapping[str, int] = FrozenDict()
    conv: ModuleDef = nn.Conv

    def __post_init__(self) -> None:
        """Checks the attributes."""
        check_integer("num_classes", self.num_classes, 0)
        check_positive(stages=len(self.stages), stem_features=self.stem_features, features=self.features)
        for i, stage in enumerate(self.stages):
            check_positive(**{f"stages[{i}].{field}": value for field, value in stage._asdict().items()})
        check_rates(dropout=self.dropout, drop_path=self.drop_path)
        check_choice("gate_placement", self.gate_placement, GATE_PLACEMENTS)
        check_choice("activation", self.activation, ACTIVATIONS)
        check_choice("padding", self.padding, PADDINGS)
        check_factory("gate", self.gate)
        check_factory("norm", self.norm)
        check_factory("conv", self.conv)
        check_widths(self.widths, [f"{name}/gate1" for name, stage, *_ in self.blocks if stage.expansion != 1])
        super().__post_init__()

    @property
    def num_features(self) -> int:
        """Number of pooled features."""
        return self.features

    @property
    def blocks(self) -> list[tuple[str, Stage, int, bool]]:
        """Name, stage, input channels and whether there is a shortcut, of each block."""
        channels, found = self.stem_features, []
        for index, stage in enumerate(self.stages, 1):
            for i in range(stage.blocks):
                shortcut = channels == stage.features and (stage.strides == 1 or i > 0)
                found.append((f"stage{index}_{i}", stage, channels, shortcut))
                channels = stage.features
        return found

    def gate_sites(self) -> dict[str, Site]:
        """Which weights make and read the channels of each gate; see `fsg_jax.gates.sites`.

        Raises:
          ValueError: convolutions or norms of which it is not known.
        """
        check_linear("conv", self.conv, nn.Conv)
        check_linear("norm", self.norm, *NORMS)
        sites: dict[str, Site] = {}
        for k, (name, stage, channels, shortcut) in enumerate(self.blocks):
            if stage.expansion != 1:
                parts = ("expand_conv", "expand_bn", "depthwise_conv", "depthwise_bn", *["se/fc2"] * self.squeeze)
                made = tuple(Use(f"{name}/{part}", "out") for part in parts)
                made = made if factory_of(self.norm) in BATCH_NORMS else ()  # others mix the channels
                read = tuple(Use(f"{name}/{part}", "in") for part in ("project_conv", *["se/fc1"] * self.squeeze))
                width = self.widths.get(f"{name}/gate1", channels * stage.expansion)
                sites[f"{name}/gate1"] = Site(width, read, made=made)
            if here := self._gate_after(k):
                end = Site(stage.features, (Use(f"{name}/project_bn", "out"),))
                sites[here] = self._followed(k) if shortcut else end
        return sites

    def _gate_after(self, k: int) -> str | None:
        """Name of the gate after block number `k`, if there is one."""
        name, *_ = self.blocks[k]
        stage = name.removeprefix("stage").split("_")[0]
        last = not any(later.startswith(f"stage{stage}_") for later, *_ in self.blocks[k + 1 :])
        return {"block": f"{name}/gate", "stage": f"gate{stage}" if last else None}.get(self.gate_placement)

    def _followed(self, k: int) -> Site:
        """The site of the gate after block number `k`: what reads its map, through the shortcuts that follow."""
        read, branch, channels = [], [], self.blocks[k][1].features
        for j, (name, stage, _, shortcut) in enumerate(self.blocks[k + 1 :], k + 1):
            first = "depthwise_conv" if stage.expansion == 1 else "expand_conv"
            read.append(Use(f"{name}/{first}", "in"))
            if not shortcut:
                return Site(channels, tuple(read))
            branch.append(Use(f"{name}/project_bn", "out"))
            if to := self._gate_after(j):
                return Site(channels, tuple(read), Shortcut(to, tuple(branch), rectified=False))
        return Site(channels, (*read, Use("top_conv", "in")))

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Float[Array, "batch outputs"]:
        """Returns float32 logits, or pooled features if `num_classes` is 0.

        Args:
          x: (batch, height, width, channels), floating point, normalised; any height and width.
          train: normalise with the batch's statistics, update ``"batch_stats"``, and draw dropout and stochastic
            depth from the random stream ``"dropout"``.

        Raises:
          ValueError: `x` has another rank or is not floating point.
        """
        check_images(x)
        act = ACTIVATIONS[self.activation]
        conv = partial(make_conv, self.conv, padding=self.padding, dtype=self.dtype)
        norm = partial(self.norm, use_running_average=not train, dtype=self.dtype)
        gates = {self.gate_placement: self.gate}  # the other places have none
        x = act(norm(name="stem_bn")(conv(self.stem_features, 3, 2, name="stem_conv")(x)))

        make = nn.remat(MBConv, static_argnums=(2,)) if self.remat else MBConv
        places: dict[str, Any] = {"gate": gates.get("block"), "hidden_gate": gates.get("hidden")}
        options: dict[str, Any] = {"squeeze": self.squeeze, "activation": self.activation, "padding": self.padding}
        block = partial(make, norm=self.norm, conv=self.conv, dtype=self.dtype, **places, **options)
        done, total = 0, sum(stage.blocks for stage in self.stages)
        for index, (expansion, features, blocks, size, strides) in enumerate(self.stages, 1):
            for i in range(blocks):
                x = block(
                    features=features,
                    expansion=expansion,
                    kernel_size=size,
                    strides=strides if i == 0 else 1,
                    drop_path=self.drop_path * (done + i) / total,
                    hidden=self.widths.get(f"stage{index}_{i}/gate1"),
                    name=f"stage{index}_{i}",
                )(x, train)
            done += blocks
            x = apply_gate(gates.get("stage"), x, name=f"gate{index}", train=train)

        x = act(norm(name="top_bn")(conv(self.features, 1, name="top_conv")(x)))
        x = pool_channels(x, -1)
        x = nn.Dropout(self.dropout, name="drop")(x, deterministic=not train)
        return nn.Dense(self.num_classes, kernel_init=fan_in_uniform, name="head")(x) if self.num_classes else x


B0 = (
    Stage(1, 16, 1, 3, 1),
    Stage(6, 24, 2, 3, 2),
    Stage(6, 40, 2, 5, 2),
    Stage(6, 80, 3, 3, 2),
    Stage(6, 112, 3, 5, 1),
    Stage(6, 192, 4, 5, 2),
    Stage(6, 320, 1, 3, 1),
)

EFFICIENTNETS: dict[str, dict[str, Any]] = {
    "efficientnet_b0": {"stages": B0},
    "tf_efficientnet_b0": {"stages": B0, "padding": "same", "norm": TFBatchNorm},
    "efficientnet_lite0": {
        "stages": B0,
        "padding": "same",
        "norm": TFBatchNorm,
        "squeeze": False,
        "activation": "relu6",
    },
}
"""Arguments of the named variants; sources: Tan & Le 2019, table 1; for Lite the release of 2020, which has neither
squeeze-and-excitation nor SiLU, so that it can be quantised."""
