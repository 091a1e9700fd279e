"""Photometric operations on one image of grey levels: float32 in [0, 255], any number of channels.

They follow Pillow's ``ImageEnhance`` and ``ImageOps``, save that blends are not rounded down to whole levels.
The results of the blends may leave [0, 255]; the caller clips.
"""

from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Levels: TypeAlias = Float[Array, "height width channels"]
Scalar: TypeAlias = Float[Array, ""]

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def brightness(image: Levels, factor: Scalar) -> Levels:
    """Multiply by ``factor``: 0 is black, 1 the image."""
    return factor * image


def contrast(image: Levels, factor: Scalar) -> Levels:
    """Blend with the uniform image of the mean luma: 0 is grey, 1 the image."""
    mean = jnp.floor(jnp.mean(_grey(image)) + 0.5)
    return mean + factor * (image - mean)


def saturation(image: Levels, factor: Scalar) -> Levels:
    """Blend with the grey image: 0 is grey, 1 the image. Identity unless there are three channels."""
    if image.shape[-1] != 3:
        return image
    grey = _grey(image)
    return grey + factor * (image - grey)


def sharpness(image: Levels, factor: Scalar) -> Levels:
    """Blend with the image smoothed by (1 1 1; 1 5 1; 1 1 1) / 13: 0 is smooth, 1 the image.

    The outermost pixels are left as they are.
    """
    height, width, _ = image.shape
    window_sum = jax.lax.reduce_window(image, 0.0, jax.lax.add, (3, 3, 1), (1, 1, 1), "SAME")
    smooth = (window_sum + 4 * image) / 13
    row, column = jnp.arange(height)[:, None, None], jnp.arange(width)[None, :, None]
    interior = (row > 0) & (row < height - 1) & (column > 0) & (column < width - 1)
    return jnp.where(interior, smooth + factor * (image - smooth), image)


def posterize(image: Levels, bits: Scalar) -> Levels:
    """Keep the ``bits`` highest of the eight bits of every level."""
    step = jnp.ldexp(jnp.ones_like(bits), jnp.round(8 - bits).astype(jnp.int32))
    return jnp.floor(jnp.round(image) / step) * step


def solarize(image: Levels, threshold: Scalar) -> Levels:
    """Invert the levels at or above ``threshold``."""
    return jnp.where(jnp.round(image) >= threshold, 255 - image, image)


def autocontrast(image: Levels) -> Levels:
    """Stretch every channel to [0, 255]; a uniform channel stays as it is."""
    low, high = image.min((0, 1), keepdims=True), image.max((0, 1), keepdims=True)
    span = high - low
    return jnp.where(span > 0, (image - low) * (255 / jnp.where(span > 0, span, 1)), image)


def equalize(image: Levels) -> Levels:
    """Equalise the histogram of the rounded levels of every channel."""
    return jax.vmap(_equalize_channel, in_axes=-1, out_axes=-1)(image)


def _equalize_channel(channel: Float[Array, "height width"]) -> Float[Array, "height width"]:
    levels = jnp.clip(jnp.round(channel), 0, 255).astype(jnp.int32)
    counts = jnp.bincount(levels.reshape(-1), length=256)
    step = (levels.size - counts[levels.max()]) // 255
    below = jnp.cumsum(counts) - counts
    table = jnp.clip((below + step // 2) // jnp.maximum(step, 1), 0, 255)
    return jnp.where(step > 0, table[levels].astype(channel.dtype), channel)


def _grey(image: Levels) -> Float[Array, "height width 1"]:
    """Luma of an RGB image, else the mean of the channels."""
    if image.shape[-1] != 3:
        return image.mean(-1, keepdims=True)
    red, green, blue = (weight * image[..., i : i + 1] for i, weight in enumerate(_LUMA))
    return red + green + blue
