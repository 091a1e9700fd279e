"""Our leaves under the names that they have in other libraries: timm and torchvision, ``efficientnet_pytorch``, Google.

A leaf is its path (collection, modules, leaf). PyTorch's kernels are (out, in, spatial...), ours (spatial..., in, out).
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from fsg_jax._checks import expect

Path = tuple[str, ...]
Renames = list[tuple[str, str | Callable[[re.Match[str]], str]]]

RESNET: Renames = [
    (r"^(layer\d+)_(\d+)/", r"\1.\2."),
    (r"downsample_conv", "downsample.0"),
    (r"downsample_bn", "downsample.1"),
    (r"^head/", "fc."),
    (r"\bgate/(?!logits)", "se."),  # a data-dependent gate is timm's attention layer
]
VIT: Renames = [(r"^blocks_(\d+)/", r"blocks.\1.")]
VIG: Renames = [
    (r"^patch_embed/(conv|norm)(\d)/", lambda m: f"patch_embed.proj.{3 * int(m[2]) - 3 + (m[1] == 'norm')}."),
    (r"^blocks_(\d+)/", r"blocks.\1."),
    (r"\.ls(\d)/gamma$", r".gamma\1"),
    (r"\.norm1/", ".attn_norm."),
    (r"\.norm2/", ".mlp_norm."),
    (r"/in_proj/", ".in_proj.0."),
    (r"/gk_down/", ".gk_proj.0."),
    (r"/gk_up/", ".gk_proj.1."),
]
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
        return VIG if "conv1" in params["patch_embed"] else VIT
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
GOOGLE_POSITIONS = {"Transformer/posembed_input/pos_embedding": "pos_embed"}
GOOGLE = {
    "cls": "cls_token",
    "embedding/kernel": "patch_embed.proj.weight",
    "embedding/bias": "patch_embed.proj.bias",
    "Transformer/encoder_norm/scale": "norm.weight",
    "Transformer/encoder_norm/bias": "norm.bias",
}
GOOGLE_HEAD = {"head/kernel": "head.weight", "head/bias": "head.bias"}
# The numbers in vit_jax's names are 1, 2 and 3, for an early Flax counted all children of a block together; those of
# big_vision are 0, 1 and 0, for a later one counts each class on its own.
GOOGLE_BLOCK = {
    "LayerNorm_0/scale": "norm1.weight",
    "LayerNorm_0/bias": "norm1.bias",
    "LayerNorm_{norm}/scale": "norm2.weight",
    "LayerNorm_{norm}/bias": "norm2.bias",
    "MlpBlock_{mlp}/Dense_0/kernel": "mlp.fc1.weight",
    "MlpBlock_{mlp}/Dense_0/bias": "mlp.fc1.bias",
    "MlpBlock_{mlp}/Dense_1/kernel": "mlp.fc2.weight",
    "MlpBlock_{mlp}/Dense_1/bias": "mlp.fc2.bias",
    **{
        f"MultiHeadDotProductAttention_{{attention}}/{theirs}/{leaf}": f"attn.{ours}.{torch_leaf}"
        for theirs, ours in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "proj"))
        for leaf, torch_leaf in (("kernel", "weight"), ("bias", "bias"))
    },
}


def google_prefix(names: Any) -> str | None:
    """What stands before ``embedding/kernel`` in the names of one of Google's ViTs; None: they are of another kind."""
    return next((prefix for prefix in GOOGLE_PREFIXES if f"{prefix}embedding/kernel" in names), None)


