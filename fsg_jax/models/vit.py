"""Vision Transformer with gates by injection (Dosovitskiy et al. 2021; Roffo et al. 2024)."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import initializers
from jaxtyping import Array, Float

from fsg_jax._checks import check_choice, check_integer, check_positive, check_rates
from fsg_jax.models.arguments import check_factory, check_images
from fsg_jax.models.layers import DropPath, LayerScale, Mlp, ModuleDef, PatchEmbed, Tokens, apply_gate

POOLS = ("token", "avg")
GELUS = ("exact", "tanh")
# timm's trunc_normal_ cuts at -2 and 2, that is at 100 standard deviations: a normal distribution.
WEIGHT_INIT = initializers.normal(0.02)

LayerNorm = partial(nn.LayerNorm, epsilon=1e-6)


class SelfAttention(nn.Module):
    """``proj(softmax(q k^T / sqrt(d)) v)`` over the tokens, `num_heads` heads, qkv with bias.

    Attributes:
      num_heads: heads; must divide the channels.
      attention_dropout: rate on the attention weights.
      dropout: rate on the output.
      dtype: of the computation; the softmax is float32.
    """

    num_heads: int
    attention_dropout: float = 0.0
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool = False) -> Tokens:
        """The same shape as `x`; random stream ``"dropout"`` in training."""
        batch, tokens, dim = x.shape
        qkv = nn.Dense(3 * dim, dtype=self.dtype, kernel_init=WEIGHT_INIT, name="qkv")(x)
        q, k, v = (y.reshape(batch, tokens, self.num_heads, -1) for y in jnp.split(qkv, 3, axis=-1))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(scores * q.shape[-1] ** -0.5).astype(v.dtype)
        weights = nn.Dropout(self.attention_dropout, name="attn_drop")(weights, deterministic=not train)
        x = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(batch, tokens, dim)
        x = nn.Dense(dim, dtype=self.dtype, kernel_init=WEIGHT_INIT, name="proj")(x)
        return nn.Dropout(self.dropout, name="drop")(x, deterministic=not train)


class Block(nn.Module):
    """``x <- x + g1(mixer(ln1(x)));  x <- x + g2(mlp(ln2(x)))``, with the gates ``g`` of Roffo et al. 2024.

    A branch passes LayerScale (if any), the gate (if any), then DropPath. Attributes as in `ViT`; `mixer` is
    not None.
    """

    mixer: ModuleDef
    mlp_ratio: float = 4.0
    gate: ModuleDef | None = None
    dropout: float = 0.0
    drop_path: float = 0.0
    layer_scale: float | None = None
    dtype: Any = jnp.float32
    gelu: str = "exact"

    @nn.compact
    def __call__(self, x: Tokens, train: bool = False) -> Tokens:
        """The same shape as `x`."""
        norm = partial(LayerNorm, dtype=self.dtype)
        y = self.mixer(name="attn")(norm(name="norm1")(x), train=train)
        x = x + self._branch(y, "1", train)
        hidden = int(x.shape[-1] * self.mlp_ratio)
        mlp = Mlp(hidden, self.dropout, WEIGHT_INIT, self.dtype, self.gelu == "tanh", name="mlp")
        y = mlp(norm(name="norm2")(x), train=train)
        return x + self._branch(y, "2", train)

    def _branch(self, y: Tokens, index: str, train: bool) -> Tokens:
        if self.layer_scale is not None:
            y = LayerScale(self.layer_scale, name=f"ls{index}")(y)
        y = apply_gate(self.gate, y, name=f"gate{index}", train=train)
        return DropPath(self.drop_path, name=f"drop_path{index}")(y, train=train)


class ViT(nn.Module):
    """Pre-norm Vision Transformer with an optional gate on both residual branches of every block.

    Architecture and distribution of the initial weights are those of timm's ``VisionTransformer``. Parameters
    are float32. The number of positions comes from the input at initialisation: variables fit one image size.

    Attributes:
      num_classes: logits; 0 gives the pooled features instead and makes no head.
      patch_size: side of a patch in pixels; must divide the images' height and width.
      dim: channels of a token.
      depth: blocks.
      num_heads: heads of the default mixer; must divide `dim`.
      mlp_ratio: hidden width of the MLP over `dim`.
      gate: factory, ``gate(name=...)``, of modules called as ``module(x, train=train)``; None makes none.
      dropout: rate after the positional embedding, the attention projection and both MLP layers.
      attention_dropout: rate on the attention weights of the default mixer.
      drop_path: stochastic depth rate of the last block; rises linearly from 0 at the first.
      layer_scale: initial value of LayerScale; None makes none.
      pool: ``"token"``, the class token; ``"avg"``, the mean of the patch tokens, normalised after the mean.
      class_token: prepend a learned token; needed for ``pool="token"``.
      mixer: factory of the token mixer, called as ``mixer(name="attn")`` of modules called as
        ``module(x, train=train)`` on (batch, tokens, dim); None is `SelfAttention`.
      dtype: of the computation up to the pooling.
      remat: recompute each block in the backward pass; same variables, less memory.
      gelu: ``"exact"``, as in timm; ``"tanh"``, the approximation with which Google's ViTs were trained.

    Raises:
      ValueError: on construction, for an attribute out of its range.
    """

    num_classes: int
    patch_size: int = 16
    dim: int = 192
    depth: int = 12
    num_heads: int = 3
    mlp_ratio: float = 4.0
    gate: ModuleDef | None = None
    dropout: float = 0.0
    attention_dropout: float = 0.0
    drop_path: float = 0.0
    layer_scale: float | None = None
    pool: str = "token"
    class_token: bool = True
    mixer: ModuleDef | None = None
    dtype: Any = jnp.float32
    remat: bool = False
    gelu: str = "exact"

    def __post_init__(self) -> None:
        """Checks the attributes."""
        check_integer("num_classes", self.num_classes, 0)
        for argument in ("patch_size", "dim", "depth", "num_heads", "mlp_ratio"):
            check_positive(**{argument: getattr(self, argument)})
        check_rates(dropout=self.dropout, attention_dropout=self.attention_dropout, drop_path=self.drop_path)
        check_choice("pool", self.pool, POOLS)
        check_choice("gelu", self.gelu, GELUS)
        check_factory("gate", self.gate)
        check_factory("mixer", self.mixer)
        if self.mixer is None and self.dim % self.num_heads:
            raise ValueError(f"num_heads: expected a divisor of dim {self.dim}, found {self.num_heads}")
        if self.pool == "token" and not self.class_token:
            raise ValueError(
                "class_token: expected True for pool='token', found False; use pool='avg' without a class token"
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Float[Array, "batch outputs"]:
        """Returns float32 logits, or pooled features if `num_classes` is 0.

        Args:
          x: (batch, height, width, channels), floating point, normalised.
          train: draw dropout and stochastic depth from the random stream ``"dropout"``.

        Raises:
          ValueError: `x` has another rank, is not floating point, or its size is no multiple of `patch_size`.
        """
        check_images(x)
        x = PatchEmbed(self.dim, self.patch_size, self.dtype, name="patch_embed")(x)
        if self.class_token:
            token = self.param("cls_token", initializers.normal(1e-6), (1, 1, self.dim), jnp.float32)
            token = jnp.broadcast_to(token.astype(x.dtype), (x.shape[0], 1, self.dim))
            x = jnp.concatenate([token, x], axis=1)
        x = x + self.param("pos_embed", WEIGHT_INIT, (1, *x.shape[1:]), jnp.float32).astype(x.dtype)
        x = nn.Dropout(self.dropout, name="pos_drop")(x, deterministic=not train)

        mixer = self.mixer or partial(SelfAttention, self.num_heads, self.attention_dropout, self.dropout, self.dtype)
        block = partial(
            nn.remat(Block, static_argnums=(2,)) if self.remat else Block,
            mixer=mixer,
            mlp_ratio=self.mlp_ratio,
            gate=self.gate,
            dropout=self.dropout,
            layer_scale=self.layer_scale,
            dtype=self.dtype,
            gelu=self.gelu,
        )
        for i, rate in enumerate(np.linspace(0, self.drop_path, self.depth)):
            x = block(drop_path=float(rate), name=f"blocks_{i}")(x, train)

        if self.pool == "token":
            x = LayerNorm(dtype=jnp.float32, name="norm")(x[:, 0])
        else:
            x = x[:, int(self.class_token) :].astype(jnp.float32).mean(1)
            x = LayerNorm(dtype=jnp.float32, name="fc_norm")(x)
        return nn.Dense(self.num_classes, kernel_init=WEIGHT_INIT, name="head")(x) if self.num_classes else x


VITS: dict[str, dict[str, Any]] = {
    "vit_tiny": {"dim": 192, "depth": 12, "num_heads": 3},
    "vit_small": {"dim": 384, "depth": 12, "num_heads": 6},
    "vit_base": {"dim": 768, "depth": 12, "num_heads": 12},
}
"""Arguments of the named variants; sources: Dosovitskiy et al. 2021, table 1 (base); Touvron et al. 2021,
DeiT, table 1 (tiny, small)."""
