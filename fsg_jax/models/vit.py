"""Vision Transformer with gates by injection (Dosovitskiy et al. 2021; Roffo et al. 2024)."""

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict
from jax.nn import initializers
from jaxtyping import Array, Float

from fsg_jax._checks import check_choice, check_integer, check_positive, check_rates, expect
from fsg_jax.gates.sites import Site, Use, factory_of, widths_below
from fsg_jax.models.arguments import check_factory, check_images, check_widths
from fsg_jax.models.layers import DropPath, LayerScale, Mlp, ModuleDef, PatchEmbed, Tokens, apply_gate

POOLS = ("token", "avg")
GELUS = ("exact", "tanh")
GATE_PLACEMENTS = ("branch", "hidden")
# timm's trunc_normal_ cuts at -2 and 2, that is at 100 standard deviations: a normal distribution.
WEIGHT_INIT = initializers.normal(0.02)

LayerNorm = partial(nn.LayerNorm, epsilon=1e-6)


class SelfAttention(nn.Module):
    """``proj(g(softmax(q k^T / sqrt(d)) v))`` over the tokens, `num_heads` heads, qkv with bias; ``g``: gates, if any.

    Attributes:
      num_heads: heads; must divide the channels.
      attention_dropout: rate on the attention weights.
      dropout: rate on the output.
      dtype: of the computation; the softmax is float32.
      gate: factory of the gates ``gate_heads``, one value a head, and ``gate`` on the heads' joined outputs; or None.
      widths: ``{"gate_heads": heads, "gate": channels of all heads' outputs}``, where heads or channels were removed.
    """

    num_heads: int
    attention_dropout: float = 0.0
    dropout: float = 0.0
    dtype: Any = jnp.float32
    gate: ModuleDef | None = None
    widths: Mapping[str, int] = FrozenDict()

    output: ClassVar[str] = "proj"

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool = False) -> Tokens:
        """The same shape as `x`; random stream ``"dropout"`` in training."""
        batch, tokens, dim = x.shape
        heads, d = self.widths.get("gate_heads", self.num_heads), dim // self.num_heads
        joined = self.widths.get("gate", heads * d)
        expect(joined % heads == 0, "widths['gate']", f"a multiple of {heads} heads", joined)
        qkv = nn.Dense(2 * heads * d + joined, dtype=self.dtype, kernel_init=WEIGHT_INIT, name="qkv")(x)
        parts = jnp.split(qkv, (heads * d, 2 * heads * d), axis=-1)
        q, k, v = (y.reshape(batch, tokens, heads, -1) for y in parts)
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(scores * d**-0.5).astype(v.dtype)
        weights = nn.Dropout(self.attention_dropout, name="attn_drop")(weights, deterministic=not train)
        x = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
        if self.gate is not None:
            x = apply_gate(self.gate, x.swapaxes(2, 3), name="gate_heads", train=train).swapaxes(2, 3)
        x = apply_gate(self.gate, x.reshape(batch, tokens, joined), name="gate", train=train)
        x = nn.Dense(dim, dtype=self.dtype, kernel_init=WEIGHT_INIT, name="proj")(x)
        return nn.Dropout(self.dropout, name="drop")(x, deterministic=not train)

    def gate_sites(self, dim: int) -> dict[str, Site]:
        """The sites of its gates for tokens of `dim` channels, paths within the module."""
        heads, d = self.widths.get("gate_heads", self.num_heads), dim // self.num_heads
        joined = self.widths.get("gate", heads * d)
        width = joined // heads
        q, k = (Use("qkv", "out", offset, d) for offset in (0, heads * d))
        v = Use("qkv", "out", 2 * heads * d)
        of_heads = Site(heads, (Use("proj", "in", 0, width),), made=(q, k, v._replace(repeat=width)), unit=d)
        channels = Site(joined, (Use("proj", "in"),), made=(v,), grouped_by="gate_heads")
        return {"gate_heads": of_heads, "gate": channels}


class Block(nn.Module):
    """``x <- x + g1(mixer(ln1(x)));  x <- x + g2(mlp(ln2(x)))``, with the gates ``g`` of Roffo et al. 2024.

    A branch passes LayerScale (if any), the gate (if any), then DropPath. Attributes as in `ViT`; `mixer` is
    not None, `hidden_gate` makes the gate inside the MLP, and `widths` has paths within the block.
    """

    mixer: ModuleDef
    mlp_ratio: float = 4.0
    gate: ModuleDef | None = None
    hidden_gate: ModuleDef | None = None
    widths: Mapping[str, int] = FrozenDict()
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
        hidden = self.widths.get("mlp/gate", int(x.shape[-1] * self.mlp_ratio))
        mlp = Mlp(hidden, self.dropout, WEIGHT_INIT, self.dtype, self.gelu == "tanh", self.hidden_gate, name="mlp")
        y = mlp(norm(name="norm2")(x), train=train)
        return x + self._branch(y, "2", train)

    def _branch(self, y: Tokens, index: str, train: bool) -> Tokens:
        if self.layer_scale is not None:
            y = LayerScale(self.layer_scale, name=f"ls{index}")(y)
        y = apply_gate(self.gate, y, name=f"gate{index}", train=train)
        return DropPath(self.drop_path, name=f"drop_path{index}")(y, train=train)


