"""Checks shared by the transforms: the images of a batch and the numbers given to the factories."""

import math

import jax
import jax.numpy as jnp

from fsg_jax.typing import Batch


def get_images(batch: Batch) -> jax.Array:
    """Return ``batch["image"]`` as an array.

    Raises:
        ValueError: no ``image`` in the batch, or not of shape (batch, height, width, channels).
        TypeError: neither uint8 nor floating point.
    """
    if "image" not in batch:
        raise ValueError(f"batch has no 'image'; its keys are {sorted(batch)}")
    images = jnp.asarray(batch["image"])
    if images.ndim != 4:
        raise ValueError(f"image: expected shape (batch, height, width, channels), found {images.shape}")
    if images.dtype != jnp.uint8 and not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(f"image: expected uint8 or floating point, found {images.dtype}")
    return images


def check_positive(name: str, value: float) -> None:
    """Raise ValueError unless ``value`` is finite and above 0."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name}: expected a finite number > 0, found {value}")


def check_probability(name: str, value: float) -> None:
    """Raise ValueError unless ``value`` lies in [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: expected a probability in [0, 1], found {value}")


def check_at_least(name: str, value: int, minimum: int) -> None:
    """Raise ValueError unless ``value`` is an integer of at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(f"{name}: expected an integer >= {minimum}, found {value!r}")
