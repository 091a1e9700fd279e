"""Our leaves under the names that they have in other libraries: timm and torchvision, ``efficientnet_pytorch``, Google.

A leaf is its path (collection, modules, leaf). PyTorch's kernels are (out, in, spatial...), ours (spatial..., in, out).
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from fsg_jax._checks import expect

Path = tuple[str, ...]
Renames = list[tuple[str, str]]

RESNET: Renames = [
    (r"^(layer\d+)_(\d+)/", r"\1.\2."),
    (r"downsample_conv", "downsample.0"),
    (r"downsample_bn", "downsample.1"),
    (r"^head/", "fc."),
    (r"\bgate/(?!logits)", "se."),  # a data-dependent gate is timm's attention layer
]
VIT: Renames = [(r"^blocks_(\d+)/", r"blocks.\1.")]
EFFICIENTNET: Renames = [
    (r"^stem_conv/", "conv_stem."),
    (r"^stem_bn/", "bn1."),
    (r"^top_conv/", "conv_head."),
    (r"^top_bn/", "bn2."),
    (r"^head/", "classifier."),
    (r"/se/fc1/", ".se.conv_reduce."),
    (r"/se/fc2/", ".se.conv_expand."),
]
INVERTED: Renames = [
    (r"/expand_conv/", ".conv_pw."),
    (r"/expand_bn/", ".bn1."),
    (r"/depthwise_conv/", ".conv_dw."),
    (r"/depthwise_bn/", ".bn2."),
    (r"/project_conv/", ".conv_pwl."),
    (r"/project_bn/", ".bn3."),
]
# timm's blocks without expansion name their layers otherwise.
SEPARABLE: Renames = [
    (r"/depthwise_conv/", ".conv_dw."),
    (r"/depthwise_bn/", ".bn1."),
    (r"/project_conv/", ".conv_pw."),
    (r"/project_bn/", ".bn2."),
]
EFFICIENTNET_PYTORCH: Renames = [
    (r"^stem_conv/", "_conv_stem."),
    (r"^stem_bn/", "_bn0."),
    (r"^top_conv/", "_conv_head."),
    (r"^top_bn/", "_bn1."),
    (r"^head/", "_fc."),
    (r"/se/fc1/", "._se_reduce."),
    (r"/se/fc2/", "._se_expand."),
    (r"/expand_conv/", "._expand_conv."),
    (r"/expand_bn/", "._bn0."),
    (r"/depthwise_conv/", "._depthwise_conv."),
    (r"/depthwise_bn/", "._bn1."),
    (r"/project_conv/", "._project_conv."),
    (r"/project_bn/", "._bn2."),
]
LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


def torch_names(variables: Mapping[str, Any], naming: str = "timm") -> dict[Path, str]:
    """PyTorch name by path of a whole model's variables or their shapes.

    Args:
      variables: by collection; several backbones under the names of their streams too.
      naming: ``"timm"``, which is torchvision's for ResNets; ``"efficientnet_pytorch"``, the package of that name.
    """
    params = variables["params"]
    names = {}
    for path in flatten_dict(variables):
        modules, leaf = list(path[1:-1]), path[-1]
        prefix, tree = "", params
        if len(modules) > 1 and modules[0] in params and _is_model(params[modules[0]]):  # a stream's backbone
            prefix, tree, modules = f"{modules[0]}.", params[modules[0]], modules[1:]
        name = "/".join([*modules, LEAVES.get(leaf, leaf)])
        for pattern, replacement in _renames(tree, modules, naming):
            name = re.sub(pattern, replacement, name)
        names[path] = prefix + name.replace("/", ".")
    return names


def _is_model(params: Mapping[str, Any]) -> bool:
    return bool({"conv1", "patch_embed", "stem_conv"} & set(params)) and "conv2" not in params


def _renames(params: Mapping[str, Any], modules: list[str], naming: str) -> Renames:
    if "patch_embed" in params:
        return VIT
    if "stem_conv" not in params:
        return RESNET if "conv1" in params else []
    block = re.match(r"stage(\d+)_(\d+)", modules[0]) if modules else None
    if naming == "efficientnet_pytorch":
        blocks = sorted((name for name in params if re.match(r"stage\d+_\d+$", name)), key=_numbers)
        return [*((rf"^{name}(?=/)", f"_blocks.{i}") for i, name in enumerate(blocks)), *EFFICIENTNET_PYTORCH]
    if not block:
        return EFFICIENTNET
    inside = INVERTED if "expand_conv" in params[modules[0]] else SEPARABLE
    return [(rf"^{block[0]}(?=/)", f"blocks.{int(block[1]) - 1}.{block[2]}"), *EFFICIENTNET, *inside]


def _numbers(name: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", name)]


def torch_shape(path: Path, shape: tuple[int, ...]) -> tuple[int, ...]:
    """PyTorch's shape of the leaf at `path`."""
    return (shape[-1], shape[-2], *shape[:-2]) if path[-1] == "kernel" else shape


def to_torch(path: Path, leaf: np.ndarray) -> np.ndarray:
    """The leaf at `path` in PyTorch's layout."""
    return np.moveaxis(leaf, (-1, -2), (0, 1)) if path[-1] == "kernel" else leaf


def to_flax(path: Path, tensor: np.ndarray) -> np.ndarray:
    """The inverse of `to_torch`."""
    return np.moveaxis(tensor, (0, 1), (-1, -2)) if path[-1] == "kernel" else tensor


