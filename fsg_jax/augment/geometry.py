"""Crop, flip, cutout and the affine warp. All keep the dtype, uint8 or floating point."""

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Bool, Float, Int

from fsg_jax.augment.checks import check_at_least, check_probability, get_images
from fsg_jax.typing import Batch, Key, Transform

PadMode = Literal["constant", "reflect"]


def random_crop(padding: int = 4, mode: PadMode = "constant") -> Transform:
    """Pad each side by ``padding`` pixels and crop each image back to its size at a uniform offset.

    Args:
        padding: pixels, at least 0.
        mode: ``constant`` pads with 0, ``reflect`` mirrors the image about its border pixels.

    Raises:
        ValueError: an argument outside its range.
    """
    check_at_least("padding", padding, 0)
    if mode not in get_args(PadMode):
        raise ValueError(f"mode: expected one of {get_args(PadMode)}, found {mode!r}")

    def transform(key: Key, batch: Batch) -> dict[str, Any]:
        images = get_images(batch)
        offsets = jax.random.randint(key, (images.shape[0], 2), 0, 2 * padding + 1)
        padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)), mode=mode)
        return {**batch, "image": _crop(padded, offsets, images.shape[1], images.shape[2])}

    return transform


def random_flip(probability: float = 0.5) -> Transform:
    """Mirror each image left to right with this probability.

    Raises:
        ValueError: a probability outside [0, 1].
    """
    check_probability("probability", probability)

    def transform(key: Key, batch: Batch) -> dict[str, Any]:
        images = get_images(batch)
        flipped = jax.random.bernoulli(key, probability, (images.shape[0], 1, 1, 1))
        return {**batch, "image": jnp.where(flipped, images[:, :, ::-1], images)}

    return transform


def cutout(size: int) -> Transform:
    """Set to 0 one square per image, its centre uniform over the pixels, clipped at the border.

    DeVries & Taylor (2017), section 3.2. To fill with the mean, as there, apply it after ``normalize``.

    Args:
        size: side of the square in pixels, at least 1.

    Raises:
        ValueError: a size below 1.
    """
    check_at_least("size", size, 1)

    def transform(key: Key, batch: Batch) -> dict[str, Any]:
        images = get_images(batch)
        count, height, width, _ = images.shape
        row_key, column_key = jax.random.split(key)
        top = jax.random.randint(row_key, (count,), 0, height) - size // 2
        left = jax.random.randint(column_key, (count,), 0, width) - size // 2
        inside = box_mask((height, width), top, left, top + size, left + size)
        return {**batch, "image": jnp.where(inside[..., None], jnp.zeros((), images.dtype), images)}

    return transform


def box_mask(
    shape: tuple[int, int],
    top: Int[Array, " batch"],
    left: Int[Array, " batch"],
    bottom: Int[Array, " batch"],
    right: Int[Array, " batch"],
) -> Bool[Array, "batch height width"]:
    """Mark the pixels with top <= row < bottom and left <= column < right; the box may leave the image."""
    rows, columns = jnp.arange(shape[0])[None, :], jnp.arange(shape[1])[None, :]
    in_rows = (rows >= top[:, None]) & (rows < bottom[:, None])
    in_columns = (columns >= left[:, None]) & (columns < right[:, None])
    return in_rows[:, :, None] & in_columns[:, None, :]


def affine(
    image: Float[Array, "height width channels"], coefficients: Float[Array, "6"], order: int = 0
) -> Float[Array, "height width channels"]:
    """Warp one image: out(x, y) = in(a x + b y + c, d x + e y + f), with 0 outside the image.

    Args:
        image: one floating-point image.
        coefficients: (a, b, c, d, e, f) in pixels; x runs right, y down, pixel centres lie at half-integers,
            as in Pillow's ``Image.transform(size, AFFINE, coefficients)``.
        order: 0 takes the nearest pixel, 1 interpolates bilinearly.
    """
    height, width, _ = image.shape
    y, x = jnp.meshgrid(jnp.arange(height) + 0.5, jnp.arange(width) + 0.5, indexing="ij")
    a, b, c, d, e, f = coefficients
    coordinates = [d * x + e * y + f - 0.5, a * x + b * y + c - 0.5]
    return jax.vmap(lambda plane: map_coordinates(plane, coordinates, order), in_axes=-1, out_axes=-1)(image)


def _crop(padded: Array, offsets: Int[Array, "batch 2"], height: int, width: int) -> Array:
    def one(image: Array, offset: Int[Array, "2"]) -> Array:
        return jax.lax.dynamic_slice(image, (offset[0], offset[1], 0), (height, width, image.shape[-1]))

    return jax.vmap(one)(padded, offsets)
