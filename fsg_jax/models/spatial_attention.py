"""Learn to Pay Attention (Jetley et al. 2018, arXiv 1804.02391): attention maps as gates over space.

Local vectors ``l_i`` of a feature map meet a global descriptor ``g``, the query. Their scores ``c_i`` give a map ``a``
over space, and it gives a context ``sum_i a_i l_i``, from which alone the network classifies. `AttentiveNetwork` is
what the networks with such a head share (`fsg_jax.models.vgg`, `fsg_jax.models.preact_resnet`); without attention it
classifies from ``g``, on the same trunk: the control.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn import initializers
from jaxtyping import Array, Float

from fsg_jax._checks import check_choice, check_integer, check_rates, expect
from fsg_jax.models.arguments import check_factory, check_images
from fsg_jax.models.layers import FeatureMaps, ModuleDef, bias_uniform, fan_in_uniform
from fsg_jax.models.resnet import BatchNorm
from fsg_jax.routing.mask import route

SCORES = ("dot", "additive", "additive_tanh")
NORMALISATIONS = ("softmax", "sigmoid", "sigmoid_mean")
COMBINATIONS = ("concat", "mean_prob", "sum_log_prob", "sum_logits")
PROJECTIONS = ("down", "up")
BRANCH_GRADIENTS = ("sum", "mean")
TAPS = ("before", "after")
INITS = ("scaled", "reference")
ATTENTION = "attention"
"""The collection of the maps, (batch, rows, columns), by level; they are kept where the collection is mutable."""
DESCRIPTORS = "descriptors"
"""The collection of the global descriptor, (batch, channels), under ``"query"``."""

Vectors = Float[Array, "batch _channels"]
Maps = Float[Array, "batch _rows _columns"]


def keep(module: nn.Module, collection: str, name: str, value: Array) -> None:
    """Sows `value` itself, not a tuple of it, into `collection`; not at initialisation, or it would be a variable."""
    if not module.is_initializing():
        module.sow(collection, name, value, init_fn=lambda: None, reduce_fn=lambda _, new: new)


def linear(features: int, fan_in: int, **options: Any) -> nn.Dense:
    """A dense layer that starts by PyTorch's rule, its bias too."""
    return nn.Dense(features, kernel_init=fan_in_uniform, bias_init=bias_uniform(fan_in), **options)


class SpatialAttention(nn.Module):
    """One level of attention: ``c_i = score(l_i, g)``, ``a = normalise(c)``, ``sum_i a_i l_i``.

    With the additive score, softmax cancels what the query adds, for it adds the same everywhere: such a map does not
    depend on the query, whose gradient is 0. It is left out there, and so is the bias of the score, so that these
    gradients are 0 exactly and not rounding errors, which Adam would scale up to full steps.

    Attributes:
      score: ``"dot"``, ``<l_i, g>``; ``"additive"``, ``<u, l_i + g> + b``; ``"additive_tanh"``,
        ``<u, tanh(l_i + g)> + b``, which keeps the query under softmax.
      normalise: ``"softmax"`` over all positions; ``"sigmoid"``; ``"sigmoid_mean"``, whose context is the mean of
        ``a_i l_i`` instead of the sum (the re-implementation by SaoYan).
      project: where channels differ, ``"down"``: the query to those of the map; ``"up"``: the map to those of the
        query, by a 1x1 convolution, the context too.
      query_norm: where channels differ, the query passes BatchNorm, ReLU and dropout first.
      bias: of the score and of the projection of the map.
      dropout: rate on the query, where it is normalised.
      initial: of ``u``: ``"scaled"``, deviation ``1 / sqrt(channels)``, soft maps at the start; ``"reference"``,
        sqrt(2) as in the released code, by which a map starts as nearly one-hot. And of the scales of BatchNorm: 1,
        or U(0, 1).
      dtype: of the projection of the map; all else is float32.
    """

    score: str = "additive"
    normalise: str = "softmax"
    project: str = "down"
    query_norm: bool = True
    bias: bool = True
    dropout: float = 0.5
    initial: str = "scaled"
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        """Checks the attributes."""
        check_choice("score", self.score, SCORES)
        check_choice("normalise", self.normalise, NORMALISATIONS)
        check_choice("project", self.project, PROJECTIONS)
        check_choice("initial", self.initial, INITS)
        check_rates(dropout=self.dropout)
        super().__post_init__()

    @nn.compact
    def __call__(self, local: FeatureMaps, query: Vectors, *, train: bool = False) -> Vectors:
        """The context (batch, channels), float32; the map (batch, rows, columns) goes to ``"attention"``, ``"map"``.

        Args:
          local: local vectors (batch, rows, columns, channels).
          query: (batch, channels of the query).
          train: normalise the query by the batch's statistics and draw dropout from the random stream ``"dropout"``.
        """
        channels, wanted = local.shape[-1], query.shape[-1]
        if channels != wanted:
            if self.query_norm:
                query = norm_relu(self.initial, query, "norm", train)
                query = nn.Dropout(self.dropout, name="drop")(query, deterministic=not train)
            if self.project == "down":
                query = linear(channels, wanted, name="project")(query)
            else:
                local = linear(wanted, channels, use_bias=self.bias, dtype=self.dtype, name="project")(local)
        weights = normalise_scores(self._scores(local, query), self.normalise)
        keep(self, ATTENTION, "map", weights)
        context = jnp.einsum("bhw,bhwc->bc", weights, local, preferred_element_type=weights.dtype)
        return context / (weights.shape[1] * weights.shape[2]) if self.normalise == "sigmoid_mean" else context

    def _scores(self, local: FeatureMaps, query: Vectors) -> Maps:
        """In float32 at least."""
        high = jnp.promote_types(local.dtype, jnp.float32)
        if self.score == "dot":
            return jnp.einsum("bhwc,bc->bhw", local.astype(high), query)
        deviation = 2**0.5 if self.initial == "reference" else local.shape[-1] ** -0.5
        u = self.param("u", initializers.normal(deviation), (local.shape[-1],), jnp.float32)
        bias = self.param("b", initializers.zeros, (), jnp.float32) if self.bias else 0.0
        cancels = self.normalise == "softmax"
        if self.score == "additive":
            scores = jnp.einsum("bhwc,c->bhw", local.astype(high), u)
            return scores if cancels else scores + (query @ u)[:, None, None] + bias
        scores = jnp.einsum("bhwc,c->bhw", jnp.tanh(local.astype(high) + query[:, None, None, :]), u)
        return scores if cancels else scores + bias


