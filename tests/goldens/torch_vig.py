"""ViG (gated linear attention) in PyTorch, written from the recipe of its goldens: the twin of `record.py`."""

import torch
from torch import nn
from torch.nn.functional import logsigmoid, silu


class Rms(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x):
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * self.weight


class Channels(nn.LayerNorm):
    """Over the channels of images (batch, channels, height, width)."""

    def forward(self, x):
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


def recurrence(q, k, v, g):
    """(batch, heads, time, d)"""
    state, out = q.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1]), []
    for t in range(q.shape[2]):
        state = g[:, :, t, :, None].exp() * state + k[:, :, t, :, None] * v[:, :, t, None]
        out.append((q[:, :, t, None] @ state)[:, :, 0] * q.shape[-1] ** -0.5)
    return torch.stack(out, 2)


class Mixer(nn.Module):
    def __init__(self, dim, heads, tiny):
        super().__init__()
        linear = lambda a, b: nn.Linear(a, b, bias=False)  # noqa: E731
        self.heads, self.tiny = heads, tiny
        self.in_proj = nn.Sequential(nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False))
        self.qkv_proj, self.o_proj = linear(dim, 2 * dim), linear(dim, dim)
        self.gk_proj = nn.Sequential(linear(dim, 16), nn.Linear(16, dim))
        self.g_proj, self.g_norm, self.l_norm = nn.Linear(dim, dim), Rms(dim // heads), Rms(dim // heads)

    def forward(self, x, grid):
        batch, tokens, dim = x.shape
        x = self.in_proj(x.mT.reshape(batch, dim, *grid)).flatten(2).mT
        x = silu(x) if self.tiny else x
        by_head = lambda y: y.reshape(batch, tokens, self.heads, -1).swapaxes(1, 2)  # noqa: E731
        q, k, v = map(by_head, self.qkv_proj(x).split((dim // 2, dim // 2, dim), -1))
        forward, backward = map(by_head, (logsigmoid(self.gk_proj(x)) / 16).chunk(2, -1))
        back = recurrence(*(y.flip(2) for y in (q, k, v, backward))).flip(2)
        o = self.g_norm((recurrence(q, k, v, forward) + back) / 2)
        share = by_head(torch.sigmoid(self.g_proj(x)))
        y = share * o + (1 - share) * self.l_norm(by_head(x))
        y = silu(y) if self.tiny else y
        return self.o_proj(y.swapaxes(1, 2).reshape(batch, tokens, dim))


class Mlp(nn.Module):
    def __init__(self, dim):
        super().__init__()
        hidden = -(-(8 * dim // 3) // 256) * 256
        self.gate_proj, self.down_proj = nn.Linear(dim, 2 * hidden, bias=False), nn.Linear(hidden, dim, bias=False)

    def forward(self, x):
        gate, up = self.gate_proj(x).chunk(2, -1)
        return self.down_proj(silu(gate) * up)


class Block(nn.Module):
    def __init__(self, dim, heads, tiny):
        super().__init__()
        self.attn_norm, self.mlp_norm = Rms(dim), Rms(dim)
        self.attn, self.mlp = Mixer(dim, heads, tiny), Mlp(dim)

    def forward(self, x, grid):
        x = x + self.attn(self.attn_norm(x), grid)
        return x + self.mlp(self.mlp_norm(x))


class ViG(nn.Module):
    def __init__(self, grid, patch, dim, heads, depth, classes, tiny):
        super().__init__()
        self.patch_embed = nn.Module()
        first = nn.Conv2d(3, dim // 2, patch // 2 + 1, patch // 2, 1)
        second = nn.Conv2d(dim // 2, dim, 3, 2, 1)
        self.patch_embed.proj = nn.Sequential(first, Channels(dim // 2), nn.SiLU(), second, Channels(dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, grid[0] * grid[1], dim))
        self.blocks = nn.ModuleList(Block(dim, heads, tiny) for _ in range(depth))
        self.norm, self.head = Rms(dim), nn.Linear(dim, classes)

    def forward(self, x):
        x = self.patch_embed.proj(x)
        grid, x = x.shape[2:], x.flatten(2).mT + self.pos_embed
        for block in self.blocks:
            x = block(x, grid)
        return self.head(self.norm(x).mean(1))

    def places(self):
        return {f"blocks.{i}.gate{j}": part for i, b in enumerate(self.blocks) for j, part in ((1, b.attn), (2, b.mlp))}
