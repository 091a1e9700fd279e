"""The single-input models by name, and construction with checked arguments."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import flax.linen as nn

from fsg_jax._checks import did_you_mean, look_up
from fsg_jax.models.efficientnet import EFFICIENTNETS, EfficientNet
from fsg_jax.models.resnet import RESNETS, ResNet
from fsg_jax.models.vit import VITS, ViT

Constructors: TypeAlias = Mapping[str, Callable[..., nn.Module]]

BACKBONES: dict[str, Callable[..., nn.Module]] = {
    **{name: functools.partial(ResNet, **variant) for name, variant in RESNETS.items()},
    **{name: functools.partial(EfficientNet, **variant) for name, variant in EFFICIENTNETS.items()},
    **{name: functools.partial(ViT, **variant) for name, variant in VITS.items()},
}
"""Constructors of the models of one image; with ``num_classes=0`` they give features."""


def check_arguments(constructors: Constructors, name: str, kind: str, arguments: Mapping[str, Any]) -> None:
    """Raise ValueError unless `name` is in `constructors` and its module takes all of `arguments`."""
    options = inspect.signature(look_up(constructors, name, kind)).parameters.keys() - {"parent"}
    for argument in sorted(arguments.keys() - options):
        raise ValueError(
            f"{kind} {name!r} has no argument {argument!r}{did_you_mean(argument, options)}; its arguments are "
            f"{', '.join(sorted(options))}"
        )
