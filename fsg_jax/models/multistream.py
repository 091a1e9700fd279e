"""One backbone a stream, fused by a gated two-layer head (Roffo et al. 2024)."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.core import FrozenDict
from jaxtyping import Array

from fsg_jax._checks import check_integer, check_positive, check_rates, expect
from fsg_jax.gates.sites import Site, Use, widths_below
from fsg_jax.models.arguments import check_arguments, check_factory, check_widths
from fsg_jax.models.backbones import BACKBONES
from fsg_jax.models.layers import ModuleDef, apply_gate, fan_in_uniform
from fsg_jax.models.resnet import RESNETS

PAPER_STREAMS: Mapping[str, int] = FrozenDict({"rgb": 3, "mask": 3, "depth": 1})
"""Channels of the paper's three streams, in the order in which their features are joined."""

DEFAULTS: dict[str, dict[str, Any]] = {name: {"stem": "imagenet"} for name in RESNETS}
"""Options of the backbones that differ from those of the backbone alone."""

OWN = ("num_classes", "gate", "name", "dtype", "remat", "widths")
"""Options that the model itself sets for every backbone."""


class MultiStream(nn.Module):
    """``head(s2 * relu(fc1(s1 * concat(backbone_k(x_k)))))`` with the gates s1, s2 and those in the backbones.

    Each stream has a backbone of its name with weights of its own. The gates are ``gate_embedding`` on the
    concatenated features (the paper's L1), ``gate_hidden`` after the ReLU (L2), and those of the backbones in use. A
    stream left out has no gates; the reference creates them all the same.

    Attributes:
      num_classes: outputs; 0 gives the features before the head instead.
      backbone: a key of `fsg_jax.models.backbones.BACKBONES`.
      streams: channels by stream, in the order in which features are joined, e.g. ``{"ct": 1, "pet": 1}``. A sequence
        of names stands for these of `PAPER_STREAMS`, in the order of that table.
      hidden: width of ``fc1``; 0 leaves out ``fc1`` and both gates of the head, so that one stream with a ViT is the
        gated ViT of the paper.
      gate: factory, ``gate(name=...)``, of modules called as ``module(x, train=train)``; None makes none.
      dropout: rate on the input of the head; the reference has none.
      backbone_options: other attributes of the backbones, e.g. ``{"drop_path": 0.1}``. ResNets have the ImageNet stem
        unless it says otherwise.
      dtype: of the computation of the backbones; the fusion and the head are float32.
      remat: recompute each block of the backbones in the backward pass.
      head: factory, ``head(name="head")``, of a module called as ``module(features, train=train)`` in place of the
        linear layer, such as a partial of `fsg_jax.ExpertHead` for several tasks; the outputs are then its own, and
        `num_classes` is 0. Gates inside it are its own too, and `gate_sites` does not tell of them.
      widths: of single sites where they are not those of the architecture: ``{"gate_hidden": 100}`` and those of the
        backbones below their stream, ``{"rgb/layer1_0/gate1": 40}``.

    Raises:
      ValueError: on construction, for an attribute out of its range or an option that the backbone does not take.
    """

    num_classes: int
    backbone: str = "resnet18"
    streams: Mapping[str, int] | Sequence[str] = PAPER_STREAMS
    hidden: int = 128
    gate: ModuleDef | None = None
    dropout: float = 0.0
    backbone_options: Mapping[str, Any] = FrozenDict()
    dtype: Any = jnp.float32
    remat: bool = False
    widths: Mapping[str, int] = FrozenDict()
    head: ModuleDef | None = None

    @property
    def shared_prefix(self) -> bool:
        """Whether sequential routing computes what comes before the first gates once: as with the backbone alone."""
        return self.backbone in RESNETS

    def __post_init__(self) -> None:
        """Checks the attributes, those of the backbone included."""
        check_integer("num_classes", self.num_classes, 0)
        check_integer("hidden", self.hidden, 0)
        get_channels(self.streams)
        check_rates(dropout=self.dropout)
        check_factory("gate", self.gate)
        check_factory("head", self.head)
        expect(not (self.head and self.num_classes), "num_classes", "0 with a head of its own", self.num_classes)
        if own := sorted(set(OWN) & set(self.backbone_options)):
            raise ValueError(f"backbone_options: expected none of {', '.join(OWN)}, found {', '.join(own)}")
        check_arguments(BACKBONES, self.backbone, "backbone", self.backbone_options)
        streams, own_sites = get_channels(self.streams), ["gate_hidden"] * bool(self.hidden)
        check_widths({k: v for k, v in self.widths.items() if k.split("/")[0] not in streams}, own_sites)
        for name in streams:
            self._backbone(name, parent=None)
        super().__post_init__()

    @property
    def num_features(self) -> int:
        """Number of features before the head."""
        streams = get_channels(self.streams)
        joined = len(streams) * self._backbone(next(iter(streams)), parent=None).num_features
        return self.widths.get("gate_hidden", self.hidden) or joined

    def gate_sites(self) -> dict[str, Site]:
        """Which weights make and read the channels of each gate; see `fsg_jax.gates.sites`."""
        sites, reader, offset = {}, "fc1" if self.hidden else "head", 0
        for name in get_channels(self.streams):
            backbone = self._backbone(name, parent=None)
            for path, site in backbone.gate_sites().items():
                site = site.within(name)
                if site.exposed and (self.hidden or self.num_classes):
                    site = site._replace(absorb=(Use(reader, "in", offset),), exposed=False)
                sites[f"{name}/{path}"] = site
            offset += backbone.num_features
        if self.hidden:
            sites["gate_embedding"] = Site(offset, (Use("fc1", "in"),))
            last = Site(self.num_features, (Use("head", "in"),), made=(Use("fc1", "out"),))
            sites["gate_hidden"] = last if self.num_classes else Site(self.num_features, exposed=True)
        return sites

    @nn.compact
    def __call__(self, x: Mapping[str, Array], *, train: bool = False) -> Any:
        """Returns float32 outputs (batch, `num_classes`), those of `head`, or the features before it if there is none.

        Args:
          x: an image (batch, height, width, channels) by stream, floating point and normalised, for exactly the
            streams of the model; sizes may differ between streams.
          train: as in the backbones.

        Raises:
          ValueError: `x` lacks a stream, has one too many, or one of another shape or dtype.
        """
        streams = get_channels(self.streams)
        check_inputs(x, streams)
        features = [self._backbone(name)(x[name], train=train) for name in streams]
        y = jnp.concatenate(features, axis=-1)
        if self.hidden:
            y = apply_gate(self.gate, y, name="gate_embedding", train=train)
            hidden = self.widths.get("gate_hidden", self.hidden)
            y = nn.relu(nn.Dense(hidden, kernel_init=fan_in_uniform, name="fc1")(y))
            y = apply_gate(self.gate, y, name="gate_hidden", train=train)
        y = nn.Dropout(self.dropout, name="drop")(y, deterministic=not train)
        if self.head is not None:
            return self.head(name="head")(y, train=train)
        return nn.Dense(self.num_classes, kernel_init=fan_in_uniform, name="head")(y) if self.num_classes else y

    def _backbone(self, name: str | None, **kwargs: Any) -> Any:
        """The backbone of a stream; with ``parent=None`` one by itself."""
        options = {**DEFAULTS.get(self.backbone, {}), **self.backbone_options, "name": name, **kwargs}
        options["widths"] = widths_below(self.widths, name or "")
        make = BACKBONES[self.backbone]
        return make(num_classes=0, gate=self.gate, dtype=self.dtype, remat=self.remat, **options)


