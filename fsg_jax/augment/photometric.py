"""Colour jitter and noise on RGB images in [0, 1], as in torchvision, under any key of the batch."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fsg_jax.augment.checks import check_nonnegative, get_frames
from fsg_jax.typing import Batch, Key, Transform

Rgb: TypeAlias = Float[Array, "height width 3"]
Scalar: TypeAlias = Float[Array, ""]


def adjust_brightness(image: Rgb, factor: Scalar) -> Rgb:
    """``factor * image``, clipped to [0, 1]: 0 is black, 1 the image."""
    return _blend(image, jnp.zeros_like(image), factor)


def adjust_contrast(image: Rgb, factor: Scalar) -> Rgb:
    """Blend with the uniform image of the mean grey: 0 is grey, 1 the image. Clipped to [0, 1]."""
    return _blend(image, jnp.broadcast_to(_grey(image).mean(), image.shape), factor)


def adjust_saturation(image: Rgb, factor: Scalar) -> Rgb:
    """Blend with the grey image: 0 is grey, 1 the image. Clipped to [0, 1]."""
    return _blend(image, jnp.broadcast_to(_grey(image), image.shape), factor)


def adjust_hue(image: Rgb, shift: Scalar) -> Rgb:
    """Add ``shift``, in turns of the colour circle, to the hue of HSV; saturation and value stay."""
    value, low = image.max(-1), image.min(-1)
    chroma = value - low
    hue = _hue(image, value, jnp.where(chroma > 0, chroma, 1)) + 6 * shift
    # Channel k is value - chroma * clip(min(t, 4 - t), 0, 1) at t = (hue + n_k) mod 6, n = 5, 3, 1.
    t = (hue[..., None] + jnp.asarray([5.0, 3.0, 1.0]).reshape(1, 1, 3)) % 6
    return value[..., None] - chroma[..., None] * jnp.clip(jnp.minimum(t, 4 - t), 0, 1)


ADJUSTMENTS: dict[str, Callable[[Rgb, Scalar], Rgb]] = {
    "brightness": adjust_brightness,
    "contrast": adjust_contrast,
    "saturation": adjust_saturation,
    "hue": adjust_hue,
}


def colour_jitter(
    brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0, hue: float = 0.0, *, key: str = "frame"
) -> Transform:
    """Adjust each image with random strengths and in a random order, as torchvision's ``ColorJitter`` does.

    Args:
        brightness, contrast, saturation: x at least 0; the factor is drawn from U(max(0, 1 - x), 1 + x).
        hue: h in [0, 0.5]; the shift is drawn from U(-h, h), in turns.
        key: of the RGB images in the batch, uint8 or in [0, 1]; they leave as float32 in [0, 1].

    Raises:
        ValueError: an argument outside its range, or no RGB images under ``key``.
    """
    strengths = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}
    for argument, value in strengths.items():
        check_nonnegative(argument, value)
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

    def transform(rng: Key, batch: Batch) -> dict[str, Any]:
        images = get_frames(batch, key)
        if used:
            images = jax.vmap(jitter)(jax.random.split(rng, images.shape[0]), images)
        return {**batch, key: images}

    return transform


def gaussian_noise(std: float, *, key: str = "frame") -> Transform:
    """Add N(0, std^2) to every pixel and channel, then clip to [0, 1].

    Args:
        std: at least 0, in the units of images in [0, 1].
        key: of the RGB images in the batch, uint8 or in [0, 1]; they leave as float32 in [0, 1].

    Raises:
        ValueError: a std outside its range, or no RGB images under ``key``.
    """
    check_nonnegative("std", std)

    def transform(rng: Key, batch: Batch) -> dict[str, Any]:
        images = get_frames(batch, key)
        return {**batch, key: jnp.clip(images + std * jax.random.normal(rng, images.shape), 0, 1)}

    return transform


def _blend(image: Rgb, other: Rgb, factor: Scalar) -> Rgb:
    return jnp.clip(factor * image + (1 - factor) * other, 0, 1)


def _grey(image: Rgb) -> Float[Array, "height width 1"]:
    red, green, blue = jnp.split(image, 3, axis=-1)
    return 0.2989 * red + 0.587 * green + 0.114 * blue


def _hue(
    image: Rgb, value: Float[Array, "height width"], chroma: Float[Array, "height width"]
) -> Float[Array, "height width"]:
    """Hue in sixths of a turn: 0 red, 2 green, 4 blue."""
    red, green, blue = jnp.moveaxis(image, -1, 0)
    from_green, from_blue = 2 + (blue - red) / chroma, 4 + (red - green) / chroma
    return jnp.where(value == red, (green - blue) / chroma, jnp.where(value == green, from_green, from_blue))