def normalise_scores(scores: Maps, normalise: str) -> Maps:
    """Maps by scores: softmax over both axes of space, or sigmoid."""
    return jax.nn.softmax(scores, axis=(1, 2)) if normalise == "softmax" else jax.nn.sigmoid(scores)


def scale_init(init: str) -> Callable[..., Array]:
    """Initial scales of BatchNorm: 1, or U(0, 1) as in Torch7."""
    return initializers.uniform(1.0) if init == "reference" else initializers.ones


def norm_relu(init: str, x: Vectors, name: str, train: bool) -> Vectors:
    """BatchNorm of epsilon 1e-5 and ReLU of vectors; for use in a compact method."""
    norm = BatchNorm(use_running_average=not train, scale_init=scale_init(init), name=name)
    return nn.relu(norm(x))


def combine_logits(logits: Sequence[Float[Array, "batch classes"]], combine: str) -> Float[Array, "batch classes"]:
    """Logits of all levels as one, for softmax cross-entropy; see `AttentiveNetwork`."""
    if combine == "sum_logits":
        return sum(logits[1:], logits[0])
    apart = jnp.stack([jax.nn.log_softmax(one) for one in logits])
    return apart.sum(0) if combine == "sum_log_prob" else jax.nn.logsumexp(apart, axis=0) - jnp.log(len(logits))


