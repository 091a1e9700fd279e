"""What every transform builds on: the images of a batch, composition, conversion to floating point, normalisation."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fsg_jax.typing import Batch, Images, Key, Transform


def chain(*transforms: Transform) -> Transform:
    """Applies ``transforms`` from left to right, the one at position i with the key ``fold_in(key, i)``.

    A transform added at the end therefore leaves the draws of the others unchanged.

    Raises:
        TypeError: one of them is not callable.
    """
    for position, transform in enumerate(transforms):
        if not callable(transform):
            raise TypeError(f"chain: expected callables, found {transform!r} at position {position}")

    def apply(key: Key, batch: Batch) -> dict[str, Any]:
        for position, transform in enumerate(transforms):
            batch = transform(jax.random.fold_in(key, position), batch)
        return dict(batch)

    return apply


def to_float() -> Transform:
    """Converts uint8 images to float32 in [0, 1]; floating-point images stay as they are."""
    return on_images(lambda key, images: _as_float(images))


def normalize(mean: float | Sequence[float], std: float | Sequence[float]) -> Transform:
    """Computes (x - mean) / std for every channel; uint8 images are first converted to float32 in [0, 1].

    Args:
        mean: one value, or one per channel, in the units of the floating-point image.
        std: likewise, above 0.

    Raises:
        ValueError: a value that is not finite, a std that is not positive, or (when the transform runs)
            a number of values that is neither 1 nor the number of channels.
    """
    shift, scale = (np.atleast_1d(np.asarray(values, np.float32)) for values in (mean, std))
    fits = all(values.ndim == 1 and values.size and np.isfinite(values).all() for values in (shift, scale))
    if not (fits and (scale > 0).all()):
        raise ValueError(f"normalize: expected finite mean and finite std > 0, flat, found {mean=}, {std=}")

    def change(key: Key, images: Array) -> Array:
        images = _as_float(images)
        for name, values in (("mean", shift), ("std", scale)):
            if values.size not in (1, images.shape[-1]):
                raise ValueError(f"{name}: expected 1 value or {images.shape[-1]}, one a channel, found {values.size}")
        return ((images - shift.reshape(1, 1, 1, -1)) / scale.reshape(1, 1, 1, -1)).astype(images.dtype)

    return on_images(change)


def get_images(batch: Batch, name: str = "image") -> jax.Array:
    """Returns ``batch[name]`` as an array.

    Raises:
        ValueError: no such key in the batch, or not of shape (batch, height, width, channels).
        TypeError: neither uint8 nor floating point.
    """
    images = jnp.asarray(get_entry(batch, name))
    if images.ndim != 4:
        raise ValueError(f"{name}: expected shape (batch, height, width, channels), found {images.shape}")
    if images.dtype != jnp.uint8 and not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(f"{name}: expected uint8 or floating point, found {images.dtype}")
    return images


def get_frames(batch: Batch, name: str = "frame") -> Images:
    """Returns the RGB images ``batch[name]`` as float32; uint8 is divided by 255.

    Raises:
        ValueError: they are missing, or not of shape (batch, height, width, 3).
        TypeError: neither uint8 nor floating point.
    """
    frames = get_images(batch, name)
    if frames.shape[-1] != 3:
        raise ValueError(f"{name}: expected 3 channels, found shape {frames.shape}")
    return _as_float(frames).astype(jnp.float32)


def get_plane(batch: Batch, name: str, frames: Images) -> Float[Array, "batch height width"]:
    """Returns ``batch[name]`` as float32, one value a pixel of ``frames``.

    Raises:
        ValueError: it is missing, or not of the size of ``frames``.
    """
    plane = jnp.asarray(get_entry(batch, name, "; apply box_to_mask() first" if name == "mask" else ""), jnp.float32)
    if plane.shape != frames.shape[:3]:
        raise ValueError(f"{name}: expected shape {frames.shape[:3]}, that of the frame, found {plane.shape}")
    return plane


def get_entry(batch: Batch, name: str, hint: str = "") -> Any:
    """Returns ``batch[name]``; a missing key is a ValueError, which ends with ``hint``."""
    if name not in batch:
        raise ValueError(f"batch: expected the key {name!r}, found {sorted(batch)}{hint}")
    return batch[name]


def on_images(
    change: Callable[[Key, Array], Array], name: str = "image", get: Callable[[Batch, str], Array] = get_images
) -> Transform:
    """Makes the transform that replaces ``batch[name]`` by ``change(key, get(batch, name))``."""

    def transform(key: Key, batch: Batch) -> dict[str, Any]:
        return {**batch, name: change(key, get(batch, name))}

    return transform


def _as_float(images: jax.Array) -> jax.Array:
    return images.astype(jnp.float32) / 255 if images.dtype == jnp.uint8 else images
