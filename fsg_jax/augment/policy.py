"""TrivialAugment: one operation with one magnitude per image, both drawn uniformly."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fsg_jax._checks import check_choice, check_integer
from fsg_jax.augment import photometric
from fsg_jax.augment.geometry import affine, rotation
from fsg_jax.augment.pipeline import on_images
from fsg_jax.typing import Key, Transform

Interpolation = Literal["nearest", "bilinear"]
Scalar = Float[Array, ""]


class Operation(NamedTuple):
    """One entry of the policy: at most one of ``recolour`` and ``warp`` differs from the identity."""

    magnitudes: Callable[[int], np.ndarray] = lambda count: np.zeros(count)
    """Values of the parameter, for a number of magnitudes."""
    signed: bool = False
    """Whether the parameter takes a random sign."""
    recolour: Callable[[Array, Scalar], Array] = lambda image, value: image
    """Photometric part: levels in [0, 255], parameter."""
    warp: Callable[[Scalar, int, int], Sequence[Any]] | None = None
    """Geometric part: affine coefficients for a parameter, a height and a width."""


def _spaced(low: float, high: float) -> Callable[[int], np.ndarray]:
    return lambda count: np.linspace(low, high, count)


def _whole(start: int, change: int) -> Callable[[int], np.ndarray]:
    """From ``start`` by ``change`` in all, the steps cut to whole numbers."""
    return lambda count: start + np.sign(change) * (np.arange(count) * abs(change) // (count - 1))


_FACTORS = _spaced(0.01, 2.0)
_SHEARS = _spaced(0.0, 0.99)
_PIXELS = _whole(0, 32)
_IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)

_OPERATIONS: dict[str, Operation] = {
    "identity": Operation(),
    "brightness": Operation(_FACTORS, recolour=photometric.brightness),
    "contrast": Operation(_FACTORS, recolour=photometric.contrast),
    "saturation": Operation(_FACTORS, recolour=photometric.saturation),
    "sharpness": Operation(_FACTORS, recolour=photometric.sharpness),
    "posterize": Operation(_whole(8, -6), recolour=photometric.posterize),
    "solarize": Operation(_whole(256, -256), recolour=photometric.solarize),
    "autocontrast": Operation(recolour=lambda image, value: photometric.autocontrast(image)),
    "equalize": Operation(recolour=lambda image, value: photometric.equalize(image)),
    "rotate": Operation(_spaced(0.0, 135.0), signed=True, warp=lambda v, *size: rotation(jnp.deg2rad(v), *size)),
    "shear_x": Operation(_SHEARS, signed=True, warp=lambda v, height, width: (1, v, 0, 0, 1, 0)),
    "shear_y": Operation(_SHEARS, signed=True, warp=lambda v, height, width: (1, 0, 0, v, 1, 0)),
    "translate_x": Operation(_PIXELS, signed=True, warp=lambda v, height, width: (1, 0, -v, 0, 1, 0)),
    "translate_y": Operation(_PIXELS, signed=True, warp=lambda v, height, width: (1, 0, 0, 0, 1, -v)),
}

OPERATIONS: tuple[str, ...] = tuple(_OPERATIONS)
"""The fourteen operations of the policy."""


def trivial_augment(
    num_magnitudes: int = 31, *, operations: Sequence[str] = OPERATIONS, interpolation: Interpolation = "nearest"
) -> Transform:
    """Applies to each image one operation with one magnitude, both drawn uniformly.

    Müller & Hutter (2021), the wide space: shears to 0.99, shifts to 32 pixels, rotations to 135 degrees, all
    with a random sign; factors of brightness, contrast, saturation and sharpness from 0.01 to 2; 8 to 2 bits;
    solarize from level 256 to 0. Pixels from outside the image are 0. For uint8 images, or floating-point
    ones in [0, 1], so before ``normalize``; the result is clipped to that range. Every operation is computed
    for every image and one is kept; the geometric ones share a single warp.

    Args:
        num_magnitudes: steps per operation, at least 2.
        operations: the names to draw from, of ``OPERATIONS``. ``saturation`` changes only RGB images.
        interpolation: of the warp, ``nearest`` or ``bilinear``.

    Raises:
        ValueError: an argument outside its range, or an unknown operation.
    """
    check_integer("num_magnitudes", num_magnitudes, 2)
    if not operations or not set(operations) <= set(OPERATIONS):
        raise ValueError(f"operations: expected one or more of {OPERATIONS}, found {tuple(operations)}")
    check_choice("interpolation", interpolation, get_args(Interpolation))
    chosen = [_OPERATIONS[name] for name in operations]
    order = get_args(Interpolation).index(interpolation)

    def change(key: Key, images: Array) -> Array:
        scale = 1 if images.dtype == jnp.uint8 else 255
        index, value = _draw(key, chosen, num_magnitudes, images.shape[0])
        levels = jax.vmap(partial(_apply, chosen, order))(scale * images.astype(jnp.float32), index, value)
        levels = jnp.clip(levels, 0, 255)
        return (jnp.round(levels) if scale == 1 else levels / 255).astype(images.dtype)

    return on_images(change)


def _draw(key: Key, chosen: Sequence[Operation], num_magnitudes: int, count: int) -> tuple[Array, Array]:
    """Index of the operation and its signed parameter, for each of ``count`` images."""
    index_key, magnitude_key, sign_key = jax.random.split(key, 3)
    index = jax.random.randint(index_key, (count,), 0, len(chosen))
    magnitude = jax.random.randint(magnitude_key, (count,), 0, num_magnitudes)
    table = jnp.asarray(np.stack([op.magnitudes(num_magnitudes) for op in chosen]), jnp.float32)
    signed = jnp.asarray([op.signed for op in chosen])
    negative = jax.random.bernoulli(sign_key, shape=(count,)) & signed[index]
    return index, jnp.where(negative, -1, 1) * table[index, magnitude]


def _apply(chosen: Sequence[Operation], order: int, image: Array, index: Array, value: Array) -> Array:
    height, width, _ = image.shape
    image = jax.lax.switch(index, [op.recolour for op in chosen], image, value)
    if all(op.warp is None for op in chosen):
        return image
    rows = [_IDENTITY if op.warp is None else op.warp(value, height, width) for op in chosen]
    coefficients = jnp.stack([jnp.stack([jnp.asarray(v, jnp.float32) for v in row]) for row in rows])
    return affine(image, coefficients[index], order)
