"""PyTorch twins of the library's models, with the same gates; parameters of ResNet and ViT have the same names."""

import re
from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from flax.traverse_util import flatten_dict
from torch import nn
from torch.nn import functional as F

from experiments.bench.settings import Settings
from fsg_jax.pretrained.names import LEAVES, to_torch, torch_names

SQUEEZE = ("se.conv_reduce.weight", "se.conv_expand.weight")
"""Dense layers of the library that are 1x1 convolutions in timm."""


class Gate(nn.Module):
    """``x * sigmoid(logits)``, one logit a channel; channels second in maps, last in tokens."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The same shape as `x`."""
        values = torch.sigmoid(self.logits).to(x.dtype)
        return x * (values.view(1, -1, 1, 1) if x.ndim == 4 else values)


def conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    """Convolution without bias, padded symmetrically."""
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = conv(outputs, outputs, 3), nn.BatchNorm2d(outputs)
        self.shortcut = stride != 1 or inputs != outputs
        if self.shortcut:
            self.downsample_conv, self.downsample_bn = conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (batch, channels, height, width)."""
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        if self.shortcut:
            x = self.downsample_bn(self.downsample_conv(x))
        return F.relu(x + y, inplace=True)


class Pool(nn.Module):
    """Mean over height and width, in float32."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (batch, channels, height, width) to (batch, channels)."""
        return x.float().mean((2, 3))


def resnet18(width: int, classes: int, gated: bool) -> nn.Module:
    """ResNet-18 with the CIFAR stem; a gate after each stage if `gated`."""
    layers: dict[str, nn.Module] = {"conv1": conv(3, width, 3), "bn1": nn.BatchNorm2d(width), "relu": nn.ReLU(True)}
    inputs = width
    for stage in range(1, 5):
        outputs = width * 2 ** (stage - 1)
        layers[f"layer{stage}_0"] = BasicBlock(inputs, outputs, 1 if stage == 1 else 2)
        layers[f"layer{stage}_1"] = BasicBlock(outputs, outputs, 1)
        if gated:
            layers[f"gate{stage}"] = Gate(outputs)
        inputs = outputs
    return nn.Sequential(OrderedDict(layers | {"pool": Pool(), "head": nn.Linear(inputs, classes)}))


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens (batch, tokens, dim)."""
        batch, tokens, dim = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, dim))


class Block(nn.Module):
    """Pre-norm attention and MLP with exact GELU, each branch gated if `gated`."""

    def __init__(self, dim: int, heads: int, gated: bool) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim, eps=1e-6), Attention(dim, heads)
        mlp = OrderedDict(fc1=nn.Linear(dim, 4 * dim), gelu=nn.GELU(), fc2=nn.Linear(4 * dim, dim))
        self.norm2, self.mlp = nn.LayerNorm(dim, eps=1e-6), nn.Sequential(mlp)
        self.gate1, self.gate2 = (Gate(dim) if gated else nn.Identity() for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens (batch, tokens, dim)."""
        x = x + self.gate1(self.attn(self.norm1(x)))
        return x + self.gate2(self.mlp(self.norm2(x)))


class ViT(nn.Module):
    """ViT with patches of 4 pixels, class token and learned positions."""

    def __init__(self, image: int, dim: int, depth: int, heads: int, classes: int, gated: bool) -> None:
        super().__init__()
        self.patch_embed = nn.Sequential(OrderedDict(proj=nn.Conv2d(3, dim, 4, 4)))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, (image // 4) ** 2 + 1, dim))
        self.blocks = nn.Sequential(*(Block(dim, heads, gated) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(dim, eps=1e-6), nn.Linear(dim, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of images (batch, 3, height, width)."""
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.to(x.dtype).expand(len(x), -1, -1), x], 1) + self.pos_embed
        return self.head(self.norm(self.blocks(x)[:, 0]))


def efficientnet_b0(classes: int, gated: bool) -> nn.Module:
    """timm's; a gate after each stage if `gated`.

    Raises:
      ImportError: timm is not installed.
    """
    import timm

    model = timm.create_model("efficientnet_b0", num_classes=classes)
    for stage in model.blocks if gated else []:
        channels = [layer.num_features for layer in stage.modules() if isinstance(layer, nn.BatchNorm2d)][-1]
        stage.add_module("gate", Gate(channels))
    return model


def make_model(settings: Settings, name: str, *, gated: bool) -> nn.Module:
    """The twin of `experiments.bench.jax_steps.make_model`."""
    if name.startswith("efficientnet"):
        return efficientnet_b0(settings.classes, gated)
    if name.startswith("resnet"):
        return resnet18(settings.width, settings.classes, gated)
    return ViT(settings.image, settings.dim, settings.depth, 3, settings.classes, gated)


def load_variables(model: nn.Module, variables: Any) -> None:
    """Copies the Flax `variables` into the twin.

    Raises:
      ValueError: a parameter or running statistic has no match.
    """
    of_timm = torch_names(variables) if hasattr(model, "conv_stem") else {}
    tensors = {}
    for path, value in flatten_dict(dict(variables)).items():
        _, *modules, leaf = path
        if of_timm:
            name = re.sub(r"^gate(\d)", lambda match: f"blocks.{int(match[1]) - 1}.gate", of_timm[path])
        else:
            name = ".".join([*modules, LEAVES.get(leaf, leaf)]).replace("blocks_", "blocks.")
        tensor = torch.from_numpy(to_torch(path, np.asarray(value)).copy())
        tensors[name] = tensor[:, :, None, None] if name.endswith(SQUEEZE) else tensor
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise ValueError(f"variables: expected those of the twin, found none for {missing}, no place for {unexpected}")
