"""The models of one image by name."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn

from fsg_jax.models.efficientnet import EFFICIENTNETS, EfficientNet
from fsg_jax.models.preact_resnet import PREACT_RESNETS, PreActResNet
from fsg_jax.models.resnet import RESNETS, ResNet
from fsg_jax.models.vgg import VGG, VGGS
from fsg_jax.models.vig import VIGS
from fsg_jax.models.vit import VITS, ViT

BACKBONES: dict[str, Callable[..., nn.Module]] = {
    **{name: partial(ResNet, **variant) for name, variant in RESNETS.items()},
    **{name: partial(EfficientNet, **variant) for name, variant in EFFICIENTNETS.items()},
    **{name: partial(VGG, **variant) for name, variant in VGGS.items()},
    **{name: partial(PreActResNet, **variant) for name, variant in PREACT_RESNETS.items()},
    **{name: partial(ViT, **variant) for name, variant in (VITS | VIGS).items()},
}
"""Constructors of the models of one image; with ``num_classes=0`` they give features."""