class AttentiveNetwork(nn.Module):
    """A network that classifies from the contexts of its attention maps alone; a subclass gives `trunk`.

    Each context passes BatchNorm, ReLU and dropout; so does ``g`` in the control.

    Attributes:
      num_classes: logits; 0 gives the joined features instead and makes no head.
      levels: maps with attention, from the highest, of `max_levels`; their names are ``level1`` (the largest map) to
        ``level3``.
      attention: factory called as ``attention(score=, normalise=, project=, query_norm=, bias=, dropout=, initial=,
        dtype=, name=)``; None makes none, and ``g`` is classified: the control of the same trunk.
      score: see `SpatialAttention`.
      normalise: see `SpatialAttention`.
      project: see `SpatialAttention`.
      query_norm: see `SpatialAttention`.
      bias: see `SpatialAttention`.
      combine: ``"concat"``: one head on all features; or a head a level, ``"mean_prob"``: the logarithm of the mean
        of their probabilities; ``"sum_log_prob"``: the sum of their log-probabilities, which a softmax then makes
        the normalised product of experts, as in the released code; ``"sum_logits"``. All are for softmax
        cross-entropy, and that of ``"mean_prob"`` is minus the logarithm of the mean probability.
      head_norm: BatchNorm, ReLU and dropout before the heads.
      branch_gradient: ``"sum"``, the gradient; ``"mean"``, as in the released code: that into each map with attention
        is halved where trunk and attention join, that into ``g`` divided by the number of levels.
      taps: ``"before"`` or ``"after"`` the pooling that follows a map.
      dropout: rate on ``g``'s input and on the normalised query.
      head_dropout: rate before the heads.
      initial: ``"scaled"`` or ``"reference"``, see `SpatialAttention`.
      dtype: of the trunk; attention, descriptors and heads are float32.
      gate: as in `fsg_jax.models.ResNet`.
      remat: as in `fsg_jax.models.ResNet`.
      conv: as in `fsg_jax.models.ResNet`.
    """

    num_classes: int
    levels: int = 3
    attention: ModuleDef | None = SpatialAttention
    score: str = "additive"
    normalise: str = "softmax"
    combine: str = "concat"
    project: str = "down"
    query_norm: bool = True
    bias: bool = True
    head_norm: bool = True
    branch_gradient: str = "sum"
    taps: str = "before"
    dropout: float = 0.5
    head_dropout: float = 0.5
    initial: str = "scaled"
    gate: ModuleDef | None = None
    gate_placement: str = "stage"
    dtype: Any = jnp.float32
    remat: bool = False
    conv: ModuleDef = nn.Conv

    def __post_init__(self) -> None:
        """Checks the attributes."""
        check_integer("num_classes", self.num_classes, 0)
        check_integer("levels", self.levels, 1, self.max_levels)
        SpatialAttention(self.score, self.normalise, self.project, initial=self.initial, parent=None)
        check_choice("combine", self.combine, COMBINATIONS)
        check_choice("branch_gradient", self.branch_gradient, BRANCH_GRADIENTS)
        check_choice("taps", self.taps, TAPS)
        check_rates(dropout=self.dropout, head_dropout=self.head_dropout)
        for argument in ("attention", "gate", "conv"):
            check_factory(argument, getattr(self, argument))
        super().__post_init__()

    @property
    def max_levels(self) -> int:
        """How many maps can have attention."""
        return 3

    @property
    def query_features(self) -> int:
        """Channels of ``g``."""
        raise NotImplementedError

    def level_features(self, level: int) -> int:
        """Channels of the map of a level, from 1."""
        raise NotImplementedError

    @property
    def least_size(self) -> int:
        """The smallest height and width of images."""
        raise NotImplementedError

    def trunk(self, x: FeatureMaps, train: bool) -> tuple[dict[int, FeatureMaps], Vectors]:
        """The maps with attention by level, each passed through `join`, and ``g``; called in a compact method."""
        raise NotImplementedError

    @property
    def attended(self) -> list[int]:
        """The levels with attention, the largest map first."""
        return [] if self.attention is None else list(range(self.max_levels - self.levels + 1, self.max_levels + 1))

    @property
    def num_features(self) -> int:
        """Number of joined features."""
        wide = self.project == "up"
        sizes = [self.query_features if wide else self.level_features(level) for level in self.attended]
        return sum(sizes) or self.query_features

    @nn.nowrap
    def join(self, x: Array, level: int) -> Array:
        """`x` for trunk and attention: its gradient is halved where `branch_gradient` asks for it."""
        return route(x, 0.5) if level in self.attended and self.branch_gradient == "mean" else x

    @nn.compact
    def __call__(
        self, x: Array, *, query: Float[Array, "batch channels"] | None = None, train: bool = False
    ) -> Float[Array, "batch outputs"]:
        """Returns float32 logits, or the joined features if `num_classes` is 0.

        Args:
          x: (batch, height, width, channels), floating point, normalised, at least `least_size` high and wide.
          query: a global descriptor, (batch, `query_features`), in the place of that of `x`: for the maps of one image
            under the descriptor of another, which the dot score heeds. That of `x` is in ``"descriptors"``,
            ``"query"``.
          train: normalise with the batch's statistics, update ``"batch_stats"``, draw dropout from the random stream
            ``"dropout"``.

        Raises:
          ValueError: `x` has another rank, is not floating point or is too small; `query` has another shape.
        """
        check_images(x)
        least, size = self.least_size, x.shape[1:3]
        expect(min(size) >= least, "images", f"at least {least} x {least} pixels", f"{size[0]} x {size[1]}")
        taps, own = self.trunk(x, train)
        keep(self, DESCRIPTORS, "query", own)
        if query is not None:
            expect(query.shape == own.shape, "query", f"shape {own.shape}", query.shape)
        g = own if query is None else query
        g = route(g, 1 / len(self.attended)) if self.attended and self.branch_gradient == "mean" else g
        vectors = {"": g}
        if self.attention is not None:
            names = ("score", "normalise", "project", "query_norm", "bias", "dropout", "initial", "dtype")
            attend = partial(self.attention, **{name: getattr(self, name) for name in names})
            vectors = {str(n): attend(name=f"level{n}")(taps[n], g, train=train) for n in self.attended}
        features = []
        for level, vector in vectors.items():
            if self.head_norm:
                vector = norm_relu(self.initial, vector, f"head_norm{level}", train)
                drop = nn.Dropout(self.head_dropout, name=f"head_drop{level}")
                vector = drop(vector, deterministic=not train)
            features.append(vector)
        joined = jnp.concatenate(features, axis=-1)
        if not self.num_classes:
            return joined
        if self.combine == "concat" or self.attention is None:
            return linear(self.num_classes, joined.shape[-1], name="head")(joined)
        heads = zip(vectors, features, strict=True)
        logits = [linear(self.num_classes, v.shape[-1], name=f"head{level}")(v) for level, v in heads]
        return combine_logits(logits, self.combine)
