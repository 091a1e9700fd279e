"""Pre-activation bottleneck ResNets (He et al. 2016, arXiv 1603.05027) with attention over their maps.

RN-att of Jetley et al. 2018: ResNet-164, whose residual sums at the ends of the stages are the maps.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.core import FrozenDict
from jax.nn import initializers

from fsg_jax._checks import check_choice, check_integer, check_positive, check_rates, expect
from fsg_jax.gates.sites import Site, Use, check_linear, factory_of, widths_below
from fsg_jax.models.arguments import check_factory, check_widths
from fsg_jax.models.layers import FeatureMaps, ModuleDef, apply_gate
from fsg_jax.models.norms import BATCH_NORMS, NORMS
from fsg_jax.models.resnet import BatchNorm
from fsg_jax.models.spatial_attention import AttentiveNetwork, Vectors, linear, scale_init
from fsg_jax.models.vgg import VGGNorm, max_pool

GATE_PLACEMENTS = ("stage", "residual", "hidden")
"""Gates after the stages, at the end of the branches, or inside them."""
EXPANSION = 4

he_fan_out = initializers.variance_scaling(2.0, "fan_out", "normal")


class PreActBottleneck(nn.Module):
    """``y = shortcut + conv3(relu(bn3(conv2(relu(bn2(conv1(relu(bn1(x)))))))))``, 1x1, 3x3 and 1x1.

    The shortcut is ``x``, or where the shape changes a 1x1 convolution of ``relu(bn1(x))``.

    Attributes:
      features: channels inside; the output has four times as many.
      strides: of the 3x3 convolution and of the shortcut.
      conv: a factory, see `PreActResNet`.
      norm: a factory, see `PreActResNet`.
      gate: factory of the gate on the branch, or None.
      hidden_gate: factory of the gates before ``conv2`` and ``conv3``, ``gate1`` and ``gate2``, or None.
      widths: channels at these gates, where they are not `features`.
    """

    features: int
    strides: int
    conv: ModuleDef
    norm: ModuleDef
    gate: ModuleDef | None = None
    hidden_gate: ModuleDef | None = None
    widths: Mapping[str, int] = FrozenDict()

    @nn.compact
    def __call__(self, x: FeatureMaps, train: bool = False) -> FeatureMaps:
        """Maps to (batch, height / strides, width / strides, 4 features), sizes rounded up."""
        norm = partial(self.norm, use_running_average=not train)
        inner = [self.widths.get(f"gate{i}", self.features) for i in (1, 2)]
        active = nn.relu(norm(name="bn1")(x))
        y = nn.relu(norm(name="bn2")(self.conv(inner[0], (1, 1), name="conv1")(active)))
        y = apply_gate(self.hidden_gate, y, name="gate1", train=train)
        y = self.conv(inner[1], (3, 3), strides=self.strides, padding=1, name="conv2")(y)
        y = apply_gate(self.hidden_gate, nn.relu(norm(name="bn3")(y)), name="gate2", train=train)
        y = self.conv(EXPANSION * self.features, (1, 1), name="conv3")(y)
        y = apply_gate(self.gate, y, name="gate", train=train)
        if self.strides != 1 or x.shape[-1] != y.shape[-1]:
            x = self.conv(y.shape[-1], (1, 1), strides=self.strides, name="downsample_conv")(active)
        return x + y


class PreActResNet(AttentiveNetwork):
    """Pre-activation bottleneck ResNet whose class is told from attention over the residual sums of its stages.

    ``g`` comes from the last sum by norm, ReLU, pooling, a 3x3 convolution, its largest values, and a dense layer: of
    that pooling the released code is known to divide 8 pixels by 2 and by 4, which this computes for images of 32, as
    maxima; larger images fit too. Trunk convolutions have no bias and start by He's fan-out rule. Dropout before the
    heads is 0.3. Attributes beside those of `AttentiveNetwork`:

    Attributes:
      depth: ``9 n + 2``, n blocks in each of three stages.
      width: channels of the stem and inside the blocks of the first stage; every later stage doubles them.
      conv_dropout: rate behind the convolution on the way to ``g``.
      taps: of no effect: no pooling follows a sum.
      gate_placement: ``"stage"``, on the sum at the end of each stage; ``"residual"``, on each branch before the sum;
        ``"hidden"``, inside the branches, after each ReLU: what `fsg_jax.prune` can remove.
      norm: of the trunk; factory called as ``norm(use_running_average=, dtype=, name=)``, with ``scale_init=`` too
        for the initial ``"reference"``.
      widths: channels inside the blocks, by the name that the gate there has in the placement ``"hidden"``, e.g.
        ``{"layer1_0/gate1": 10}``.
    """

    head_dropout: float = 0.3
    depth: int = 164
    width: int = 16
    conv_dropout: float = 0.4
    norm: ModuleDef = BatchNorm
    widths: Mapping[str, int] = FrozenDict()

    def __post_init__(self) -> None:
        """Checks the attributes."""
        check_integer("depth", self.depth, 11)
        expect(self.depth % 9 == 2, "depth", "9 n + 2 layers", self.depth)
        check_positive(width=self.width)
        check_rates(conv_dropout=self.conv_dropout)
        check_choice("gate_placement", self.gate_placement, GATE_PLACEMENTS)
        check_factory("norm", self.norm)
        check_widths(self.widths, [f"{name}/gate{i}" for _, name in self.blocks for i in (1, 2)])
        super().__post_init__()

    @property
    def query_features(self) -> int:
        """Channels of ``g``."""
        return self.level_features(3)

    def level_features(self, level: int) -> int:
        """Channels of the map of a level, from 1."""
        return EXPANSION * self.width * 2 ** (level - 1)

    @property
    def least_size(self) -> int:
        """The smallest height and width of images: 2 pixels before each of three halvings."""
        return 5

    @property
    def blocks(self) -> list[tuple[int, str]]:
        """Stage, from 1, and name of each block."""
        return [(s, f"layer{s}_{i}") for s in (1, 2, 3) for i in range((self.depth - 2) // 9)]

    def gate_sites(self) -> dict[str, Site]:
        """Which weights make and read the channels of each gate; see `fsg_jax.gates.sites`.

        The sum at the end of a stage is read by a norm, which takes no factor: its gate keeps a fixed scale.

        Raises:
          ValueError: convolutions or norms of which it is not known.
        """
        check_linear("conv", self.conv, nn.Conv)
        check_linear("norm", self.norm, *NORMS)
        sites: dict[str, Site] = {}
        for stage, name in self.blocks:
            features, own = self.width * 2 ** (stage - 1), widths_below(self.widths, name)
            for i in (1, 2):
                made: tuple[Use, ...] = (Use(f"{name}/conv{i}", "out"), Use(f"{name}/bn{i + 1}", "out"))
                made = made if factory_of(self.norm) in BATCH_NORMS else ()  # others mix the channels
                read = (Use(f"{name}/conv{i + 1}", "in"),)
                sites[f"{name}/gate{i}"] = Site(own.get(f"gate{i}", features), read, made=made)
            if self.gate_placement == "residual":
                sites[f"{name}/gate"] = Site(EXPANSION * features, (Use(f"{name}/conv3", "out"),))
            elif self.gate_placement == "stage":
                sites[f"gate{stage}"] = Site(EXPANSION * features)
        return sites

    def trunk(self, x: FeatureMaps, train: bool) -> tuple[dict[int, FeatureMaps], Vectors]:
        """See `AttentiveNetwork`."""
        conv = partial(self.conv, use_bias=False, kernel_init=he_fan_out, dtype=self.dtype)
        scale = {} if self.initial == "scaled" else {"scale_init": scale_init(self.initial)}
        norm = partial(self.norm, dtype=self.dtype, **scale)
        gates = {self.gate_placement: self.gate}  # the other places have none
        block = partial(
            nn.remat(PreActBottleneck, static_argnums=(2,)) if self.remat else PreActBottleneck,
            conv=conv,
            norm=norm,
            gate=gates.get("residual"),
            hidden_gate=gates.get("hidden"),
        )
        taps: dict[int, FeatureMaps] = {}
        x = conv(self.width, (3, 3), padding=1, name="conv1")(x)
        for stage, name in self.blocks:
            strides = 2 if stage > 1 and name.endswith("_0") else 1
            features, widths = self.width * 2 ** (stage - 1), widths_below(self.widths, name)
            x = block(features=features, strides=strides, widths=widths, name=name)(x, train)
            if name == f"layer{stage}_{(self.depth - 2) // 9 - 1}":
                x = apply_gate(gates.get("stage"), x, name=f"gate{stage}", train=train)
                x = taps[stage] = self.join(x, stage)
        x = max_pool(nn.relu(norm(use_running_average=not train, name="bn")(x)))
        last = partial(VGGNorm, use_running_average=not train, dtype=self.dtype, **scale)
        x = self.conv(x.shape[-1], (3, 3), padding=1, kernel_init=he_fan_out, dtype=self.dtype, name="g_conv")(x)
        x = nn.Dropout(self.conv_dropout, name="g_drop")(nn.relu(last(name="g_bn")(x)), deterministic=not train)
        pooled = x.astype(jnp.promote_types(x.dtype, jnp.float32)).max((1, 2))
        pooled = nn.Dropout(self.dropout, name="g_fc_drop")(pooled, deterministic=not train)
        return taps, linear(self.query_features, pooled.shape[-1], name="g_fc")(pooled)


PREACT_RESNETS: dict[str, dict[str, Any]] = {"resnet_att": {}}
"""Arguments of the named variants."""
