"""PyTorch twins of the library's ResNet and ViT, with the same gates; parameters have the same names."""

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from experiments.bench.settings import Settings


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


class ResNet(nn.Module):
    """ResNet-18 with the CIFAR stem; a gate after each stage if `gated`."""

    def __init__(self, width: int, classes: int, gated: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(3, width, 3), nn.BatchNorm2d(width)
        stages, inputs = [], width
        for stage in range(4):
            outputs = width * 2**stage
            blocks = [BasicBlock(inputs, outputs, 1 if stage == 0 else 2), BasicBlock(outputs, outputs, 1)]
            for i, block in enumerate(blocks):
                self.add_module(f"layer{stage + 1}_{i}", block)
            if gated:
                blocks.append(self._gate(stage + 1, outputs))
            stages.append(blocks)
            inputs = outputs
        self.order: list[list[Any]] = stages
        self.head = nn.Linear(inputs, classes)

    def _gate(self, index: int, channels: int) -> Any:
        self.add_module(f"gate{index}", gate := Gate(channels))
        return gate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of images (batch, 3, height, width)."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        for stage in self.order:
            for module in stage:
                x = module(x)
        return self.head(x.float().mean((2, 3)))


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


class Mlp(nn.Module):
    """Two layers with exact GELU."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens (batch, tokens, dim)."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm attention and MLP, each branch gated if `gated`."""

    def __init__(self, dim: int, heads: int, gated: bool) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim, eps=1e-6), Attention(dim, heads)
        self.norm2, self.mlp = nn.LayerNorm(dim, eps=1e-6), Mlp(dim)
        self.gate1, self.gate2 = (Gate(dim) if gated else nn.Identity() for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens (batch, tokens, dim)."""
        x = x + self.gate1(self.attn(self.norm1(x)))
        return x + self.gate2(self.mlp(self.norm2(x)))


class ViT(nn.Module):
    """ViT with patches of 4 pixels, class token and learned positions."""

    def __init__(self, image: int, dim: int, depth: int, heads: int, classes: int, gated: bool) -> None:
        super().__init__()
        self.patch_embed = nn.Sequential()
        self.patch_embed.add_module("proj", nn.Conv2d(3, dim, 4, 4))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, (image // 4) ** 2 + 1, dim))
        self.depth, self.norm, self.head = depth, nn.LayerNorm(dim, eps=1e-6), nn.Linear(dim, classes)
        for i in range(depth):
            self.add_module(f"blocks_{i}", Block(dim, heads, gated))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of images (batch, 3, height, width)."""
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.to(x.dtype).expand(len(x), -1, -1), x], 1) + self.pos_embed
        for i in range(self.depth):
            x = getattr(self, f"blocks_{i}")(x)
        return self.head(self.norm(x[:, 0]))


def make_model(settings: Settings, name: str, *, gated: bool) -> nn.Module:
    """The twin of `experiments.bench.models_jax.make_model`."""
    if name.startswith("resnet"):
        return ResNet(settings.width, settings.classes, gated)
    return ViT(settings.image, settings.dim, settings.depth, 3, settings.classes, gated)


def load_variables(model: nn.Module, variables: Any) -> None:
    """Copies the Flax `variables` into the twin; every parameter and running statistic must have its match."""
    tensors = {}
    for collection, tree in variables.items():
        for path, value in _leaves(tree):
            tensors[_name(collection, path)] = torch.from_numpy(_transposed(path[-1], np.asarray(value)).copy())
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise ValueError(f"the variables do not fit: without a value {missing}, without a place {unexpected}")


def _leaves(tree: Any, path: tuple[str, ...] = ()) -> Any:
    for key, value in tree.items():
        yield from _leaves(value, (*path, key)) if isinstance(value, dict) else [((*path, key), value)]


def _name(collection: str, path: tuple[str, ...]) -> str:
    *modules, leaf = path
    leaf = f"running_{leaf}" if collection == "batch_stats" else {"kernel": "weight", "scale": "weight"}.get(leaf, leaf)
    return ".".join([*modules, leaf])


def _transposed(leaf: str, value: np.ndarray) -> np.ndarray:
    if leaf != "kernel":
        return value
    return value.T if value.ndim == 2 else value.transpose(3, 2, 0, 1)
