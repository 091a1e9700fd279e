"""Composition of transforms, conversion to floating point and normalisation."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fsg_jax.augment.checks import get_images
from fsg_jax.typing import Batch, Key, Transform


def chain(*transforms: Transform) -> Transform:
    """Apply ``transforms`` from left to right, the one at position i with the key ``fold_in(key, i)``.

    A transform added at the end therefore leaves the draws of the others unchanged.

    Raises:
        TypeError: one of them is not callable.
    """
    for position, transform in enumerate(transforms):
        if not callable(transform):
            raise TypeError(f"chain: transform {position} is not callable: {transform!r}")

    def apply(key: Key, batch: Batch) -> dict[str, Any]:
        for position, transform in enumerate(transforms):
            batch = transform(jax.random.fold_in(key, position), batch)
        return dict(batch)

    return apply


def to_float() -> Transform:
    """Convert uint8 images to float32 in [0, 1]; floating-point images are returned as they are."""

    def transform(key: Key, batch: Batch) -> dict[str, Any]:
        return {**batch, "image": _as_float(get_images(batch))}

    return transform


def normalize(mean: float | Sequence[float], std: float | Sequence[float]) -> Transform:
    """Return (x - mean) / std for every channel; uint8 images are first converted to float32 in [0, 1].

    Args:
        mean: one value, or one per channel, in the units of the floating-point image.
        std: likewise, above 0.

    Raises:
        ValueError: a value that is not finite, a std that is not positive, or (when the transform runs)
            a number of values that is neither 1 nor the number of channels.
    """
    shift, scale = (np.atleast_1d(np.asarray(values, np.float32)) for values in (mean, std))
    if shift.ndim != 1 or scale.ndim != 1 or not shift.size or not scale.size:
        raise ValueError(f"normalize: expected numbers or flat sequences, found mean={mean}, std={std}")
    if not (np.isfinite(shift).all() and np.isfinite(scale).all() and (scale > 0).all()):
        raise ValueError(f"normalize: expected finite mean and finite std > 0, found mean={mean}, std={std}")

    def transform(key: Key, batch: Batch) -> dict[str, Any]:
        images = _as_float(get_images(batch))
        for name, values in (("mean", shift), ("std", scale)):
            if values.size not in (1, images.shape[-1]):
                raise ValueError(f"normalize: {name} has {values.size} values, the images {images.shape[-1]} channels")
        normalized = (images - shift.reshape(1, 1, 1, -1)) / scale.reshape(1, 1, 1, -1)
        return {**batch, "image": normalized.astype(images.dtype)}

    return transform


def _as_float(images: jax.Array) -> jax.Array:
    return images.astype(jnp.float32) / 255 if images.dtype == jnp.uint8 else images
