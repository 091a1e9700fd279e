"""Crop, flip, resizing, cutout and the affine warp. All keep the dtype, uint8 or floating point."""

from typing import Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Bool, Float, Int

from fsg_jax._checks import check_choice, check_integer, check_probabilities
from fsg_jax.augment.pipeline import on_images
from fsg_jax.typing import Key, Transform

PadMode = Literal["constant", "reflect"]

Image: TypeAlias = Float[Array, "height width channels"]
Masks: TypeAlias = Bool[Array, "batch height width"]
Edges: TypeAlias = Int[Array, " batch"]
Scalar: TypeAlias = Float[Array, ""]


def random_crop(padding: int = 4, mode: PadMode = "constant") -> Transform:
    """Pads each side by ``padding`` pixels and crops each image back to its size at a uniform offset.

    Args:
        padding: pixels, at least 0.
        mode: ``constant`` pads with 0, ``reflect`` mirrors the image about its border pixels.

    Raises:
        ValueError: an argument outside its range.
    """
    check_integer("padding", padding, 0)
    check_choice("mode", mode, get_args(PadMode))

    def crop(key: Key, images: Array) -> Array:
        offsets = jax.random.randint(key, (images.shape[0], 2), 0, 2 * padding + 1)
        padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)), mode=mode)
        return jax.vmap(lambda image, at: jax.lax.dynamic_slice(image, (*at, 0), images.shape[1:]))(padded, offsets)

    return on_images(crop)


def resize(size: int | tuple[int, int]) -> Transform:
    """Resizes each image by bilinear interpolation, filtered where it becomes smaller, as Pillow's ``BILINEAR`` does.

    Pixels are squares: their centres, and not the corner ones, keep their places. uint8 is rounded.

    Args:
        size: side, or (height, width), in pixels, at least 1.

    Raises:
        ValueError: `size` is outside its range.
    """
    height, width = (size, size) if isinstance(size, int) else size
    check_integer("size", height, 1)
    check_integer("size", width, 1)

    def change(key: Key, images: Array) -> Array:
        batch, *_, channels = images.shape
        resized = jax.image.resize(images.astype(float), (batch, height, width, channels), "linear", antialias=True)
        whole = jnp.issubdtype(images.dtype, jnp.integer)
        return (jnp.round(resized) if whole else resized).astype(images.dtype)

    return on_images(change)


def random_flip(probability: float = 0.5) -> Transform:
    """Mirrors each image left to right with this probability.

    Raises:
        ValueError: a probability outside [0, 1].
    """
    check_probabilities(probability=probability)

    def flip(key: Key, images: Array) -> Array:
        flipped = jax.random.bernoulli(key, probability, (images.shape[0], 1, 1, 1))
        return jnp.where(flipped, images[:, :, ::-1], images)

    return on_images(flip)


def cutout(size: int) -> Transform:
    """Sets to 0 one square per image, its centre uniform over the pixels, clipped at the border.

    DeVries & Taylor (2017), section 3.2. To fill with the mean, as there, apply it after ``normalize``.

    Args:
        size: side of the square in pixels, at least 1.

    Raises:
        ValueError: a size below 1.
    """
    check_integer("size", size, 1)

    def cut(key: Key, images: Array) -> Array:
        count, height, width, _ = images.shape
        row_key, column_key = jax.random.split(key)
        top = jax.random.randint(row_key, (count,), 0, height) - size // 2
        left = jax.random.randint(column_key, (count,), 0, width) - size // 2
        inside = box_mask((height, width), top, left, top + size, left + size)
        return jnp.where(inside[..., None], jnp.zeros((), images.dtype), images)

    return on_images(cut)


def box_mask(shape: tuple[int, int], top: Edges, left: Edges, bottom: Edges, right: Edges) -> Masks:
    """Marks the pixels with top <= row < bottom and left <= column < right; the box may leave the image."""
    rows, columns = jnp.arange(shape[0])[None, :], jnp.arange(shape[1])[None, :]
    in_rows = (rows >= top[:, None]) & (rows < bottom[:, None])
    in_columns = (columns >= left[:, None]) & (columns < right[:, None])
    return in_rows[:, :, None] & in_columns[:, None, :]


def affine(image: Image, coefficients: Float[Array, "6"], order: int = 0) -> Image:
    """Warps one image: out(x, y) = in(a x + b y + c, d x + e y + f), with 0 outside the image.

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


def rotation(radians: Scalar, height: int, width: int) -> tuple[Scalar, ...]:
    """Returns the coefficients, as in `affine`, of a counter-clockwise rotation about the centre of the image."""
    cos, sin = jnp.cos(radians), jnp.sin(radians)
    x, y = width / 2, height / 2
    return (cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y)