GOOGLE_PREFIXES = ("", "opt/target/", "params/img/", "params/")
GOOGLE_BLOCK = {
    "LayerNorm_0/{}": "norm1.{}",
    "MultiHeadDotProductAttention_{attention}/out/{}": "attn.proj.{}",
    "LayerNorm_{norm}/{}": "norm2.{}",
    "MlpBlock_{mlp}/Dense_0/{}": "mlp.fc1.{}",
    "MlpBlock_{mlp}/Dense_1/{}": "mlp.fc2.{}",
}
# An early Flax counted all children of a block together, a later one each class on its own.
GOOGLE_NUMBERS = ({"attention": 1, "norm": 2, "mlp": 3}, {"attention": 0, "norm": 1, "mlp": 0})


def google_prefix(names: Any) -> str | None:
    """What stands before ``embedding/kernel`` in the names of one of Google's ViTs; None: they are of another kind."""
    return next((prefix for prefix in GOOGLE_PREFIXES if f"{prefix}embedding/kernel" in names), None)


def google_to_timm(tensors: Mapping[str, np.ndarray], file: str) -> dict[str, np.ndarray]:
    """Tensors of a ViT of Google's under timm's names and in PyTorch's layout.

    Read are the format of vit_jax (with an optional ``opt/target/``) and that of big_vision (``params/``, blocks apart
    or stacked), whose positions have no row of the class token: that row is 0. ``pre_logits`` is dropped, as in
    Google's fine-tuning, and with it the head that it feeds.

    Raises:
      ValueError: tensors are missing or extra, all being named, or the model pools otherwise than by its class token.
    """
    prefix = google_prefix(tensors)
    assert prefix is not None
    left = {name.removeprefix(prefix): value for name, value in _unstacked(tensors, prefix).items()}
    other = sorted(name for name in left if name.startswith("MAPHead_"))
    expect("cls" in left and not other, file, "a ViT that is pooled by its class token 'cls'", other or "no such token")
    tanh_head = any(name.startswith("pre_logits/") for name in left)
    dropped = ("pre_logits/", "head/") if tanh_head else ("pre_logits/",)
    left = {name: value for name, value in left.items() if not name.startswith(dropped)}
    dim = left["embedding/kernel"].shape[-1]
    found, missing = {}, []

    def take(name: str, to: str, shape: tuple[int, ...] | None = None) -> None:
        if name not in left:
            missing.append(prefix + name)
            return
        value = left.pop(name)
        expect(
            shape is None or value.size == np.prod(shape), f"{file}: {prefix + name}", f"{shape} values", value.shape
        )
        value = value if shape is None else value.reshape(shape)
        found[to] = to_torch(("kernel",), value) if name.endswith("kernel") else value

    take("cls", "cls_token")
    positions = "pos_embedding" if "pos_embedding" in left else "Transformer/posembed_input/pos_embedding"
    take(positions, "pos_embed")
    if positions == "pos_embedding" and "pos_embed" in found:
        found["pos_embed"] = np.pad(found["pos_embed"], ((0, 0), (1, 0), (0, 0)))
    for leaf, torch_leaf in (("kernel", "weight"), ("bias", "bias")):
        take(f"embedding/{leaf}", f"patch_embed.proj.{torch_leaf}")
        if f"head/{leaf}" in left:
            take(f"head/{leaf}", f"head.{torch_leaf}")
    for leaf, torch_leaf in (("scale", "weight"), ("bias", "bias")):
        take(f"Transformer/encoder_norm/{leaf}", f"norm.{torch_leaf}")
    depth = len({name.split("/")[1] for name in left if name.startswith("Transformer/encoderblock_")})
    old = "Transformer/encoderblock_0/MlpBlock_3/Dense_0/kernel" in left
    for i in range(depth):
        block, numbers = f"Transformer/encoderblock_{i}/", GOOGLE_NUMBERS[not old]
        for theirs, ours in GOOGLE_BLOCK.items():
            for leaf, torch_leaf in (("scale" if "Norm" in theirs else "kernel", "weight"), ("bias", "bias")):
                shape = (dim, dim) if theirs.endswith("out/{}") and leaf == "kernel" else None
                take(block + theirs.format(leaf, **numbers), f"blocks.{i}.{ours.format(torch_leaf)}", shape)
        for leaf, torch_leaf, shape in (("kernel", "weight", (dim, dim)), ("bias", "bias", (dim,))):
            parts = [f"blocks.{i}.attn.{part}.{leaf}" for part in ("query", "key", "value")]
            for part in parts:
                name = f"MultiHeadDotProductAttention_{numbers['attention']}/{part.split('.')[-2]}/{leaf}"
                take(block + name, part, shape)
            if set(parts) <= set(found):
                found[f"blocks.{i}.attn.qkv.{torch_leaf}"] = np.concatenate([found.pop(part) for part in parts])
    problems = [f"{name}: missing" for name in missing] + [f"{prefix + name}: extra" for name in sorted(left)]
    expect(not problems, file, "the tensors of a ViT of Google's", f"{len(problems)} others: {'; '.join(problems)}")
    return found


def _unstacked(tensors: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """Blocks of big_vision's ``scan``, which have a leading axis, one by one; other collections are passed over."""
    apart, start = {}, f"{prefix}Transformer/encoderblock/"
    for name, value in tensors.items():
        if not name.startswith(prefix):
            continue
        if name.startswith(start):
            rows = enumerate(value) if value.ndim else ()
            apart |= {f"{prefix}Transformer/encoderblock_{i}/{name.removeprefix(start)}": row for i, row in rows}
        else:
            apart[name] = value
    return apart
