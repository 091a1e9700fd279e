"""The models of the library by name."""

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn

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
    if name not in MODELS:
        raise ValueError(
            f"unknown model {name!r}{_suggestion(name, MODELS)}; the models are {', '.join(list_models())}"
        )
    constructor = MODELS[name]
    options = inspect.signature(constructor).parameters.keys() - {"parent"}
    for argument in sorted(kwargs.keys() - options):
        raise ValueError(
            f"model {name!r} has no argument {argument!r}{_suggestion(argument, options)}; its arguments are "
            f"{', '.join(sorted(options))}"
        )
    return constructor(num_classes=num_classes, gate=gate, **kwargs)


def _suggestion(word: str, words: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(words), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
