"""Geometry shared by a frame, the mask of its polyp and its depth map: batch keys ``frame``, ``mask``, ``depth``.

``frame`` is uint8 or floating point in [0, 1] and leaves as float32 in [0, 1]; ``depth`` need not be there. Moving
the pixels makes the corners in ``box`` wrong, so the transforms drop it: `box_to_mask` goes first.

>>> augment = chain(box_to_mask(), paired_rotation(30), paired_flip(), make_streams(("mask", "depth"), 384))
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fsg_jax._checks import check_nonnegative, check_probabilities
from fsg_jax.augment.geometry import affine
from fsg_jax.augment.pipeline import get_frames, get_plane
from fsg_jax.typing import Batch, Images, Key, Transform


def box_to_mask() -> Transform:
    """Add ``mask`` float32 (batch, height, width): the share of each pixel that ``box`` covers.

    ``box`` (batch, 4) is xmin, ymin, xmax, ymax in pixels of ``frame``, half-open: whole numbers give a mask of 0
    and 1, an edge within a pixel gives it the covered share. A box outside the frame gives zeros.

    Raises:
        ValueError: no ``frame``, or no ``box`` of shape (batch, 4).
    """

    def transform(key: Key, batch: Batch) -> dict[str, Any]:
        count, height, width, _ = get_frames(batch).shape
        box = batch.get("box")
        if box is None or jnp.shape(box) != (count, 4):
            found = "no 'box'" if box is None else f"a box of shape {jnp.shape(box)}"
            raise ValueError(f"box_to_mask: expected a box of shape ({count}, 4), found {found}")
        left, top, right, bottom = jnp.asarray(box, jnp.float32).T
        mask = _cover(top, bottom, height)[:, :, None] * _cover(left, right, width)[:, None, :]
        return {**batch, "mask": mask}

    return transform


def paired_rotation(degrees: float, order: int = 1) -> Transform:
    """Rotate each example about its centre by ``u * degrees``, u ~ U(-1, 1), and fill with 0.

    Args:
        degrees: largest angle, at least 0.
        order: 0 takes the nearest pixel, as the reference does; 1 interpolates bilinearly.

    Raises:
        ValueError: an argument outside its range, or when it runs: no ``mask``, or planes that do not fit the frame.
    """
    check_nonnegative(degrees=degrees)
    if order not in (0, 1):
        raise ValueError(f"order: expected 0 (nearest) or 1 (bilinear), found {order!r}")

    def move(key: Key, planes: Images) -> Images:
        angles = jnp.deg2rad(degrees) * jax.random.uniform(key, planes.shape[:1], minval=-1, maxval=1)
        return jax.vmap(lambda image, angle: _rotate(image, angle, order))(planes, angles)

    return _paired(move)


def paired_flip(horizontal: float = 0.5, vertical: float = 0.5) -> Transform:
    """Mirror each example left to right and, independently, top to bottom, with these probabilities.

    Raises:
        ValueError: a probability outside [0, 1], or when it runs: no ``mask``, or planes that do not fit the frame.
    """
    check_probabilities(horizontal=horizontal, vertical=vertical)

    def move(key: Key, planes: Images) -> Images:
        for subkey, probability, axis in zip(jax.random.split(key), (horizontal, vertical), (2, 1), strict=True):
            flipped = jax.random.bernoulli(subkey, float(probability), (planes.shape[0], 1, 1, 1))
            planes = jnp.where(flipped, jnp.flip(planes, axis), planes)
        return planes

    return _paired(move)


def _paired(move: Callable[[Key, Images], Images]) -> Transform:
    """Move frame, mask and depth as the channels of one image, so that no two of them can part."""

    def transform(key: Key, batch: Batch) -> dict[str, Any]:
        frames = get_frames(batch)
        names = [name for name in ("mask", "depth") if name == "mask" or name in batch]
        planes = [get_plane(batch, name, frames)[..., None] for name in names]
        moved = move(key, jnp.concatenate([frames, *planes], axis=-1))
        kept = {name: value for name, value in batch.items() if name != "box"}
        colours = frames.shape[-1]
        return {
            **kept,
            "frame": moved[..., :colours],
            **{name: moved[..., colours + i] for i, name in enumerate(names)},
        }

    return transform


def _cover(low: Float[Array, " batch"], high: Float[Array, " batch"], length: int) -> Float[Array, "batch length"]:
    """Share of each of ``length`` pixels that lies in [low, high)."""
    pixel = jnp.arange(length, dtype=jnp.float32)[None, :]
    return jnp.clip(jnp.minimum(pixel + 1, high[:, None]) - jnp.maximum(pixel, low[:, None]), 0, 1)


def _rotate(
    image: Float[Array, "height width channels"], angle: Float[Array, ""], order: int
) -> Float[Array, "height width channels"]:
    """Counter-clockwise, by radians."""
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    y, x = image.shape[0] / 2, image.shape[1] / 2
    return affine(image, jnp.stack([cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y]), order)
