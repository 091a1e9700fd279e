"""A ViT under timm's names as Google's files have it, for tests: the facts of their formats, written out."""

import numpy as np


def google_vit(tensors, heads, form="vit_jax", prefix=None):
    """`form`: ``"vit_jax"``, ``"big_vision"``, or ``"scan"``, big_vision's with stacked blocks."""
    old = form == "vit_jax"
    dim = tensors["cls_token"].shape[-1]
    attention, norm, mlp = (
        ("MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3")
        if old
        else ("MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0")
    )
    found = {
        "cls": tensors["cls_token"],
        "embedding/kernel": tensors["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": tensors["patch_embed.proj.bias"],
        "Transformer/encoder_norm/scale": tensors["norm.weight"],
        "Transformer/encoder_norm/bias": tensors["norm.bias"],
        "head/kernel": tensors["head.weight"].T,
        "head/bias": tensors["head.bias"],
    }
    if old:
        found["Transformer/posembed_input/pos_embedding"] = tensors["pos_embed"]
    else:
        found["pos_embedding"] = tensors["pos_embed"][:, 1:]
    blocks = []
    for i in range(len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})):
        start = f"blocks.{i}."
        part = {
            "LayerNorm_0/scale": tensors[f"{start}norm1.weight"],
            "LayerNorm_0/bias": tensors[f"{start}norm1.bias"],
            f"{norm}/scale": tensors[f"{start}norm2.weight"],
            f"{norm}/bias": tensors[f"{start}norm2.bias"],
            f"{attention}/out/kernel": tensors[f"{start}attn.proj.weight"].T.reshape(heads, -1, dim),
            f"{attention}/out/bias": tensors[f"{start}attn.proj.bias"],
        }
        for j, name in enumerate(("query", "key", "value")):
            rows = slice(j * dim, (j + 1) * dim)
            part[f"{attention}/{name}/kernel"] = tensors[f"{start}attn.qkv.weight"][rows].T.reshape(dim, heads, -1)
            part[f"{attention}/{name}/bias"] = tensors[f"{start}attn.qkv.bias"][rows].reshape(heads, -1)
        for j in (1, 2):
            part[f"{mlp}/Dense_{j - 1}/kernel"] = tensors[f"{start}mlp.fc{j}.weight"].T
            part[f"{mlp}/Dense_{j - 1}/bias"] = tensors[f"{start}mlp.fc{j}.bias"]
        blocks.append(part)
    if form == "scan":
        found |= {f"Transformer/encoderblock/{name}": np.stack([b[name] for b in blocks]) for name in blocks[0]}
    else:
        found |= {f"Transformer/encoderblock_{i}/{name}": v for i, b in enumerate(blocks) for name, v in b.items()}
    prefix = ("" if old else "params/") if prefix is None else prefix
    return {prefix + name: value for name, value in found.items()}
