"""Weights by rule for goldens, and variables of our models from PyTorch's tensors.

The rule: every array is drawn whole, in PyTorch's layout, by a generator seeded with the CRC of its PyTorch name, so
that weights need not be stored and both libraries draw the same.
"""

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from fsg_jax.pretrained.names import to_flax, to_torch, torch_names, torch_shape

__all__ = ["crc", "draw", "fill", "from_torch", "images", "to_flax", "to_torch", "torch_names", "torch_shape"]


def crc(text: str) -> int:
    return zlib.crc32(text.encode())


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The array of a parameter or buffer by its PyTorch name and shape."""
    last, generator = name.split(".")[-1], np.random.default_rng(crc(name))
    if last == "running_mean" or last.endswith("bias"):
        return generator.normal(0, 0.1, shape)
    if "pos_embed" in last or "cls_token" in last:
        return generator.normal(0, 0.02, shape)
    if last == "running_var" or len(shape) == 1:
        return generator.uniform(0.5, 1.5, shape)
    return generator.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape)


def images(stream: str, batch: int, channels: int, height: int, width: int) -> np.ndarray:
    """Normalised images by the name of their stream: drawn in PyTorch's layout, returned in ours."""
    drawn = np.random.default_rng(crc(stream)).normal(0, 1, (batch, channels, height, width))
    return drawn.transpose(0, 2, 3, 1).astype(np.float32)


def fill(model: Any, x: Any, value: Callable[[str, tuple[int, ...]], np.ndarray] = draw) -> dict[str, Any]:
    """Variables of `model` for inputs like `x`, each leaf ``value(PyTorch name, PyTorch shape)``; compiles nothing."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    names, filled = torch_names(shapes), {}
    for path, leaf in flatten_dict(shapes).items():
        tensor = np.asarray(value(names[path], torch_shape(path, leaf.shape)), np.float32)
        filled[path] = to_flax(path, tensor)
        assert filled[path].shape == leaf.shape, (path, names[path])
    return unflatten_dict(filled)


def from_torch(model: Any, x: Any, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Variables of `model` with the values of named PyTorch tensors, all of which must find their place."""
    left = {name: t.detach().numpy().copy() for name, t in tensors.items() if not name.endswith("num_batches_tracked")}

    def take(name: str, shape: tuple[int, ...]) -> np.ndarray:
        tensor = left.pop(name)
        assert tensor.shape == shape + (1,) * (tensor.ndim - len(shape)), (name, tensor.shape, shape)
        return tensor.reshape(shape)  # a dense layer may be a 1x1 convolution there

    variables = fill(model, x, take)
    assert not left, sorted(left)
    return variables
