"""Changes of colour and brightness: Pillow's on one image of grey levels, torchvision's on RGB images in [0, 1].

Pillow's functions take float32 in [0, 255] and any number of channels. They follow ``ImageEnhance`` and ``ImageOps``,
save that blends are not rounded down to whole levels; the blends may leave [0, 255], and the caller clips.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fsg_jax._checks import check_nonnegative
from fsg_jax.augment.pipeline import get_frames, on_images
from fsg_jax.typing import Key, Transform

Levels: TypeAlias = Float[Array, "height width channels"]
Rgb: TypeAlias = Float[Array, "height width 3"]
Plane: TypeAlias = Float[Array, "height width"]
Scalar: TypeAlias = Float[Array, ""]

BT601_LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in ITU-R BT.601, as in Pillow."""
TORCHVISION_LUMA = (0.2989, 0.587, 0.114)


def brightness(image: Levels, factor: Scalar) -> Levels:
    """Multiplies by ``factor``: 0 is black, 1 the image."""
    return factor * image


def contrast(image: Levels, factor: Scalar) -> Levels:
    """Blends with the uniform image of the mean luma: 0 is grey, 1 the image."""
    mean = jnp.floor(jnp.mean(_grey(image)) + 0.5)
    return mean + factor * (image - mean)


def saturation(image: Levels, factor: Scalar) -> Levels:
    """Blends with the grey image: 0 is grey, 1 the image. Identity unless there are three channels."""
    if image.shape[-1] != 3:
        return image
    grey = _grey(image)
    return grey + factor * (image - grey)


def sharpness(image: Levels, factor: Scalar) -> Levels:
    """Blends with the image smoothed by (1 1 1; 1 5 1; 1 1 1) / 13: 0 is smooth, 1 the image.

    The outermost pixels stay as they are.
    """
    height, width, _ = image.shape
    window_sum = jax.lax.reduce_window(image, 0.0, jax.lax.add, (3, 3, 1), (1, 1, 1), "SAME")
    smooth = (window_sum + 4 * image) / 13
    row, column = jnp.arange(height)[:, None, None], jnp.arange(width)[None, :, None]
    interior = (row > 0) & (row < height - 1) & (column > 0) & (column < width - 1)
    return jnp.where(interior, smooth + factor * (image - smooth), image)


def posterize(image: Levels, bits: Scalar) -> Levels:
    """Keeps the ``bits`` highest of the eight bits of every level."""
    step = jnp.ldexp(jnp.ones_like(bits), jnp.round(8 - bits).astype(jnp.int32))
    return jnp.floor(jnp.round(image) / step) * step


def solarize(image: Levels, threshold: Scalar) -> Levels:
    """Inverts the levels at or above ``threshold``."""
    return jnp.where(jnp.round(image) >= threshold, 255 - image, image)


def autocontrast(image: Levels) -> Levels:
    """Stretches every channel to [0, 255]; a uniform channel stays as it is."""
    low, high = image.min((0, 1), keepdims=True), image.max((0, 1), keepdims=True)
    span = high - low
    return jnp.where(span > 0, (image - low) * (255 / jnp.where(span > 0, span, 1)), image)


