"""VGG with BatchNorm, and with attention over its maps (Jetley et al. 2018), with gates by injection."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.core import FrozenDict
from jax.nn import initializers

from fsg_jax._checks import check_choice, check_integer, check_positive, check_rates, expect
from fsg_jax.gates.channel_attention import before_reduction, pool_channels
from fsg_jax.gates.sites import Site, Use, check_linear, factory_of
from fsg_jax.models.arguments import check_factory, check_widths
from fsg_jax.models.efficientnet import TFBatchNorm
from fsg_jax.models.layers import FeatureMaps, ModuleDef, apply_gate
from fsg_jax.models.norms import BATCH_NORMS, NORMS
from fsg_jax.models.spatial_attention import AttentiveNetwork, Vectors, linear, scale_init

GATE_PLACEMENTS = ("stage", "hidden")
"""Gates on the map of each stage, or behind the convolutions inside."""

VGGNorm = TFBatchNorm
"""BatchNorm of the convolutions with the epsilon of the released code, 1e-3; averages are of the biased variance."""


class ConvUnit(nn.Module):
    """3x3 convolution, norm, gate (if any), ReLU, dropout.

    Attributes:
      features: channels.
      conv: a factory, see `VGG`.
      norm: a factory, see `VGG`.
      gate: factory of the gate before the ReLU, or None.
      dropout: rate.
      initial: of the norm's scale, see `fsg_jax.models.spatial_attention.SpatialAttention`.
      dtype: of the computation.
    """

    features: int
    conv: ModuleDef
    norm: ModuleDef
    gate: ModuleDef | None = None
    dropout: float = 0.0
    initial: str = "scaled"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: FeatureMaps, train: bool = False) -> FeatureMaps:
        """Maps to (batch, height, width, features)."""
        he = initializers.variance_scaling(2.0, "fan_out", "normal")
        x = self.conv(self.features, (3, 3), padding=1, kernel_init=he, dtype=self.dtype, name="conv")(x)
        scale = {} if self.initial == "scaled" else {"scale_init": scale_init(self.initial)}
        x = self.norm(use_running_average=not train, dtype=self.dtype, name="bn", **scale)(x)
        x = nn.relu(apply_gate(self.gate, x, name="gate", train=train))
        return nn.Dropout(self.dropout, name="drop")(x, deterministic=not train)


class VGG(AttentiveNetwork):
    """VGG with BatchNorm, classified from attention over its maps, or from its global descriptor without attention.

    ``vgg16`` is the baseline of Jetley et al. 2018 (that of Zagoruyko's cifar.torch): a pooling after each stage, no
    attention. ``vgg_att`` has the first two poolings at its end, behind two further convolutions, and attention over
    the maps of its third to fifth stage, 32, 16 and 8 pixels wide for images of 32: 12 times the operations. Without
    attention it is the control. Poolings are 2x2 and keep an odd row or column; what is left behind the last one is
    averaged, one position for images of 32 pixels, so that larger images fit too. Convolutions have biases and start by
    He's fan-out rule, the dense layers by PyTorch's. Attributes beside those of `AttentiveNetwork`:

    Attributes:
      stages: of each its channels in multiples of `width`, its convolutions, and whether a pooling follows.
      width: channels of the first stage; ``g`` has those of the last one.
      tapped: indices of the stages whose maps can have attention.
      conv_dropout: rates after the convolutions of the first stage and of the others, save the last one of a stage of
        several.
      gate_placement: ``"stage"``, on the map of each stage, before its ReLU: with values of at least 0 the same as
        behind it, and any value folds; ``"hidden"``, behind every convolution of which no map with attention is
        made, and behind the pooling if one follows: what `fsg_jax.prune` can remove.
      norm: of the convolutions; factory called as ``norm(use_running_average=, dtype=, name=)``, with ``scale_init=``
        too for the initial ``"reference"``.
      widths: channels of convolutions, by the name that the gate there has in the placement ``"hidden"``, e.g.
        ``{"gate1_0": 40}``.
    """

    stages: Sequence[tuple[int, int, bool]] = ()
    width: int = 64
    tapped: Sequence[int] = (2, 3, 4)
    conv_dropout: tuple[float, float] = (0.3, 0.4)
    norm: ModuleDef = VGGNorm
    widths: Mapping[str, int] = FrozenDict()

    def __post_init__(self) -> None:
        """Checks the attributes."""
        check_positive(width=self.width, stages=len(self.stages))
        for i, (multiple, convolutions, _) in enumerate(self.stages):
            check_positive(**{f"stages[{i}].channels": multiple, f"stages[{i}].convolutions": convolutions})
        expect(len(self.tapped) > 0, "tapped", "at least one stage", self.tapped)
        for stage in self.tapped:
            check_integer("tapped", stage, 0, len(self.stages) - 1)
        check_rates(**{f"conv_dropout[{i}]": rate for i, rate in enumerate(self.conv_dropout)})
        check_choice("gate_placement", self.gate_placement, GATE_PLACEMENTS)
        check_factory("norm", self.norm)
        super().__post_init__()
        check_widths(self.widths, [name for name, *_ in self._hidden()])

    @property
    def max_levels(self) -> int:
        """How many maps can have attention."""
        return len(self.tapped)

    @property
    def query_features(self) -> int:
        """Channels of ``g``."""
        return self.width * self.stages[-1][0]

    def level_features(self, level: int) -> int:
        """Channels of the map of a level, from 1."""
        return self.width * self.stages[self.tapped[level - 1]][0]

    @property
    def least_size(self) -> int:
        """The smallest height and width of images: the last pooling has two pixels to pool."""
        pools = sum(pool for *_, pool in self.stages)
        return 2 ** (pools - 1) + 1 if pools else 1

    @property
    def units(self) -> list[tuple[int, int]]:
        """Stage and place in it of each convolution, from 0."""
        return [(s, i) for s, (_, convolutions, _) in enumerate(self.stages) for i in range(convolutions)]

    def _level(self, stage: int) -> int:
        """The level of a stage's map, 0 if it can have no attention."""
        return 1 + list(self.tapped).index(stage) if stage in self.tapped else 0

    def _hidden(self) -> list[tuple[str, str, str]]:
        """Name of each gate in the placement ``"hidden"``, its convolution, and the layer that reads it."""
        found, after = [], [f"stage{s + 1}_{i}/conv" for s, i in self.units[1:]] + ["fc"]
        for (s, i), reader in zip(self.units, after, strict=True):
            if i < self.stages[s][1] - 1 or self._level(s) not in self.attended:
                found.append((f"gate{s + 1}_{i}", f"stage{s + 1}_{i}", reader))
        return found

    def gate_sites(self) -> dict[str, Site]:
        """Which weights make and read the channels of each gate; see `fsg_jax.gates.sites`.

        Raises:
          ValueError: convolutions or norms of which it is not known.
        """
        check_linear("conv", self.conv, nn.Conv)
        check_linear("norm", self.norm, *NORMS)
        sites: dict[str, Site] = {}
        for name, unit, reader in self._hidden():
            s = int(unit.removeprefix("stage").split("_")[0]) - 1
            made: tuple[Use, ...] = (Use(f"{unit}/conv", "out"), Use(f"{unit}/bn", "out"))
            made = made if factory_of(self.norm) in BATCH_NORMS else ()  # others mix the channels
            channels = self.widths.get(name, self.width * self.stages[s][0])
            sites[name] = Site(channels, (Use(reader, "in"),), made=made)
        if self.gate_placement == "stage":
            for s, (multiple, convolutions, _) in enumerate(self.stages):
                unit = f"stage{s + 1}_{convolutions - 1}"
                channels = self.widths.get(f"gate{s + 1}_{convolutions - 1}", self.width * multiple)
                sites[f"{unit}/gate"] = Site(channels, (Use(f"{unit}/bn", "out"),))
        return sites

    def trunk(self, x: FeatureMaps, train: bool) -> tuple[dict[int, FeatureMaps], Vectors]:
        """See `AttentiveNetwork`."""
        make = nn.remat(ConvUnit, static_argnums=(2,)) if self.remat else ConvUnit
        unit = partial(make, conv=self.conv, norm=self.norm, initial=self.initial, dtype=self.dtype)
        gates = {self.gate_placement: self.gate}  # the other places have none
        hidden = {name for name, *_ in self._hidden()}
        taps: dict[int, FeatureMaps] = {}
        for s, (multiple, convolutions, pool) in enumerate(self.stages):
            level = self._level(s)
            for i in range(convolutions):
                name, last = f"gate{s + 1}_{i}", i == convolutions - 1
                rate = self.conv_dropout[min(s, 1)] if not last or convolutions == 1 else 0.0
                features = self.widths.get(name, self.width * multiple)
                gate = gates.get("stage") if last else None
                x = unit(features=features, gate=gate, dropout=rate, name=f"stage{s + 1}_{i}")(x, train)
                if last and self.taps == "before":
                    x = taps[level] = self.join(x, level)
                if last and pool:
                    x = max_pool(x)
                if last and self.taps == "after":
                    x = taps[level] = self.join(x, level)
                x = apply_gate(gates.get("hidden"), x, name=name, train=train) if name in hidden else x
        pooled = pool_channels(x, -1)
        pooled = nn.Dropout(self.dropout, name="fc_drop")(pooled, deterministic=not train)
        return taps, linear(self.query_features, pooled.shape[-1], name="fc")(pooled)


def max_pool(x: FeatureMaps) -> FeatureMaps:
    """The largest of every 2x2 pixels; an odd row or column is kept."""
    return nn.max_pool(before_reduction(x), (2, 2), (2, 2), padding=((0, x.shape[1] % 2), (0, x.shape[2] % 2)))


VGGS: dict[str, dict[str, Any]] = {
    "vgg16": {
        "stages": ((1, 2, True), (2, 2, True), (4, 3, True), (8, 3, True), (8, 3, True)),
        "attention": None,
    },
    "vgg_att": {
        "stages": ((1, 2, False), (2, 2, False), (4, 3, True), (8, 3, True), (8, 3, True), (8, 1, True), (8, 1, True)),
    },
}
"""Arguments of the named variants; source: the released code of Jetley et al. 2018 (saumya-jetley/
cd_ICLR18_LearnToPayAttention)."""
