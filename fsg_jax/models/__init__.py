"""The models of the library by name."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import flax.linen as nn

from fsg_jax.lookup import did_you_mean, look_up
from fsg_jax.models.layers import ModuleDef
from fsg_jax.models.resnet import RESNETS, BasicBlock, Bottleneck, ResidualBlock, ResNet
from fsg_jax.models.vit import VITS, SelfAttention, ViT

__all__ = [
    "MODELS",
    "BasicBlock",
    "Bottleneck",
    "ResNet",
    "ResidualBlock",
    "SelfAttention",
    "ViT",
    "create_model",
    "list_models",
]

MODELS: dict[str, Callable[..., nn.Module]] = {
    **{name: functools.partial(ResNet, **variant) for name, variant in RESNETS.items()},
    **{name: functools.partial(ViT, **variant) for name, variant in VITS.items()},
}
"""Constructors by name; each takes ``num_classes``, ``gate`` and the other attributes of its module."""


def list_models() -> list[str]:
    """Names that `create_model` takes, sorted."""
    return sorted(MODELS)


def create_model(name: str, /, *, num_classes: int, gate: ModuleDef | None = None, **kwargs: Any) -> nn.Module:
    """A model by name, e.g. ``create_model("resnet18", num_classes=100, gate=Gate)``.

    Args:
      name: one of `list_models()`.
      num_classes: logits; 0 gives pooled features and no head.
      gate: factory of gates, such as the class ``Gate`` or a partial of it; None is the baseline.
      **kwargs: other attributes of the module (`ResNet`, `ViT`), its ``name`` included; they override those
        of the variant.

    Raises:
      ValueError: unknown name or argument, or an argument out of its range.
    """
    constructor = look_up(MODELS, name, "model")
    options = inspect.signature(constructor).parameters.keys() - {"parent"}
    for argument in sorted(kwargs.keys() - options):
        raise ValueError(
            f"model {name!r} has no argument {argument!r}{did_you_mean(argument, options)}; its arguments are "
            f"{', '.join(sorted(options))}"
        )
    return constructor(num_classes=num_classes, gate=gate, **kwargs)
