"""Weights by rule for goldens, and the leaves of our models under the names of timm's tensors.

The rule: every array is drawn whole, in PyTorch's layout, by a generator seeded with the CRC of its PyTorch name, so
that weights need not be stored and both libraries draw the same.
"""

import re
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

RESNET = [
    (r"^(layer\d+)_(\d+)/", r"\1.\2."),
    (r"downsample_conv", "downsample.0"),
    (r"downsample_bn", "downsample.1"),
    (r"^head/", "fc."),
    (r"\bgate/(?!logits)", "se."),  # a data-dependent gate is timm's attention layer
]
VIT = [(r"^blocks_(\d+)/", r"blocks.\1.")]
EFFICIENTNET = [
    (r"^stem_conv/", "conv_stem."),
    (r"^stem_bn/", "bn1."),
    (r"^top_conv/", "conv_head."),
    (r"^top_bn/", "bn2."),
    (r"^head/", "classifier."),
    (r"/se/fc1/", ".se.conv_reduce."),
    (r"/se/fc2/", ".se.conv_expand."),
]
INVERTED = [
    (r"/expand_conv/", ".conv_pw."),
    (r"/expand_bn/", ".bn1."),
    (r"/depthwise_conv/", ".conv_dw."),
    (r"/depthwise_bn/", ".bn2."),
    (r"/project_conv/", ".conv_pwl."),
    (r"/project_bn/", ".bn3."),
]
# timm's blocks without expansion name their layers otherwise.
SEPARABLE = [
    (r"/depthwise_conv/", ".conv_dw."),
    (r"/depthwise_bn/", ".bn1."),
    (r"/project_conv/", ".conv_pw."),
    (r"/project_bn/", ".bn2."),
]
LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


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


def torch_names(variables: Mapping[str, Any]) -> dict[tuple[str, ...], str]:
    """PyTorch name by path (collection, modules, leaf) of a whole model's variables or their shapes."""
    params = variables["params"]
    names = {}
    for path in flatten_dict(variables):
        modules, leaf = list(path[1:-1]), path[-1]
        prefix, tree = "", params
        if len(modules) > 1 and modules[0] in params and _is_model(params[modules[0]]):  # a stream's backbone
            prefix, tree, modules = f"{modules[0]}.", params[modules[0]], modules[1:]
        name = "/".join([*modules, LEAVES.get(leaf, leaf)])
        for pattern, replacement in _renames(tree, modules):
            name = re.sub(pattern, replacement, name)
        names[path] = prefix + name.replace("/", ".")
    return names


def _is_model(params: Mapping[str, Any]) -> bool:
    return bool({"conv1", "patch_embed", "stem_conv"} & set(params)) and "conv2" not in params


def _renames(params: Mapping[str, Any], modules: list[str]) -> list[tuple[str, str]]:
    if "patch_embed" in params:
        return VIT
    if "stem_conv" not in params:
        return RESNET if "conv1" in params else []
    block = re.match(r"stage(\d+)_(\d+)", modules[0])
    if not block:
        return EFFICIENTNET
    inside = INVERTED if "expand_conv" in params[modules[0]] else SEPARABLE
    return [(rf"^{block[0]}(?=/)", f"blocks.{int(block[1]) - 1}.{block[2]}"), *EFFICIENTNET, *inside]


def torch_shape(path: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """PyTorch's shape of the leaf at `path`: kernels (spatial..., in, out) are (out, in, spatial...) there."""
    return (shape[-1], shape[-2], *shape[:-2]) if path[-1] == "kernel" else shape


def to_torch(path: tuple[str, ...], leaf: np.ndarray) -> np.ndarray:
    """The leaf at `path` in PyTorch's layout."""
    return np.moveaxis(leaf, (-1, -2), (0, 1)) if path[-1] == "kernel" else leaf


def to_flax(path: tuple[str, ...], tensor: np.ndarray) -> np.ndarray:
    """The inverse of `to_torch`."""
    return np.moveaxis(tensor, (0, 1), (-1, -2)) if path[-1] == "kernel" else tensor


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