def google_to_timm(tensors: Mapping[str, np.ndarray], file: str) -> tuple[dict[str, np.ndarray], int]:
    """Tensors of a ViT of Google's under timm's names and in PyTorch's layout, and the number of its heads.

    Read are the format of vit_jax (with an optional ``opt/target/``) and that of big_vision (``params/``, blocks apart
    or stacked), whose positions have no row of the class token: that row is 0. ``pre_logits`` is dropped, as in
    Google's fine-tuning, and with it the head that it feeds.

    Raises:
      ValueError: tensors are missing or extra, all being named, the model pools otherwise than by its class token, or
        parts of the attention are not of one number of heads.
    """
    prefix = google_prefix(tensors) or ""
    left = {name.removeprefix(prefix): value for name, value in _unstacked(tensors, prefix).items()}
    other = sorted(name for name in left if name.startswith("MAPHead_"))
    expect("cls" in left and not other, file, "a ViT that is pooled by its class token 'cls'", other or "no such token")
    dropped = ("pre_logits/", "head/") if any(name.startswith("pre_logits/") for name in left) else ()
    left = {name: value for name, value in left.items() if not (dropped and name.startswith(dropped))}
    names = _google_names(left)
    problems = [f"{prefix + name}: missing" for name in sorted(names.keys() - left.keys())]
    problems += [f"{prefix + name}: extra" for name in sorted(left.keys() - names.keys())]
    expect(not problems, file, "the tensors of a ViT of Google's", f"{len(problems)} others: {'; '.join(problems)}")
    dim = left["embedding/kernel"].shape[-1]
    heads = {v.shape[1] if v.ndim == 3 else 0 for name, v in left.items() if name.endswith("query/kernel")} or {0}
    count = min(heads)
    expect(
        len(heads) == 1 and count > 0 and dim % count == 0, file, "query/kernel (dim, heads, size)", f"heads {heads}"
    )
    found = {}
    for theirs, ours in names.items():
        value = left[theirs]
        if "DotProductAttention" in theirs:
            split = (count, dim // count)
            kernel = (*split, dim) if "/out/" in theirs else (dim, *split)
            shape = kernel if theirs.endswith("kernel") else (dim,) if "/out/" in theirs else split
            expect(value.shape == shape, f"{file}: {prefix + theirs}", str(shape), value.shape)
            value = value.reshape((dim, dim) if theirs.endswith("kernel") else dim)
        found[ours] = to_torch(("kernel",), value) if theirs.endswith("kernel") else value
    if "pos_embedding" in left:
        positions = found["pos_embed"]
        expect(positions.ndim == 3, f"{file}: {prefix}pos_embedding", "(1, positions, dim)", positions.shape)
        found["pos_embed"] = np.pad(positions, ((0, 0), (1, 0), (0, 0)))
    for q in [name for name in found if ".attn.q." in name]:
        parts = [found.pop(q.replace(".q.", f".{part}.")) for part in "qkv"]
        found[q.replace(".q.", ".qkv.")] = np.concatenate(parts)
    return found, count


def _google_names(tensors: Mapping[str, Any]) -> dict[str, str]:
    """timm's name by Google's, for the depth and the format of `tensors`; q, k and v of the attention apart."""
    blocks = {match[1] for match in map(re.compile(r"Transformer/encoderblock_(\d+)/").match, tensors) if match}
    old = any("MlpBlock_3" in name for name in tensors)
    numbers = {"attention": 1, "norm": 2, "mlp": 3} if old else {"attention": 0, "norm": 1, "mlp": 0}
    positions = {"pos_embedding": "pos_embed"} if "pos_embedding" in tensors else GOOGLE_POSITIONS
    head = GOOGLE_HEAD if set(GOOGLE_HEAD) & set(tensors) else {}
    return {**GOOGLE, **positions, **head} | {
        f"Transformer/encoderblock_{i}/{theirs.format(**numbers)}": f"blocks.{i}.{ours}"
        for i in range(len(blocks))
        for theirs, ours in GOOGLE_BLOCK.items()
    }


def _unstacked(tensors: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """Blocks of big_vision's ``scan``, which have a leading axis, one by one; other collections are passed over."""
    apart: dict[str, np.ndarray] = {}
    start = f"{prefix}Transformer/encoderblock/"
    for name, value in tensors.items():
        if name.startswith(start) and value.ndim:
            blocks = enumerate(value)
            apart |= {f"{prefix}Transformer/encoderblock_{i}/{name.removeprefix(start)}": row for i, row in blocks}
        elif name.startswith(prefix):
            apart[name] = value
    return apart
