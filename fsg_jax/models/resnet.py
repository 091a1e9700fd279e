"""Residual networks with gates by injection (He et al. 2016; Roffo et al. 2024)."""

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jax.nn import initializers
from jaxtyping import Array, Float

from fsg_jax._checks import check_choice, check_integer, check_positive
from fsg_jax.models.arguments import check_factory, check_images
from fsg_jax.models.layers import FeatureMaps, ModuleDef, apply_gate, fan_in_uniform

STEMS = ("cifar", "imagenet")
GATE_PLACEMENTS = ("stage", "block", "residual")

BatchNorm = partial(nn.BatchNorm, momentum=0.9, epsilon=1e-5)


class ResidualBlock(nn.Module):
    """``y = relu(shortcut(x) + residual(x))``; a subclass gives `residual`.

    Attributes:
      features: channels inside the block; the output has ``features * expansion``.
      strides: spatial stride of the block.
      conv, norm: factories, see `ResNet`.
      gate: factory of the gate on ``y``, or None.
      residual_gate: factory of the gate on ``residual(x)``, or None.
      zero_init: start with ``residual(x) = 0``: the last norm's scale is 0.
    """

    features: int
    strides: int
    conv: ModuleDef
    norm: ModuleDef
    gate: ModuleDef | None = None
    residual_gate: ModuleDef | None = None
    zero_init: bool = False

    expansion: ClassVar[int] = 1

    def residual(self, x: FeatureMaps, norm: ModuleDef) -> FeatureMaps:
        """The residual branch up to its last norm."""
        raise NotImplementedError

    def last_norm(self, norm: ModuleDef) -> ModuleDef:
        """`norm`, with its scale starting at 0 if the block is asked to."""
        return partial(norm, scale_init=initializers.zeros) if self.zero_init else norm

    @nn.compact
    def __call__(self, x: FeatureMaps, train: bool = False) -> FeatureMaps:
        """Maps (batch, height, width, channels) to the output, its height and width divided by `strides`."""
        norm = partial(self.norm, use_running_average=not train)
        y = apply_gate(self.residual_gate, self.residual(x, norm), name="gate", train=train)
        if self.strides != 1 or x.shape[-1] != y.shape[-1]:
            x = self.conv(y.shape[-1], (1, 1), strides=self.strides, name="downsample_conv")(x)
            x = norm(name="downsample_bn")(x)
        return apply_gate(self.gate, nn.relu(x + y), name="gate", train=train)


class BasicBlock(ResidualBlock):
    """Two 3x3 convolutions (He et al. 2016, figure 5 left)."""

    def residual(self, x: FeatureMaps, norm: ModuleDef) -> FeatureMaps:
        """Conv, norm, relu, conv, norm."""
        x = self.conv(self.features, (3, 3), strides=self.strides, padding=1, name="conv1")(x)
        x = nn.relu(norm(name="bn1")(x))
        x = self.conv(self.features, (3, 3), padding=1, name="conv2")(x)
        return self.last_norm(norm)(name="bn2")(x)


class Bottleneck(ResidualBlock):
    """1x1, 3x3, 1x1 convolutions (He et al. 2016, figure 5 right); stride on the 3x3, as in torchvision."""

    expansion: ClassVar[int] = 4

    def residual(self, x: FeatureMaps, norm: ModuleDef) -> FeatureMaps:
        """Conv, norm, relu, conv, norm, relu, conv, norm."""
        x = nn.relu(norm(name="bn1")(self.conv(self.features, (1, 1), name="conv1")(x)))
        x = self.conv(self.features, (3, 3), strides=self.strides, padding=1, name="conv2")(x)
        x = nn.relu(norm(name="bn2")(x))
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
        al. 2018).
      dtype: of the computation up to the pooling.
      remat: recompute each block in the backward pass; same variables, less memory.
      zero_init_residual: every block starts as its shortcut.
      conv: factory called as ``conv(features, kernel_size, strides=, padding=, use_bias=, kernel_init=,
        dtype=, name=)``; `strides` and `padding` are left out where they are those of `flax.linen.Conv`.
      norm: factory called as ``norm(use_running_average=, dtype=, name=)``, with ``scale_init=`` too if
        `zero_init_residual`.

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

    def __post_init__(self) -> None:
        """Checks the attributes."""
        check_integer("num_classes", self.num_classes, 0)
        check_positive(width=self.width, stages=len(self.stage_sizes))
        check_positive(**{f"stage_sizes[{i}]": size for i, size in enumerate(self.stage_sizes)})
        check_choice("stem", self.stem, STEMS)
        check_choice("gate_placement", self.gate_placement, GATE_PLACEMENTS)
        for argument in ("gate", "conv", "norm"):
            check_factory(argument, getattr(self, argument))
        super().__post_init__()

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
            zero_init=self.zero_init_residual,
        )
        for stage, blocks in enumerate(self.stage_sizes):
            for i in range(blocks):
                strides = 2 if stage > 0 and i == 0 else 1
                x = block(features=self.width * 2**stage, strides=strides, name=f"layer{stage + 1}_{i}")(x, train)
            x = apply_gate(gates.get("stage"), x, name=f"gate{stage + 1}", train=train)

        x = x.astype(jnp.float32).mean((1, 2))
        return nn.Dense(self.num_classes, kernel_init=fan_in_uniform, name="head")(x) if self.num_classes else x


RESNETS: dict[str, dict[str, Any]] = {
    "resnet18": {"stage_sizes": (2, 2, 2, 2), "block": BasicBlock},
    "resnet34": {"stage_sizes": (3, 4, 6, 3), "block": BasicBlock},
    "resnet50": {"stage_sizes": (3, 4, 6, 3), "block": Bottleneck},
}
"""Arguments of the named variants; source: He et al. 2016, table 1."""
