"""All models by name."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn

from fsg_jax.models.arguments import check_arguments
from fsg_jax.models.backbones import BACKBONES
from fsg_jax.models.layers import ModuleDef
from fsg_jax.models.multistream import MultiStream

MODELS: dict[str, Callable[..., nn.Module]] = {**BACKBONES, "multistream": MultiStream}
"""Constructors by name; each takes ``num_classes``, ``gate`` and the other attributes of its module."""


def list_models() -> list[str]:
    """Returns the names that `create_model` takes, sorted."""
    return sorted(MODELS)


def create_model(name: str, /, *, num_classes: int, gate: ModuleDef | None = None, **kwargs: Any) -> nn.Module:
    """Makes a model by name, e.g. ``create_model("resnet18", num_classes=100, gate=Gate)``.

    Args:
      name: one of `list_models()`.
      num_classes: number of logits; 0 gives pooled features and no head.
      gate: factory of gates, such as the class ``Gate`` or a partial of it; None is the baseline.
      **kwargs: other attributes of the module (`ResNet`, `EfficientNet`, `ViT`, `MultiStream`), its ``name``
        included; they override those of the variant.

    Raises:
      ValueError: unknown name or argument, or an argument out of its range.
    """
    check_arguments(MODELS, name, "model", kwargs)
    return MODELS[name](num_classes=num_classes, gate=gate, **kwargs)