class ViT(nn.Module):
    """Pre-norm Vision Transformer with optional gates on both residual branches of every block, or inside them.

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
      gate_placement: ``"branch"``, on both residual branches (Roffo et al. 2024); ``"hidden"``, inside them, what
        `fsg_jax.prune` can remove: ``attn/gate_heads``, one value an attention head, ``attn/gate``, on the heads'
        joined outputs before their projection (both in the default mixer), and ``mlp/gate``, on the hidden units.
      dropout: rate after the positional embedding, the attention projection and both MLP layers.
      attention_dropout: rate on the attention weights of the default mixer.
      drop_path: stochastic depth rate of the last block; rises linearly from 0 at the first.
      layer_scale: initial value of LayerScale; None makes none.
      pool: ``"token"``, the class token; ``"avg"``, the mean of the patch tokens, normalised after the mean.
      class_token: prepend a learned token; needed for ``pool="token"``.
      mixer: factory of the token mixer, called as ``mixer(name="attn")`` of modules called as
        ``module(x, train=train)`` on (batch, tokens, dim); None is `SelfAttention`. One whose class has a string
        ``output``, the name of the linear layer that it ends in, can absorb the gate on its branch.
      dtype: of the computation up to the pooling.
      remat: recompute each block in the backward pass; same variables, less memory.
      gelu: ``"exact"``, as in timm; ``"tanh"``, the approximation with which Google's ViTs were trained.
      widths: heads, channels and hidden units where they are not those that `num_heads`, `dim` and `mlp_ratio` give, by
        the name that the gate there has in the placement ``"hidden"``, e.g. ``{"blocks_0/mlp/gate": 512}``.

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
    gate_placement: str = "branch"
    widths: Mapping[str, int] = FrozenDict()

    def __post_init__(self) -> None:
        """Checks the attributes."""
        check_integer("num_classes", self.num_classes, 0)
        for argument in ("patch_size", "dim", "depth", "num_heads", "mlp_ratio"):
            check_positive(**{argument: getattr(self, argument)})
        check_rates(dropout=self.dropout, attention_dropout=self.attention_dropout, drop_path=self.drop_path)
        check_choice("pool", self.pool, POOLS)
        check_choice("gelu", self.gelu, GELUS)
        check_choice("gate_placement", self.gate_placement, GATE_PLACEMENTS)
        check_factory("gate", self.gate)
        check_factory("mixer", self.mixer)
        if self.mixer is None and self.dim % self.num_heads:
            raise ValueError(f"num_heads: expected a divisor of dim {self.dim}, found {self.num_heads}")
        if self.pool == "token" and not self.class_token:
            raise ValueError(
                "class_token: expected True for pool='token', found False; use pool='avg' without a class token"
            )
        own = ("mlp/gate",) if self.mixer else ("attn/gate_heads", "attn/gate", "mlp/gate")
        check_widths(self.widths, [f"blocks_{i}/{name}" for i in range(self.depth) for name in own])
        super().__post_init__()

    @property
    def num_features(self) -> int:
        """Number of pooled features."""
        return self.dim

    def gate_sites(self) -> dict[str, Site]:
        """Which weights make and read the channels of each gate; see `fsg_jax.gates.sites`."""
        branch, sites = self.gate_placement == "branch", dict[str, Site]()
        for block in (f"blocks_{i}" for i in range(self.depth)):
            widths, hidden = widths_below(self.widths, block), int(self.dim * self.mlp_ratio)
            if self.mixer is None:
                attention = SelfAttention(self.num_heads, widths=widths_below(widths, "attn"), parent=None)
                own = attention.gate_sites(self.dim)
                sites |= {f"{block}/attn/{name}": site.within(f"{block}/attn") for name, site in own.items()}
            last = getattr(factory_of(self.mixer or SelfAttention), "output", None)
            read, made = (Use(f"{block}/mlp/fc2", "in"),), (Use(f"{block}/mlp/fc1", "out"),)
            sites[f"{block}/mlp/gate"] = Site(widths.get("mlp/gate", hidden), read, made=made)
            for i, end in ((1, last and f"attn/{last}"), (2, "mlp/fc2")) if branch else ():
                end = end if self.layer_scale is None else f"ls{i}"
                sites[f"{block}/gate{i}"] = Site(self.dim, (Use(f"{block}/{end}", "out"),) if end else ())
        return sites

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

        gates = {self.gate_placement: self.gate}  # the other places have none
        rates = (self.attention_dropout, self.dropout)
        attention = partial(SelfAttention, self.num_heads, *rates, self.dtype, gates.get("hidden"))
        block = partial(
            nn.remat(Block, static_argnums=(2,)) if self.remat else Block,
            mlp_ratio=self.mlp_ratio,
            gate=gates.get("branch"),
            hidden_gate=gates.get("hidden"),
            dropout=self.dropout,
            layer_scale=self.layer_scale,
            dtype=self.dtype,
            gelu=self.gelu,
        )
        for i, rate in enumerate(np.linspace(0, self.drop_path, self.depth)):
            widths = widths_below(self.widths, f"blocks_{i}")
            mixer = self.mixer or partial(attention, widths=widths_below(widths, "attn"))
            x = block(mixer=mixer, widths=widths, drop_path=float(rate), name=f"blocks_{i}")(x, train)

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