def equalize(image: Levels) -> Levels:
    """Equalises the histogram of the rounded levels of every channel."""

    def one(channel: Plane) -> Plane:
        levels = jnp.clip(jnp.round(channel), 0, 255).astype(jnp.int32)
        counts = jnp.bincount(levels.reshape(-1), length=256)
        step = (levels.size - counts[levels.max()]) // 255
        below = jnp.cumsum(counts) - counts
        table = jnp.clip((below + step // 2) // jnp.maximum(step, 1), 0, 255)
        return jnp.where(step > 0, table[levels].astype(channel.dtype), channel)

    return jax.vmap(one, in_axes=-1, out_axes=-1)(image)


def adjust_brightness(image: Rgb, factor: Scalar) -> Rgb:
    """``factor * image``, clipped to [0, 1]: 0 is black, 1 the image."""
    return _blend(image, jnp.zeros_like(image), factor)


def adjust_contrast(image: Rgb, factor: Scalar) -> Rgb:
    """Blends with the uniform image of the mean grey: 0 is grey, 1 the image. Clipped to [0, 1]."""
    return _blend(image, jnp.broadcast_to(_grey(image, TORCHVISION_LUMA).mean(), image.shape), factor)


def adjust_saturation(image: Rgb, factor: Scalar) -> Rgb:
    """Blends with the grey image: 0 is grey, 1 the image. Clipped to [0, 1]."""
    return _blend(image, jnp.broadcast_to(_grey(image, TORCHVISION_LUMA), image.shape), factor)


def adjust_hue(image: Rgb, shift: Scalar) -> Rgb:
    """Adds ``shift``, in turns of the colour circle, to the hue of HSV; saturation and value stay."""
    value, low = image.max(-1), image.min(-1)
    chroma = value - low
    hue = _hue(image, value, jnp.where(chroma > 0, chroma, 1)) + 6 * shift
    # Channel k is value - chroma * clip(min(t, 4 - t), 0, 1) at t = (hue + n_k) mod 6, n = 5, 3, 1.
    t = (hue[..., None] + jnp.asarray([5.0, 3.0, 1.0]).reshape(1, 1, 3)) % 6
    return value[..., None] - chroma[..., None] * jnp.clip(jnp.minimum(t, 4 - t), 0, 1)


ADJUSTMENTS: dict[str, Callable[[Rgb, Scalar], Rgb]] = dict(
    brightness=adjust_brightness, contrast=adjust_contrast, saturation=adjust_saturation, hue=adjust_hue
)


def colour_jitter(
    brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0, hue: float = 0.0, *, key: str = "frame"
) -> Transform:
    """Adjusts each image with random strengths and in a random order, as torchvision's ``ColorJitter`` does.

    Args:
        brightness: x at least 0; the factor is drawn from U(max(0, 1 - x), 1 + x).
        contrast: in the same way.
        saturation: in the same way.
        hue: h in [0, 0.5]; the shift is drawn from U(-h, h), in turns.
        key: of the RGB images in the batch, uint8 or in [0, 1]; they leave as float32 in [0, 1].

    Raises:
        ValueError: an argument outside its range, or no RGB images under ``key``.
    """
    strengths = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}
    check_nonnegative(**strengths)
    if hue > 0.5:
        raise ValueError(f"hue: expected a shift in [0, 0.5] turns, found {hue}")
    used = {name: value for name, value in strengths.items() if value > 0}
    low = jnp.asarray([-x if name == "hue" else max(0.0, 1 - x) for name, x in used.items()])
    high = jnp.asarray([x if name == "hue" else 1 + x for name, x in used.items()])

    def jitter(key: Key, image: Rgb) -> Rgb:
        value_key, order_key = jax.random.split(key)
        values = jax.random.uniform(value_key, low.shape, minval=low, maxval=high)
        order = jax.random.permutation(order_key, len(used))
        branches = [ADJUSTMENTS[name] for name in used]
        for index in order:
            image = jax.lax.switch(index, branches, image, values[index])
        return image

    def change(rng: Key, images: Array) -> Array:
        return jax.vmap(jitter)(jax.random.split(rng, images.shape[0]), images) if used else images

    return on_images(change, key, get_frames)


def gaussian_noise(std: float, *, key: str = "frame") -> Transform:
    """Adds N(0, std^2) to every pixel and channel, then clips to [0, 1].

    Args:
        std: at least 0, in the units of images in [0, 1].
        key: of the RGB images in the batch, uint8 or in [0, 1]; they leave as float32 in [0, 1].

    Raises:
        ValueError: a std outside its range, or no RGB images under ``key``.
    """
    check_nonnegative(std=std)
    return on_images(lambda rng, x: jnp.clip(x + std * jax.random.normal(rng, x.shape), 0, 1), key, get_frames)


def _blend(image: Rgb, other: Rgb, factor: Scalar) -> Rgb:
    return jnp.clip(factor * image + (1 - factor) * other, 0, 1)


def _grey(image: Levels, luma: tuple[float, float, float] = BT601_LUMA) -> Float[Array, "height width 1"]:
    """Luma of an RGB image, else the mean of the channels."""
    if image.shape[-1] != 3:
        return image.mean(-1, keepdims=True)
    red, green, blue = (weight * image[..., i : i + 1] for i, weight in enumerate(luma))
    return red + green + blue


def _hue(image: Rgb, value: Plane, chroma: Plane) -> Plane:
    """Hue in sixths of a turn: 0 red, 2 green, 4 blue."""
    red, green, blue = jnp.moveaxis(image, -1, 0)
    from_green, from_blue = 2 + (blue - red) / chroma, 4 + (red - green) / chroma
    return jnp.where(value == red, (green - blue) / chroma, jnp.where(value == green, from_green, from_blue))
