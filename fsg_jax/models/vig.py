"""ViG (gated linear attention): the parts that make a Vision Transformer linear in the patches (Liao et al. 2024).

arXiv 2405.18425; not Vision GNN. A ViG is a `fsg_jax.models.ViT` with these parts; docs/vig.md says where they differ
from the released code.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict
from jax.nn import initializers
from jaxtyping import Array, Float

from fsg_jax._checks import expect
from fsg_jax.gates.sites import Site, Use
from fsg_jax.models.gla import CHUNK, gated_linear_attention
from fsg_jax.models.layers import ModuleDef, Patches, Tokens, apply_gate, bias_uniform, fan_in_uniform
from fsg_jax.models.output_gate import gate_output
from fsg_jax.typing import Images

XAVIER = initializers.variance_scaling(2**-5, "fan_avg", "uniform")
"""Xavier's uniform rule with a gain of 2^-2.5; a depthwise kernel counts all its channels as fan-out."""

RMSNorm = partial(nn.RMSNorm, epsilon=1e-6)


class OverlappingStem(nn.Module):
    """Patches p that overlap: convolution (p/2 + 1, stride p/2), LayerNorm, SiLU, convolution (3, stride 2), LayerNorm.

    Both pad by 1; images of any size have the rows and columns that these strides give. LayerNorm is over channels,
    epsilon 1e-5.
    """

    dim: int
    patch_size: int
    dtype: Any = jnp.float32
    conv: ModuleDef = nn.Conv

    @nn.compact
    def __call__(self, x: Images) -> Patches:
        """Maps (batch, height, width, channels) to (batch, rows, columns, dim).

        Raises:
          ValueError: a patch size that is odd or below 4, or an image of less than a patch.
        """
        p = self.patch_size
        expect(p >= 4 and p % 2 == 0, "patch_size", "an even number from 4 on, for two strides", p)
        expect(min(x.shape[1:3]) >= p, "images", f"{p} x {p} pixels or more", f"{x.shape[1]} x {x.shape[2]}")
        for i, (dim, side, stride) in enumerate(((self.dim // 2, p // 2 + 1, p // 2), (self.dim, 3, 2)), 1):
            init = {"kernel_init": fan_in_uniform, "bias_init": bias_uniform(side * side * x.shape[-1])}
            x = self.conv(dim, (side, side), strides=stride, padding=1, dtype=self.dtype, name=f"conv{i}", **init)(x)
            x = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name=f"norm{i}")(x)
            x = jax.nn.silu(x) if i == 1 else x
        return x


class SwiGLU(nn.Module):
    """``W_down g(silu(a) * b)``, ``[a, b] = W_gate x``, ``g`` the gate if any; without biases (Shazeer 2020)."""

    hidden: int
    dropout: float = 0.0
    dtype: Any = jnp.float32
    gate: ModuleDef | None = None

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool = False) -> Tokens:
        """The same shape as `x`; random stream ``"dropout"`` in training."""
        dense = partial(nn.Dense, use_bias=False, dtype=self.dtype, kernel_init=initializers.normal(0.02))
        gate, up = jnp.split(dense(2 * self.hidden, name="gate_proj")(x), 2, axis=-1)
        y = apply_gate(self.gate, jax.nn.silu(gate) * up, name="gate", train=train)
        y = dense(x.shape[-1], name="down_proj")(y)
        return nn.Dropout(self.dropout, name="drop")(y, deterministic=not train)

    @staticmethod
    def hidden_site(hidden: int) -> Site:
        """The site of the gate on `hidden` units, paths within the module."""
        made = (Use("gate_proj", "out"), Use("gate_proj", "out", hidden))
        return Site(hidden, (Use("down_proj", "in"),), made=made)


class BidirectionalGLA(nn.Module):
    """Gated linear attention over the patches in both directions, mixed with their surroundings in the image.

    With ``l`` the depthwise 3x3 convolution of the input on the grid of patches, from which everything is computed::

        o = (GLA(q, k, v, g_forward) + GLA_reversed(q, k, v, g_backward)) / 2     g = logsigmoid(gk_up(gk_down(l))) / 16
        y = o_proj(output gates(G * RMSNorm_head(o) + (1 - G) * RMSNorm_head(l)))     G = sigmoid(g_proj(l))

    q and k have half the channels, so a head of 64 value channels has 32 key channels. A model tells `told`.

    Attributes:
      num_heads: heads; twice their number must divide the channels.
      dropout: rate on the output; the paper has none.
      dtype: of the computation; log-gates, the state of the attention and the norm of its output are float32.
      gate, gates, output_gate: gates before ``o_proj``, as in `fsg_jax.models.SelfAttention`.
      conv: factory of the depthwise convolution.
      activation: SiLU after the convolution and before ``o_proj``, as in the Tiny variant.
      locality: without it ``l`` is the input itself and G is 1: no convolution, and no mixing.
      directional: without it both directions have the same gates.
      chunk: tokens of a chunk, see `fsg_jax.gated_linear_attention`.
    """

    num_heads: int
    dropout: float = 0.0
    dtype: Any = jnp.float32
    gate: ModuleDef | None = None
    gates: tuple[str, ...] = ("gate_heads", "gate")
    output_gate: str | None = None
    conv: ModuleDef = nn.Conv
    activation: bool = False
    locality: bool = True
    directional: bool = True
    chunk: int = CHUNK

    output: ClassVar[str] = "o_proj"
    told: ClassVar[tuple[str, ...]] = ("num_heads", "dropout", "dtype", "gate", "gates", "output_gate", "conv")

    @nn.compact
    def __call__(self, x: Tokens, *, grid: tuple[int, int], train: bool = False) -> Tokens:
        """The same shape as `x`; random stream ``"dropout"`` in training.

        Args:
          x: the patches, row by row.
          grid: their rows and columns.
          train: draw dropout.

        Raises:
          ValueError: tokens that are not those of the grid, or channels that the heads do not divide.
        """
        batch, tokens, dim = x.shape
        expect(tokens == grid[0] * grid[1], "tokens", f"{grid[0]} x {grid[1]} patches and no other token", tokens)
        wanted = f"a multiple of twice the {self.num_heads} heads"
        expect(dim % (2 * self.num_heads) == 0, "dim", wanted, dim)
        local = self._surroundings(x, grid) if self.locality else x
        local = jax.nn.silu(local) if self.activation else local
        dense = partial(nn.Dense, dtype=self.dtype, kernel_init=XAVIER)
        parts = jnp.split(dense(2 * dim, use_bias=False, name="qkv_proj")(local), (dim // 2, dim), axis=-1)
        q, k, v = (y.reshape(batch, tokens, self.num_heads, -1) for y in parts)
        mixed = self._attend(q, k, v, local)
        if self.locality:
            share = jax.nn.sigmoid(dense(dim, name="g_proj")(local)).reshape(mixed.shape)
            mixed = share * mixed + (1 - share) * RMSNorm(dtype=self.dtype, name="l_norm")(local.reshape(mixed.shape))
        mixed = jax.nn.silu(mixed) if self.activation else mixed
        mixed = gate_output(self, mixed, x, kernel_init=XAVIER, train=train)
        y = dense(dim, use_bias=False, name="o_proj")(mixed)
        return nn.Dropout(self.dropout, name="drop")(y, deterministic=not train)

    def _surroundings(self, x: Tokens, grid: tuple[int, int]) -> Tokens:
        batch, _, dim = x.shape
        conv = {"padding": 1, "feature_group_count": dim, "use_bias": False, "dtype": self.dtype, "kernel_init": XAVIER}
        return self.conv(dim, (3, 3), name="in_proj", **conv)(x.reshape(batch, *grid, dim)).reshape(x.shape)

    def _attend(self, q: Array, k: Array, v: Array, local: Tokens) -> Float[Array, "batch tokens heads d_v"]:
        """Both directions, normalised within each head."""
        dense, directions = partial(nn.Dense, dtype=self.dtype, kernel_init=XAVIER), 1 + self.directional
        z = dense(16, use_bias=False, name="gk_down")(local)
        z = dense(directions * k.shape[2] * k.shape[3], name="gk_up")(z)
        log_gates = jax.nn.log_sigmoid(z.astype(jnp.promote_types(z.dtype, jnp.float32))) / 16
        forward, *rest = (g.reshape(k.shape) for g in jnp.split(log_gates, directions, axis=-1))

        def both(x: Array, y: Array) -> Array:  # further heads for the way back: one program, half as many steps
            return jnp.concatenate([x, jnp.flip(y, 1)], axis=2)

        gates, values = both(forward, (rest or [forward])[0]), v.astype(log_gates.dtype)
        o: Any = gated_linear_attention(both(q, q), both(k, k), both(values, values), gates, chunk=self.chunk)
        there, back = jnp.split(o, 2, axis=2)
        return RMSNorm(dtype=self.dtype, name="g_norm")((there + jnp.flip(back, 1)) / 2)

    def gate_sites(self, dim: int) -> dict[str, Site]:
        """The sites of its gates for tokens of `dim` channels, paths within the module."""
        read = Use("o_proj", "in", 0, dim // self.num_heads)
        return {"gate_heads": Site(self.num_heads, (read,)), "gate": Site(dim, (Use("o_proj", "in"),))}


TinyGLA = partial(BidirectionalGLA, activation=True)

_COMMON: Mapping[str, Any] = FrozenDict(
    depth=12,
    mixer=BidirectionalGLA,
    embed=OverlappingStem,
    norm=RMSNorm,
    mlp=SwiGLU,
    mlp_ratio=8 / 3,
    mlp_multiple=256,
    pool="normed_avg",
    class_token=False,
    interpolate="torch",
)
VIGS: dict[str, dict[str, Any]] = {
    "vig_tiny": {**_COMMON, "dim": 192, "num_heads": 3, "mixer": TinyGLA},
    "vig_small": {**_COMMON, "dim": 384, "num_heads": 6},
    "vig_base": {**_COMMON, "dim": 768, "num_heads": 12},
}
"""Arguments of `fsg_jax.models.ViT` for the variants of Liao et al. 2024, whose drop-path rates are 0, 0.2 and 0.5."""
