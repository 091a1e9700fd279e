"""Normalisations whose gradients are fast on a CPU."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import dtypes
from jaxtyping import Array, Float


class FastBatchNorm(nn.BatchNorm):
    """`flax.linen.BatchNorm`, in training as ``y = a x + c``, with a factor and an offset a channel.

    Parameters, statistics and values are Flax's but for rounding. Reverse-mode differentiation then needs two sums over
    the batch and one pass, for which XLA's CPU compiler takes a third to four fifths of the time (`experiments.bench
    layers`). Evaluation, masks, axes over devices, other axes than the last, or no scale or bias are Flax's own.
    """

    @nn.compact
    def __call__(
        self, x: Float[Array, "... channels"], use_running_average: bool | None = None, *, mask: Any = None
    ) -> Float[Array, "... channels"]:
        """The same shape as `x`; see `flax.linen.BatchNorm`."""
        average = nn.merge_param("use_running_average", self.use_running_average, use_running_average)
        last = self.axis in (-1, x.ndim - 1)
        usual = last and self.use_scale and self.use_bias and self.use_fast_variance and self.force_float32_reductions
        if average or mask is not None or self.axis_name is not None or not usual:
            return super().__call__(x, use_running_average=use_running_average, mask=mask)

        channels, axes = x.shape[-1], tuple(range(x.ndim - 1))
        stats = [self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)]
        stats += [self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)]
        scale = self.param("scale", self.scale_init, (channels,), self.param_dtype)
        bias = self.param("bias", self.bias_init, (channels,), self.param_dtype)
        wide = x.astype(jnp.promote_types(self.dtype or x.dtype, jnp.float32))
        mean = wide.mean(axes)
        var = jnp.maximum(0.0, jnp.square(wide).mean(axes) - jnp.square(mean))
        if not self.is_initializing():
            for stat, found in zip(stats, (mean, var), strict=True):
                stat.value = self.momentum * stat.value + (1 - self.momentum) * found
        factor = jax.lax.rsqrt(var + self.epsilon) * scale
        y = x * jnp.expand_dims(factor, axes) + jnp.expand_dims(bias - mean * factor, axes)
        return y.astype(dtypes.canonicalize_dtype(x, scale, bias, dtype=self.dtype))


class FastLayerNorm(nn.LayerNorm):
    """`flax.linen.LayerNorm` with a gradient rule of its own.

    Parameters and values are Flax's but for rounding. Of Flax's gradient XLA's CPU compiler makes a dozen passes, and
    two of these write the scale out for every token; the rule takes two products of a matrix and a vector, two sums
    over the tokens and two passes. Forward-mode differentiation (`jax.jvp`) is not supported. Masks, axes over devices,
    other axes than the last, or no scale or bias are Flax's own.
    """

    @nn.compact
    def __call__(self, x: Float[Array, "... channels"], *, mask: Any = None) -> Float[Array, "... channels"]:
        """The same shape as `x`; see `flax.linen.LayerNorm`."""
        last = all(axes in (-1, x.ndim - 1) for axes in (self.reduction_axes, self.feature_axes))
        usual = last and self.use_scale and self.use_bias and self.use_fast_variance and self.force_float32_reductions
        if mask is not None or self.axis_name is not None or not usual:
            return super().__call__(x, mask=mask)
        channels = x.shape[-1]
        scale = self.param("scale", self.scale_init, (channels,), self.param_dtype)
        bias = self.param("bias", self.bias_init, (channels,), self.param_dtype)
        wide = x.astype(jnp.promote_types(self.dtype or x.dtype, jnp.float32))
        y = _layer_norm(wide.reshape(-1, channels), scale, bias, self.epsilon)
        return y.reshape(x.shape).astype(dtypes.canonicalize_dtype(x, scale, bias, dtype=self.dtype))


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _layer_norm(x: Array, scale: Array, bias: Array, epsilon: float) -> Array:
    return _layer_norm_forward(x, scale, bias, epsilon)[0]


def _layer_norm_forward(x: Array, scale: Array, bias: Array, epsilon: float) -> tuple[Array, tuple[Array, ...]]:
    mean = x.mean(-1, keepdims=True)
    var = jnp.maximum(0.0, jnp.square(x).mean(-1, keepdims=True) - jnp.square(mean))
    factor = jax.lax.rsqrt(var + epsilon)
    return (x - mean) * (factor * scale[None]) + bias[None], (x, scale, mean, factor)


def _layer_norm_backward(_: float, kept: tuple[Array, ...], g: Array) -> tuple[Array, Array, Array]:
    x, scale, mean, factor = kept
    normed = (x - mean) * factor
    along = g * normed
    both = [jnp.dot(part, scale[:, None], precision="highest") for part in (g, along)]
    dx = factor * (g * scale[None] - (both[0] + normed * both[1]) / x.shape[-1])
    return dx, along.sum(0).astype(scale.dtype), g.sum(0).astype(scale.dtype)


_layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


BATCH_NORMS = (nn.BatchNorm, FastBatchNorm)
"""What normalises each channel by itself."""
FASTER: dict[type[nn.Module], type[nn.Module]] = {FastBatchNorm: nn.BatchNorm, FastLayerNorm: nn.LayerNorm}
"""What each computes, but for rounding."""
NORMS = (*BATCH_NORMS, nn.GroupNorm, nn.LayerNorm, FastLayerNorm, nn.RMSNorm)
"""Classes whose scale and bias take a factor a channel."""
