"""Vision Transformer with gates by injection (Dosovitskiy et al. 2021; Roffo et al. 2024)."""

from collections.abc import Callable, Mapping
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
from fsg_jax.models.arguments import bound_arguments, check_factory, check_images, check_widths, takes
from fsg_jax.models.layers import DropPath, LayerScale, Mlp, ModuleDef, PatchEmbed, Tokens, apply_gate
from fsg_jax.models.output_gate import OUTPUT_GATES, gate_output, output_gate_uses
from fsg_jax.models.positions import RULES, resize_positions, square
from fsg_jax.models.spatial_attention import ATTENTION, keep

POOLS = ("token", "avg", "normed_avg")
GELUS = ("exact", "tanh")
GATE_PLACEMENTS: dict[str, tuple[str, ...]] = {
    "branch": (),
    "hidden": ("gate_heads", "gate"),
    "output": ("gate",),
    "output_heads": ("gate_heads",),
}
"""The gates that the mixer makes, by placement."""
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
      gate: factory of the gates in `gates`; or None.
      widths: ``{"gate_heads": heads, "gate": channels of all heads' outputs}``, where heads or channels were removed.
      gates: which there are: ``"gate_heads"``, one value a head, and ``"gate"``, on the heads' joined outputs.
      output_gate: a gate that depends on the input, before ``proj``; see `fsg_jax.models.output_gate`.
      attend: ``attend(q, k, v)`` computes ``softmax(q k^T / sqrt(d)) v`` of arrays (batch, tokens, heads, d), in place
        of the products here. It is not used where the weights are kept or dropped out, or where ``v`` has other
        channels than ``q`` (`widths`). A model takes it as ``mixer=functools.partial(SelfAttention, attend=attend)``;
        that of cuDNN is `fsg_jax.models.fused_attention.fused_attention`.

    Where the collection ``"attention"`` is mutable, ``"class_token"`` in it is the attention of the class token to the
    patches before dropout, (batch, heads, rows, columns), float32: what the token pays to itself is left out, so that
    the sum over the patches is below 1.
    """

    num_heads: int
    attention_dropout: float = 0.0
    dropout: float = 0.0
    dtype: Any = jnp.float32
    gate: ModuleDef | None = None
    widths: Mapping[str, int] = FrozenDict()
    gates: tuple[str, ...] = GATE_PLACEMENTS["hidden"]
    output_gate: str | None = None
    attend: Callable[[Array, Array, Array], Array] | None = None

    output: ClassVar[str] = "proj"
    told: ClassVar[tuple[str, ...]] = (
        *("num_heads", "attention_dropout", "dropout", "dtype", "gate", "gates", "output_gate", "widths"),
    )

    @nn.compact
    def __call__(self, x: Tokens, grid: tuple[int, int] | None = None, *, train: bool = False) -> Tokens:
        """The same shape as `x`; random stream ``"dropout"`` in training.

        Args:
          x: a class token first, if there is one token more than `grid` has patches.
          grid: rows and columns of the patches; without them no attention is kept.
          train: draw dropout.
        """
        batch, tokens, dim = x.shape
        expect(dim % self.num_heads == 0, "num_heads", f"a divisor of dim {dim}", self.num_heads)
        heads, d = self.widths.get("gate_heads", self.num_heads), dim // self.num_heads
        joined = self.widths.get("gate", heads * d)
        expect(joined % heads == 0, "widths['gate']", f"a multiple of {heads} heads", joined)
        qkv = nn.Dense(2 * heads * d + joined, dtype=self.dtype, kernel_init=WEIGHT_INIT, name="qkv")(x)
        parts = jnp.split(qkv, (heads * d, 2 * heads * d), axis=-1)
        q, k, v = (y.reshape(batch, tokens, heads, -1) for y in parts)
        kept = grid if self.is_mutable_collection(ATTENTION) else None
        if self.attend is None or kept or (train and self.attention_dropout) or v.shape != q.shape:
            y = self._attend(q, k, v, kept, train)
        else:
            y = self.attend(q, k, v)
        x = gate_output(self, y, x, kernel_init=WEIGHT_INIT, train=train)
        x = nn.Dense(dim, dtype=self.dtype, kernel_init=WEIGHT_INIT, name="proj")(x)
        return nn.Dropout(self.dropout, name="drop")(x, deterministic=not train)

    def _attend(self, q: Array, k: Array, v: Array, grid: tuple[int, int] | None, train: bool) -> Array:
        batch, tokens, heads, d = q.shape
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(scores * d**-0.5)
        if grid is not None and tokens == 1 + grid[0] * grid[1]:
            keep(self, ATTENTION, "class_token", weights[:, :, 0, 1:].reshape(batch, heads, *grid))
        weights = weights.astype(v.dtype)
        weights = nn.Dropout(self.attention_dropout, name="attn_drop")(weights, deterministic=not train)
        return jnp.einsum("bhqk,bkhd->bqhd", weights, v)

    def gate_sites(self, dim: int) -> dict[str, Site]:
        """The sites of its gates for tokens of `dim` channels, paths within the module."""
        heads, d = self.widths.get("gate_heads", self.num_heads), dim // self.num_heads
        joined = self.widths.get("gate", heads * d)
        width = joined // heads
        q, k = (Use("qkv", "out", offset, d) for offset in (0, heads * d))
        v = Use("qkv", "out", 2 * heads * d)
        by_head, by_channel = output_gate_uses(self.output_gate, width)
        made = (q, k, v._replace(repeat=width), *by_head)
        of_heads = Site(heads, (Use("proj", "in", 0, width),), made=made, unit=d)
        channels = Site(joined, (Use("proj", "in"),), made=(v, *by_channel), grouped_by="gate_heads")
        return {"gate_heads": of_heads, "gate": channels}


class Block(nn.Module):
    """``x <- x + g1(mixer(norm1(x)));  x <- x + g2(mlp(norm2(x)))``, with the gates ``g`` of Roffo et al. 2024.

    A branch passes LayerScale (if any), the gate (if any), then DropPath.

    Attributes:
      mixer: as in `ViT`, not None.
      mlp: factory, ``mlp(hidden, gate=..., name=...)``, of modules called as ``module(x, train=train)``.
      hidden: width of the MLP.
      norm: factory of normalisations.
      gate: of the branches.
      hidden_gate: inside the MLP.
      drop_path: rate.
      layer_scale: initial value; None makes none.
    """

    mixer: ModuleDef
    mlp: ModuleDef
    hidden: int
    norm: ModuleDef
    gate: ModuleDef | None = None
    hidden_gate: ModuleDef | None = None
    drop_path: float = 0.0
    layer_scale: float | None = None

    @nn.compact
    def __call__(self, x: Tokens, grid: tuple[int, int] | None = None, train: bool = False) -> Tokens:
        """The same shape as `x`; `grid`: rows and columns of the patches, for mixers that ask for it."""
        mixer = self.mixer(name="attn")
        where = {"grid": grid} if takes(mixer, "grid") else {}
        x = x + self._branch(mixer(self.norm(name="norm1")(x), train=train, **where), "1", train)
        mlp = self.mlp(self.hidden, gate=self.hidden_gate, name="mlp")
        return x + self._branch(mlp(self.norm(name="norm2")(x), train=train), "2", train)

    def _branch(self, y: Tokens, index: str, train: bool) -> Tokens:
        if self.layer_scale is not None:
            y = LayerScale(self.layer_scale, name=f"ls{index}")(y)
        y = apply_gate(self.gate, y, name=f"gate{index}", train=train)
        return DropPath(self.drop_path, name=f"drop_path{index}")(y, train=train)


class ViT(nn.Module):
    """Pre-norm Vision Transformer with optional gates on both residual branches of every block, or inside them.

    Architecture and distribution of the initial weights are those of timm's ``VisionTransformer``, unless other parts
    are injected, as in ViG (`fsg_jax.models.vig`). Parameters are float32. The table of positions is that of the input
    at initialisation, or of `grid`, and is resized to the patches of other images.

    Attributes:
      num_classes: logits; 0 gives the pooled features instead and makes no head.
      patch_size: side of a patch in pixels; must divide the images' height and width (of the default `embed`).
      dim: channels of a token.
      depth: blocks.
      num_heads: heads of the default mixer; must divide `dim`.
      mlp_ratio: hidden width of the MLP over `dim`; a fraction is dropped.
      gate: factory, ``gate(name=...)``, of modules called as ``module(x, train=train)``; None makes none.
      gate_placement: ``"branch"``, on both residual branches (Roffo et al. 2024); ``"hidden"``, inside them, what
        `fsg_jax.prune` can remove: ``attn/gate_heads``, one value an attention head, ``attn/gate``, on the heads'
        joined outputs before their projection (in mixers that have them), and ``mlp/gate``, on the hidden units;
        ``"output"``: of these ``attn/gate`` alone, ``"output_heads"``: ``attn/gate_heads`` alone.
      dropout: rate after the positional embedding, the attention projection and both MLP layers.
      attention_dropout: rate on the attention weights of the default mixer.
      drop_path: stochastic depth rate of the last block; rises linearly from 0 at the first.
      layer_scale: initial value of LayerScale; None makes none.
      pool: ``"token"``, the class token; ``"avg"``, the mean of the patch tokens, normalised after the mean;
        ``"normed_avg"``, the mean of the normalised ones.
      class_token: prepend a learned token; needed for ``pool="token"``.
      mixer: factory of the token mixer, called as ``mixer(name="attn")`` of modules called as
        ``module(x, train=train)`` on (batch, tokens, dim), with ``grid=(rows, columns)`` of the patches if it takes
        that; None is `SelfAttention`. One whose class has a string ``output``, the name of the linear layer that it
        ends in, can absorb the gate on its branch. One whose class has ``told``, names among ``num_heads``,
        ``attention_dropout``, ``dropout``, ``dtype``, ``gate``, ``gates``, ``output_gate``, ``widths`` and ``conv``, is
        made with those that the factory does not set; its method ``gate_sites(dim)`` then tells the sites of the gates.
      dtype: of the computation up to the pooling.
      remat: recompute each block in the backward pass; same variables, less memory.
      gelu: ``"exact"``, as in timm; ``"tanh"``, the approximation with which Google's ViTs were trained.
      widths: heads, channels and hidden units where they are not those that `num_heads`, `dim` and `mlp_ratio` give, by
        the name that the gate there has in the placement ``"hidden"``, e.g. ``{"blocks_0/mlp/gate": 512}``.
      output_gate: None; ``"elementwise"`` or ``"headwise"``, a gate that depends on the input, on the outputs of the
        attention before their projection (`fsg_jax.models.output_gate`); its weights are in ``"params"``.
      embed: factory, ``embed(dim, patch_size, dtype=..., conv=..., name=...)``, of modules that map images to (batch,
        rows, columns, dim).
      norm: factory, ``norm(dtype=..., name=...)``, of normalisations.
      mlp: factory, ``mlp(hidden, dropout=..., dtype=..., gate=..., name=...)``; None is `Mlp` with GELU. Its class may
        have a method ``hidden_site(hidden)`` that tells the site of its gate.
      mlp_multiple: the hidden width is rounded up to a multiple of it.
      conv: factory of the convolutions of `embed` and mixer, called as `flax.linen.Conv`.
      grid: rows and columns of the table of positions. None: those of the images at initialisation; for images with
        another number of patches the table is then taken for a square one.
      interpolate: how the table is resized, a key of `fsg_jax.models.positions.RULES`; None: images with other patches
        are an error.

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
    output_gate: str | None = None
    embed: ModuleDef = PatchEmbed
    norm: ModuleDef = LayerNorm
    mlp: ModuleDef | None = None
    mlp_multiple: int = 1
    conv: ModuleDef = nn.Conv
    grid: tuple[int, int] | None = None
    interpolate: str | None = "timm"

    def __post_init__(self) -> None:
        """Checks the attributes."""
        check_integer("num_classes", self.num_classes, 0)
        for argument in ("patch_size", "dim", "depth", "num_heads", "mlp_ratio"):
            check_positive(**{argument: getattr(self, argument)})
        check_rates(dropout=self.dropout, attention_dropout=self.attention_dropout, drop_path=self.drop_path)
        check_choice("pool", self.pool, POOLS)
        check_choice("gelu", self.gelu, GELUS)
        check_choice("gate_placement", self.gate_placement, GATE_PLACEMENTS)
        check_choice("output_gate", self.output_gate, (None, *OUTPUT_GATES))
        check_choice("interpolate", self.interpolate, (None, *RULES))
        check_integer("mlp_multiple", self.mlp_multiple, 1)
        for argument in ("gate", "mixer", "embed", "norm", "mlp", "conv"):
            check_factory(argument, getattr(self, argument))
        told = (None, *getattr(factory_of(self.mixer), "told", ()))
        unused = self.mixer and self.output_gate and "output_gate" not in told
        expect(not unused, "output_gate", f"None for the mixer {self.mixer}, which has no such gate", self.output_gate)
        for side in self.grid or ():
            check_integer("grid", side, 1)
        if self.mixer is None and self.dim % self.num_heads:
            raise ValueError(f"num_heads: expected a divisor of dim {self.dim}, found {self.num_heads}")
        if self.pool == "token" and not self.class_token:
            raise ValueError(
                "class_token: expected True for pool='token', found False; use pool='avg' without a class token"
            )
        own = ["mlp/gate", *(f"attn/{name}" for name, site in self._mixer_sites({}).items() if site.made)]
        check_widths(self.widths, [f"blocks_{i}/{name}" for i in range(self.depth) for name in own])
        super().__post_init__()

    @property
    def num_features(self) -> int:
        """Number of pooled features."""
        return self.dim

    def gate_sites(self) -> dict[str, Site]:
        """Which weights make and read the channels of each gate; see `fsg_jax.gates.sites`."""
        branch, sites = self.gate_placement == "branch", dict[str, Site]()
        last = getattr(factory_of(self.mixer or SelfAttention), "output", None)
        hidden_site = getattr(factory_of(self.mlp or Mlp), "hidden_site", None)
        for block in (f"blocks_{i}" for i in range(self.depth)):
            widths = widths_below(self.widths, block)
            own = self._mixer_sites(widths_below(widths, "attn"))
            sites |= {f"{block}/attn/{name}": site.within(f"{block}/attn") for name, site in own.items()}
            inside = hidden_site and hidden_site(self._hidden(widths))
            sites |= {f"{block}/mlp/gate": inside.within(f"{block}/mlp")} if inside else {}
            ends = (last and f"attn/{last}", inside and f"mlp/{inside.absorb[0].module}")
            for i, end in enumerate(ends, 1) if branch else ():
                end = end if self.layer_scale is None else f"ls{i}"
                sites[f"{block}/gate{i}"] = Site(self.dim, (Use(f"{block}/{end}", "out"),) if end else ())
        return sites

    @nn.nowrap
    def _hidden(self, widths: Mapping[str, int]) -> int:
        hidden = int(self.dim * self.mlp_ratio)
        return widths.get("mlp/gate", -(-hidden // self.mlp_multiple) * self.mlp_multiple)

    @nn.nowrap
    def _make_mixer(self, widths: Mapping[str, int]) -> ModuleDef:
        """The factory of a block's mixer, with what it is told of the model."""
        gates = GATE_PLACEMENTS[self.gate_placement]
        told: dict[str, Any] = {"gate": self.gate if gates else None, "gates": gates, "widths": widths}
        for name in ("num_heads", "attention_dropout", "dropout", "dtype", "output_gate", "conv"):
            told[name] = getattr(self, name)
        mixer = self.mixer or SelfAttention
        wanted = set(getattr(factory_of(mixer), "told", ())) - bound_arguments(mixer)
        return partial(mixer, **{name: value for name, value in told.items() if name in wanted})

    @nn.nowrap
    def _mixer_sites(self, widths: Mapping[str, int]) -> dict[str, Site]:
        """The sites inside a block's mixer, paths within it."""
        if self.mixer is not None and not hasattr(factory_of(self.mixer), "told"):
            return {}
        return self._make_mixer(widths)(parent=None).gate_sites(self.dim)

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Float[Array, "batch outputs"]:
        """Returns float32 logits, or pooled features if `num_classes` is 0.

        Args:
          x: (batch, height, width, channels), floating point, normalised.
          train: draw dropout and stochastic depth from the random stream ``"dropout"``.

        Raises:
          ValueError: `x` has another rank, is not floating point, its size is no multiple of `patch_size`, or it has
            other patches than the table of positions and that cannot be resized.
        """
        check_images(x)
        x = self.embed(self.dim, self.patch_size, dtype=self.dtype, conv=self.conv, name="patch_embed")(x)
        batch, *grid, _ = x.shape
        x = x.reshape(batch, -1, self.dim)
        if self.class_token:
            token = self.param("cls_token", initializers.normal(1e-6), (1, 1, self.dim), jnp.float32)
            token = jnp.broadcast_to(token.astype(x.dtype), (x.shape[0], 1, self.dim))
            x = jnp.concatenate([token, x], axis=1)
        x = x + self._positions((grid[0], grid[1])).astype(x.dtype)
        x = nn.Dropout(self.dropout, name="pos_drop")(x, deterministic=not train)

        norm = partial(self.norm, dtype=self.dtype)
        of_mlp = {"dropout": self.dropout, "dtype": self.dtype}
        mlp = partial(self.mlp or partial(Mlp, approximate=self.gelu == "tanh"), **of_mlp)
        gates = {self.gate_placement: self.gate}  # the other places have none
        block = partial(
            nn.remat(Block, static_argnums=(2, 3)) if self.remat else Block,
            mlp=mlp,
            norm=norm,
            gate=gates.get("branch"),
            hidden_gate=gates.get("hidden"),
            layer_scale=self.layer_scale,
        )
        for i, rate in enumerate(np.linspace(0, self.drop_path, self.depth)):
            widths = widths_below(self.widths, f"blocks_{i}")
            mixer, hidden = self._make_mixer(widths_below(widths, "attn")), self._hidden(widths)
            own = block(mixer=mixer, hidden=hidden, drop_path=float(rate), name=f"blocks_{i}")
            x = own(x, (grid[0], grid[1]), train)

        if self.pool == "token":
            x = self.norm(dtype=jnp.float32, name="norm")(x[:, 0])
        elif self.pool == "avg":
            x = x[:, int(self.class_token) :].astype(jnp.float32).mean(1)
            x = self.norm(dtype=jnp.float32, name="fc_norm")(x)
        else:
            x = self.norm(dtype=jnp.float32, name="norm")(x[:, int(self.class_token) :]).mean(1)
        return nn.Dense(self.num_classes, kernel_init=WEIGHT_INIT, name="head")(x) if self.num_classes else x

    def _positions(self, grid: tuple[int, int]) -> Float[Array, "1 _tokens dim"]:
        """The table of positions, resized to the patches of the input; made at initialisation."""
        first, count = int(self.class_token), grid[0] * grid[1]
        rows, columns = self.grid or grid
        if self.has_variable("params", "pos_embed"):
            table: Any = self.get_variable("params", "pos_embed")
        else:
            table = self.param("pos_embed", WEIGHT_INIT, (1, first + rows * columns, self.dim), jnp.float32)
        have = table.shape[1] - first
        if self.grid is None and have != count:
            rows, columns = square(have, "pos_embed (give `grid`)")
        wanted = f"(1, {first + rows * columns}, {self.dim}), for {rows} x {columns} patches"
        expect(table.shape == (1, first + rows * columns, self.dim), "pos_embed", wanted, table.shape)
        if (rows, columns) == grid:
            return table
        wanted = f"images of {rows} x {columns} patches, for interpolate is None"
        expect(self.interpolate is not None, "images", wanted, f"{grid[0]} x {grid[1]}")
        return resize_positions(table, (rows, columns), grid, str(self.interpolate))


VITS: dict[str, dict[str, Any]] = {
    "vit_tiny": {"dim": 192, "depth": 12, "num_heads": 3},
    "vit_small": {"dim": 384, "depth": 12, "num_heads": 6},
    "vit_base": {"dim": 768, "depth": 12, "num_heads": 12},
}
"""Arguments of the named variants; sources: Dosovitskiy et al. 2021, table 1 (base); Touvron et al. 2021,
DeiT, table 1 (tiny, small)."""
