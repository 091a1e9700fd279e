"""A model as JSON and back: its class and attributes by name. What a file names is looked up in tables, never imported.

A value is itself (None, booleans, numbers, strings), a list (sequences), or an object ``{"is": KIND, ...}``: a mapping,
a dtype, a `Stage`, or a class or function of `FACTORIES`, alone or with the arguments of a `functools.partial`.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from fsg_jax._checks import expect, look_up
from fsg_jax.gates import channel_attention, gate
from fsg_jax.models import (
    efficientnet,
    experts,
    layers,
    multistream,
    preact_resnet,
    resnet,
    spatial_attention,
    vgg,
    vig,
    vit,
)
from fsg_jax.models.convolution import conv_general_dilated
from fsg_jax.models.fused_attention import fused_attention
from fsg_jax.models.norms import NORMS

MODELS: dict[str, type[nn.Module]] = {
    cls.__name__: cls
    for cls in (
        *(resnet.ResNet, efficientnet.EfficientNet, vit.ViT, vgg.VGG, preact_resnet.PreActResNet),
        *(multistream.MultiStream, experts.ExpertHead),
    )
}
"""Classes of models that can be saved."""


def _modules_in(*modules: Any) -> dict[str, Any]:
    found = (value for module in modules for value in vars(module).values() if isinstance(value, type))
    return {value.__name__: value for value in found if issubclass(value, nn.Module) and value is not nn.Module}


FACTORIES: dict[str, Callable[..., Any]] = {
    **_modules_in(gate, channel_attention, layers, resnet, efficientnet, vit, vig, experts, spatial_attention),
    **{cls.__name__: cls for cls in (*NORMS, nn.Conv)},
    **{function.__name__: function for function in (gate.xavier, gate.he, conv_general_dilated, fused_attention)},
}
"""Classes and functions that attributes can name: parts of the library's models, and Flax's norms and convolution."""

DTYPES: dict[str, Any] = {d.dtype.name: d for d in (jnp.float32, jnp.bfloat16, jnp.float16, jnp.float64)}

DEFAULTS = (resnet.BatchNorm, efficientnet.TFBatchNorm, vit.LayerNorm, vig.RMSNorm, vig.TinyGLA)
"""Partials of the library; reading gives these same objects, so that models are equal."""


def model_to_json(model: nn.Module) -> dict[str, Any]:
    """The class and all attributes of a model.

    Raises:
      ValueError: a model of another class than `MODELS`, or a value that has no name here; the attribute is named.
    """
    name = type(model).__name__
    expect(MODELS.get(name) is type(model), "model", f"one of {', '.join(MODELS)}", name)
    fields = [f.name for f in dataclasses.fields(model) if f.init and f.name != "parent"]
    return {"class": name, "attributes": {field: to_json(getattr(model, field), field) for field in fields}}


def model_from_json(value: Any, name: str) -> nn.Module:
    """The model of `model_to_json`, whose checks of attributes apply; `name` says where it comes from.

    Raises:
      ValueError: an unknown class or attribute, or an attribute out of its range.
    """
    sound = isinstance(value, Mapping) and set(value) == {"class", "attributes"}
    expect(sound and isinstance(value["attributes"], Mapping), name, "the class and attributes of a model", value)
    cls = look_up(MODELS, str(value["class"]), f"{name}: model")
    known = {f.name for f in dataclasses.fields(cls) if f.init and f.name != "parent"}
    unknown = sorted(set(value["attributes"]) - known)
    expect(not unknown, name, f"attributes of {value['class']}", f"{', '.join(unknown)}: of a later version?")
    attributes = {key: from_json(v, f"{name}: {key}") for key, v in value["attributes"].items()}
    try:
        return cls(**attributes)
    except Exception as error:  # of a type that its checks do not expect
        raise ValueError(f"{name}: expected attributes of {value['class']}, found: {error}") from error


def to_json(value: Any, name: str) -> Any:
    """The JSON of one attribute. Raises ValueError, naming it, if it cannot be written."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | float | np.integer | np.floating) and math.isfinite(value):
        return value.item() if isinstance(value, np.generic) else value
    if isinstance(value, efficientnet.Stage):
        return {"is": "Stage", "values": [to_json(v, name) for v in value]}
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return [to_json(v, f"{name}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, Mapping):
        expect(all(isinstance(key, str) for key in value), name, "a mapping with names as keys", value)
        return {"is": "mapping", "items": {key: to_json(v, f"{name}.{key}") for key, v in value.items()}}
    for key, dtype in DTYPES.items():
        if value is dtype or value is dtype.dtype.type or (isinstance(value, np.dtype) and value.name == key):
            return {"is": "dtype", "name": key}
    inner = value.func if isinstance(value, partial) else value
    for key, factory in FACTORIES.items():
        if inner is factory:
            code: dict[str, Any] = {"is": "factory", "name": key}
            if isinstance(value, partial):
                code["arguments"] = [to_json(v, f"{name}: argument {i}") for i, v in enumerate(value.args)]
                code["keywords"] = {k: to_json(v, f"{name}.{k}") for k, v in value.keywords.items()}
            return code
    known = f"None, numbers, strings, sequences, mappings, dtypes, or (partials of) {', '.join(sorted(FACTORIES))}"
    raise ValueError(f"{name}: expected what can be written, {known}, found {value!r}")


def from_json(value: Any, name: str) -> Any:
    """The value of `to_json`; sequences are tuples. Raises ValueError, naming it, if it is none."""
    if isinstance(value, list):
        return tuple(from_json(v, f"{name}[{i}]") for i, v in enumerate(value))
    if not isinstance(value, dict):
        return value
    kind, parts = value.get("is"), {key: v for key, v in value.items() if key != "is"}
    if kind == "mapping" and set(parts) == {"items"} and isinstance(parts["items"], dict):
        return {key: from_json(v, f"{name}.{key}") for key, v in parts["items"].items()}
    if kind == "dtype" and set(parts) == {"name"}:
        return look_up(DTYPES, str(parts["name"]), f"{name}: dtype")
    values = parts.get("values")
    if kind == "Stage" and isinstance(values, list) and len(values) == len(efficientnet.Stage._fields):
        return efficientnet.Stage(*from_json(values, name))
    if kind == "factory" and set(parts) in ({"name"}, {"name", "arguments", "keywords"}):
        factory = look_up(FACTORIES, str(parts["name"]), f"{name}: factory")
        if "keywords" not in parts:
            return factory
        arguments, keywords = parts["arguments"], parts["keywords"]
        expect(isinstance(arguments, list) and isinstance(keywords, dict), name, "arguments of a factory", value)
        made = partial(
            factory, *from_json(arguments, name), **{k: from_json(v, f"{name}.{k}") for k, v in keywords.items()}
        )
        same = [p for p in DEFAULTS if (p.func, p.args, p.keywords) == (made.func, made.args, made.keywords)]
        return (same or [made])[0]
    raise ValueError(f"{name}: expected an attribute as this version writes it, found {value}")
