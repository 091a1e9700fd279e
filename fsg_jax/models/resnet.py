"""Residual networks with gates by injection (He et al. 2016; Roffo et al. 2024)."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from flax.core import FrozenDict
from jax.nn import initializers
from jaxtyping import Array, Float

from fsg_jax._checks import check_choice, check_integer, check_positive, expect
from fsg_jax.gates.channel_attention import pool_channels
from fsg_jax.gates.sites import Shortcut, Site, Use, check_linear, factory_of, widths_below
from fsg_jax.models.arguments import check_factory, check_images, check_widths
from fsg_jax.models.layers import FeatureMaps, ModuleDef, apply_gate, fan_in_uniform
from fsg_jax.models.norms import BATCH_NORMS, NORMS

STEMS = ("cifar", "imagenet")
GATE_PLACEMENTS = ("stage", "block", "residual", "hidden")
"""Gates after the stages, after the blocks, at the end of the branches, or inside them."""

BatchNorm = partial(nn.BatchNorm, momentum=0.9, epsilon=1e-5)


class ResidualBlock(nn.Module):
    """``y = relu(shortcut(x) + residual(x))``; a subclass gives `residual`.

    Attributes:
      features: channels inside the block; the output has ``features * expansion``.
      strides: spatial stride of the block.
      conv: a factory, see `ResNet`.
      norm: a factory, see `ResNet`.
      gate: factory of the gate on ``y``, or None.
      residual_gate: factory of the gate on ``residual(x)``, or None.
      hidden_gate: factory of the gates inside the residual branch, each after a ReLU, or None.
      widths: channels at the gates inside the residual branch, by name, where they are not `features`.
      zero_init: start with ``residual(x) = 0``: the last norm's scale is 0.
    """

    features: int
    strides: int
    conv: ModuleDef
    norm: ModuleDef
    gate: ModuleDef | None = None
    residual_gate: ModuleDef | None = None
    hidden_gate: ModuleDef | None = None
    widths: Mapping[str, int] = FrozenDict()
    zero_init: bool = False

    expansion: ClassVar[int] = 1
    convolutions: ClassVar[int] = 0
    """Of the residual branch, if it is ``conv1, bn1, relu, gate1, conv2, bn2, ...`` and ends in a norm; 0 otherwise."""

    def residual(self, x: FeatureMaps, norm: ModuleDef, train: bool) -> FeatureMaps:
        """The residual branch up to its last norm."""
        raise NotImplementedError

    def hidden(self, x: FeatureMaps, index: int, norm: ModuleDef, train: bool) -> FeatureMaps:
        """Norm, ReLU and gate number `index` inside the residual branch."""
        x = nn.relu(norm(name=f"bn{index}")(x))
        return apply_gate(self.hidden_gate, x, name=f"gate{index}", train=train)

    def inner(self, index: int) -> int:
        """Channels at gate number `index`."""
        return self.widths.get(f"gate{index}", self.features)

    def last_norm(self, norm: ModuleDef) -> ModuleDef:
        """`norm`, with its scale starting at 0 if the block is asked to."""
        return partial(norm, scale_init=initializers.zeros) if self.zero_init else norm

    @nn.compact
    def __call__(self, x: FeatureMaps, train: bool = False) -> FeatureMaps:
        """Maps (batch, height, width, channels) to the output, its height and width divided by `strides`."""
        norm = partial(self.norm, use_running_average=not train)
        y = apply_gate(self.residual_gate, self.residual(x, norm, train), name="gate", train=train)
        if self.strides != 1 or x.shape[-1] != y.shape[-1]:
            x = self.conv(y.shape[-1], (1, 1), strides=self.strides, name="downsample_conv")(x)
            x = norm(name="downsample_bn")(x)
        return apply_gate(self.gate, nn.relu(x + y), name="gate", train=train)


class BasicBlock(ResidualBlock):
    """Two 3x3 convolutions (He et al. 2016, figure 5 left)."""

    convolutions: ClassVar[int] = 2

    def residual(self, x: FeatureMaps, norm: ModuleDef, train: bool) -> FeatureMaps:
        """Conv, norm, relu, conv, norm."""
        x = self.conv(self.inner(1), (3, 3), strides=self.strides, padding=1, name="conv1")(x)
        x = self.hidden(x, 1, norm, train)
        x = self.conv(self.features, (3, 3), padding=1, name="conv2")(x)
        return self.last_norm(norm)(name="bn2")(x)


class Bottleneck(ResidualBlock):
    """1x1, 3x3, 1x1 convolutions (He et al. 2016, figure 5 right); stride on the 3x3, as in torchvision."""

    expansion: ClassVar[int] = 4
    convolutions: ClassVar[int] = 3

    def residual(self, x: FeatureMaps, norm: ModuleDef, train: bool) -> FeatureMaps:
        """Conv, norm, relu, conv, norm, relu, conv, norm."""
        x = self.hidden(self.conv(self.inner(1), (1, 1), name="conv1")(x), 1, norm, train)
        x = self.conv(self.inner(2), (3, 3), strides=self.strides, padding=1, name="conv2")(x)
        x = self.hidden(x, 2, norm, train)
        x = self.conv(self.features * self.expansion, (1, 1), name="conv3")(x)
        return self.last_norm(norm)(name="bn3")(x)


class ResNet(nn.Module):
    """Residual network with an optional gate after each stage, each block or on each residual branch.

    Padding is explicit and symmetric and convolutions start by He's fan-out rule, both as in torchvision.
    Parameters and batch statistics are float32. BatchNorm averages the biased batch variance over time,
    PyTorch the unbiased one.

    Attributes:
      stage_sizes: blocks in each stage.
      block: `BasicBlock`, `Bottleneck`, or another `ResidualBlock`.
      num_classes: logits; 0 gives the pooled features instead and makes no head.
      width: channels of the stem and of the first stage; every later stage doubles them.
      stem: ``"cifar"``, 3x3 convolution of stride 1; ``"imagenet"``, 7x7 convolution of stride 2, then 3x3
        max-pooling of stride 2.
      gate: factory, ``gate(name=...)``, of modules called as ``module(x, train=train)``; None makes none.
      gate_placement: ``"stage"``, on the post-ReLU map of each stage (Roffo et al. 2024); ``"block"``, on
        that of each block; ``"residual"``, on each residual branch before the sum, as in SE-ResNet (Hu et
        al. 2018); ``"hidden"``, inside the residual branches, after each ReLU: what `fsg_jax.prune` can remove.
      dtype: of the computation up to the pooling.
      remat: recompute each block in the backward pass; same variables, less memory.
      zero_init_residual: every block starts as its shortcut.
      conv: factory called as ``conv(features, kernel_size, strides=, padding=, use_bias=, kernel_init=,
        dtype=, name=)``; `strides` and `padding` are left out where they are those of `flax.linen.Conv`.
      norm: factory called as ``norm(use_running_average=, dtype=, name=)``, with ``scale_init=`` too if
        `zero_init_residual`.
      widths: channels inside the blocks where they are not those of the stage, by the name that the gate there has
        in the placement ``"hidden"``, e.g. ``{"layer1_0/gate1": 40}``.

    Raises:
      ValueError: on construction, for an attribute out of its range.
    """

    shared_prefix: ClassVar[bool] = True
    """Sequential routing computes what comes before the first gate once: 1.46 instead of 1.56 times a plain step."""

    stage_sizes: Sequence[int]
    block: type[ResidualBlock]
    num_classes: int
    width: int = 64
    stem: str = "cifar"
    gate: ModuleDef | None = None
    gate_placement: str = "stage"
    dtype: Any = jnp.float32
    remat: bool = False
    zero_init_residual: bool = False
    conv: ModuleDef = nn.Conv
    norm: ModuleDef = BatchNorm
    widths: Mapping[str, int] = FrozenDict()

    def __post_init__(self) -> None:
        """Checks the attributes."""
        check_integer("num_classes", self.num_classes, 0)
        check_positive(width=self.width, stages=len(self.stage_sizes))
        check_positive(**{f"stage_sizes[{i}]": size for i, size in enumerate(self.stage_sizes)})
        check_choice("stem", self.stem, STEMS)
        check_choice("gate_placement", self.gate_placement, GATE_PLACEMENTS)
        for argument in ("gate", "conv", "norm"):
            check_factory(argument, getattr(self, argument))
        check_widths(self.widths, [f"{n}/gate{i}" for _, n in self.blocks for i in range(1, self.block.convolutions)])
        super().__post_init__()

    @property
    def num_features(self) -> int:
        """Number of pooled features."""
        return self.width * 2 ** (len(self.stage_sizes) - 1) * self.block.expansion

    @property
    def blocks(self) -> list[tuple[int, str]]:
        """Stage, from 0, and name of each block."""
        return [(s, f"layer{s + 1}_{i}") for s, blocks in enumerate(self.stage_sizes) for i in range(blocks)]

    def gate_sites(self) -> dict[str, Site]:
        """Which weights make and read the channels of each gate; see `fsg_jax.gates.sites`.

        Raises:
          ValueError: convolutions or norms of which it is not known, or a block that does not tell its `convolutions`.
        """
        check_linear("conv", self.conv, nn.Conv)
        check_linear("norm", self.norm, *NORMS)
        n, blocks, sites = self.block.convolutions, self.blocks, {}
        expect(n, f"{self.block.__name__}.convolutions", "the number of convolutions", n)
        end = (
            Site(self.num_features, (Use("head", "in"),)) if self.num_classes else Site(self.num_features, exposed=True)
        )
        for (stage, name), (next_stage, following) in zip(blocks, [*blocks[1:], (None, "")], strict=True):
            features, widths = self.width * 2**stage, widths_below(self.widths, name)
            for i in range(1, n):
                made = tuple(Use(f"{name}/{part}{i}", "out") for part in ("conv", "bn"))
                made = made if factory_of(self.norm) in BATCH_NORMS else ()  # others mix the channels
                read = (Use(f"{name}/conv{i + 1}", "in"),)
                sites[f"{name}/gate{i}"] = Site(widths.get(f"gate{i}", features), read, made=made)
            channels, read = features * self.block.expansion, (Use(f"{following}/conv1", "in"),)
            if self.gate_placement == "residual":
                sites[f"{name}/gate"] = Site(channels, (Use(f"{name}/bn{n}", "out"),))
            place = f"{name}/gate" if self.gate_placement == "block" else f"gate{stage + 1}"
            if next_stage is None:
                sites[place] = end
            elif next_stage != stage:
                sites[place] = Site(channels, (*read, Use(f"{following}/downsample_conv", "in")))
            elif self.gate_placement == "block":
                shortcut = Shortcut(f"{following}/gate", (Use(f"{following}/bn{n}", "out"),), rectified=True)
                sites[place] = Site(channels, read, shortcut)
        return sites

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Float[Array, "batch outputs"]:
        """Returns float32 logits, or pooled features if `num_classes` is 0.

        Args:
          x: (batch, height, width, channels), floating point, normalised; any height and width.
          train: normalise with the batch's statistics and update ``"batch_stats"``.

        Raises:
          ValueError: `x` has another rank or is not floating point.
        """
        check_images(x)
        he = initializers.variance_scaling(2.0, "fan_out", "normal")
        conv = partial(self.conv, use_bias=False, kernel_init=he, dtype=self.dtype)
        norm = partial(self.norm, dtype=self.dtype)
        gates = {self.gate_placement: self.gate}  # the other places have none

        large = self.stem == "imagenet"
        size, strides = (7, 2) if large else (3, 1)
        x = conv(self.width, (size, size), strides=strides, padding=size // 2, name="conv1")(x)
        x = nn.relu(norm(use_running_average=not train, name="bn1")(x))
        x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1))) if large else x

        block = partial(
            nn.remat(self.block, static_argnums=(2,)) if self.remat else self.block,
            conv=conv,
            norm=norm,
            gate=gates.get("block"),
            residual_gate=gates.get("residual"),
            hidden_gate=gates.get("hidden"),
            zero_init=self.zero_init_residual,
        )
        for stage, blocks in enumerate(self.stage_sizes):
            for i in range(blocks):
                name, strides = f"layer{stage + 1}_{i}", 2 if stage > 0 and i == 0 else 1
                widths = widths_below(self.widths, name)
                x = block(features=self.width * 2**stage, strides=strides, widths=widths, name=name)(x, train)
            x = apply_gate(gates.get("stage"), x, name=f"gate{stage + 1}", train=train)

        x = pool_channels(x, -1)
        return nn.Dense(self.num_classes, kernel_init=fan_in_uniform, name="head")(x) if self.num_classes else x


RESNETS: dict[str, dict[str, Any]] = {
    "resnet18": {"stage_sizes": (2, 2, 2, 2), "block": BasicBlock},
    "resnet34": {"stage_sizes": (3, 4, 6, 3), "block": BasicBlock},
    "resnet50": {"stage_sizes": (3, 4, 6, 3), "block": Bottleneck},
}
"""Arguments of the named variants; source: He et al. 2016, table 1."""
