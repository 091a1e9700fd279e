"""Checks shared by the transforms: the images of a batch and the numbers given to the factories."""

import math
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fsg_jax.typing import Batch, Images

Planes: TypeAlias = Float[Array, "batch height width"]


def get_images(batch: Batch, name: str = "image") -> jax.Array:
    """Return ``batch[name]`` as an array.

    Raises:
        ValueError: no such key in the batch, or not of shape (batch, height, width, channels).
        TypeError: neither uint8 nor floating point.
    """
    if name not in batch:
        raise ValueError(f"batch has no {name!r}; its keys are {sorted(batch)}")
    images = jnp.asarray(batch[name])
    if images.ndim != 4:
        raise ValueError(f"{name}: expected shape (batch, height, width, channels), found {images.shape}")
    if images.dtype != jnp.uint8 and not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(f"{name}: expected uint8 or floating point, found {images.dtype}")
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


def get_frames(batch: Batch, name: str = "frame") -> Images:
    """Return the RGB images ``batch[name]`` as float32; uint8 is divided by 255.

    Raises:
        ValueError: they are missing, or not of shape (batch, height, width, 3).
        TypeError: neither uint8 nor floating point.
    """
    frames = get_images(batch, name)
    if frames.shape[-1] != 3:
        raise ValueError(f"{name}: expected 3 channels, found shape {frames.shape}")
    return frames.astype(jnp.float32) / (255 if frames.dtype == jnp.uint8 else 1)


def get_plane(batch: Batch, name: str, frames: Images) -> Planes:
    """Return ``batch[name]`` as float32, one value a pixel of ``frames``.

    Raises:
        ValueError: it is missing, or not of the size of ``frames``.
    """
    if name not in batch:
        hint = "; apply box_to_mask() first" if name == "mask" else ""
        raise ValueError(f"batch has no {name!r}{hint}; its keys are {sorted(batch)}")
    plane = jnp.asarray(batch[name], jnp.float32)
    if plane.shape != frames.shape[:3]:
        raise ValueError(f"{name}: expected shape {frames.shape[:3]}, that of the frame, found {plane.shape}")
    return plane


def check_nonnegative(name: str, value: float) -> None:
    """Raise ValueError unless ``value`` is finite and at least 0."""
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name}: expected a finite number >= 0, found {value}")