def get_channels(streams: Mapping[str, int] | Sequence[str]) -> dict[str, int]:
    """Returns the channels by stream, in the order in which features are joined; see `MultiStream`.

    Raises:
      ValueError: no stream, a name that `PAPER_STREAMS` does not know, or one twice.
    """
    if isinstance(streams, Mapping) and streams:
        check_positive(**{f"streams[{name!r}]": channels for name, channels in streams.items()})
        return dict(streams)
    names = (streams,) if isinstance(streams, str) else tuple(streams)
    if not names or len(set(names)) < len(names) or not set(names) <= set(PAPER_STREAMS):
        raise ValueError(f"streams: expected one or more of {', '.join(PAPER_STREAMS)}, each once, found {streams!r}")
    return {name: channels for name, channels in PAPER_STREAMS.items() if name in names}


def check_inputs(x: Any, streams: Mapping[str, int]) -> None:
    """Raises ValueError unless `x` holds exactly `streams`, each (batch, height, width, channels of the stream)."""
    wanted = ", ".join(streams)
    if not isinstance(x, Mapping):
        raise ValueError(f"image: expected a dict of the streams {wanted}, found {type(x).__name__}")
    if set(x) != set(streams):
        raise ValueError(f"image: expected the streams {wanted}, found {', '.join(sorted(x)) or 'none'}")
    for name, channels in streams.items():
        shape = x[name].shape
        if len(shape) != 4 or shape[-1] != channels:
            raise ValueError(f"stream {name!r}: expected shape (batch, height, width, {channels}), found {shape}")
    sizes = {name: x[name].shape[0] for name in streams}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"streams: expected one batch size, found {sizes}")
