"""Crop of the expanded bounding box of a mask, resized, with one box an example inside jit."""

from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

Ends: TypeAlias = tuple[Int[Array, " batch"], Int[Array, " batch"]]
"""First and last pixel of an interval, both inside it; the last before the first if there is none."""


def expanded_box(
    mask: Float[Array, "batch height width"], expand: float, keep_aspect: bool = False
) -> tuple[Ends, Ends]:
    """Rows and columns of the box of the pixels above 0, each side moved out by ``trunc(expand * extent)``.

    The extent is last - first, and the result is clipped to the image. An empty mask gives empty intervals.

    Args:
        mask: one mask an example.
        expand: at least 0.
        keep_aspect: then widen the shorter of the two intervals to the extent of the longer, about its middle,
            moved to lie inside the image; it leaves the image only if it is longer than the image.
    """
    height, width = mask.shape[1:]
    rows = _expand(*_ends((mask > 0).any(2)), expand, height)
    columns = _expand(*_ends((mask > 0).any(1)), expand, width)
    if keep_aspect:
        extent = jnp.maximum(rows[1] - rows[0], columns[1] - columns[0])
        rows, columns = _widen(*rows, extent, height), _widen(*columns, extent, width)
    return rows, columns


def crop_resize(
    images: Float[Array, "batch height width channels"], rows: Ends, columns: Ends, size: int
) -> Float[Array, "batch size size channels"]:
    """Crop each image to its rows and columns and resize, the corner pixels of both on one another.

    Output pixel i lies at ``first + i (last - first) / (size - 1)``. Enlarging is bilinear, as PyTorch's
    ``interpolate(mode="bilinear", align_corners=True)``; shrinking widens the triangle of weights by the scale, so
    that it does not alias. Beyond the image there is 0; an empty interval gives zeros.
    """
    down = _weights(*rows, images.shape[1], size)
    across = _weights(*columns, images.shape[2], size)
    precision = jax.lax.Precision.HIGHEST
    images = jnp.einsum("bih,bhwc->biwc", down, images, precision=precision)
    return jnp.einsum("bjw,biwc->bijc", across, images, precision=precision)


def _ends(marked: Bool[Array, "batch length"]) -> Ends:
    last = marked.shape[1] - 1 - jnp.argmax(marked[:, ::-1], axis=1)
    return jnp.argmax(marked, axis=1), jnp.where(marked.any(1), last, -1)


def _expand(first: Int[Array, " batch"], last: Int[Array, " batch"], expand: float, length: int) -> Ends:
    # A table in double precision: expand * extent must not be rounded across a whole number.
    pads = jnp.asarray(np.trunc(expand * np.arange(length)), jnp.int32)
    pad = pads[jnp.maximum(last - first, 0)]
    grown = jnp.maximum(first - pad, 0), jnp.minimum(last + pad, length - 1)
    return grown[0], jnp.where(last < first, -1, grown[1])


def _widen(first: Int[Array, " batch"], last: Int[Array, " batch"], extent: Int[Array, " batch"], length: int) -> Ends:
    spare = length - 1 - extent
    start = jnp.clip(first - (extent - (last - first)) // 2, 0, jnp.maximum(spare, 0))
    start = jnp.where(spare < 0, spare // 2, start)
    return jnp.where(last < first, first, start), jnp.where(last < first, last, start + extent)


def _weights(
    first: Int[Array, " batch"], last: Int[Array, " batch"], length: int, size: int
) -> Float[Array, "batch size length"]:
    """Row i holds the weights of the pixels in output pixel i; they sum to 1, or are 0 beyond the image."""
    step = (last - first)[:, None, None] / max(size - 1, 1)
    position = step * jnp.arange(size).reshape(1, -1, 1)
    pixel = jnp.arange(length).reshape(1, 1, -1) - first[:, None, None]
    weights = jnp.maximum(1 - jnp.abs(position - pixel) / jnp.maximum(step, 1), 0)
    weights = jnp.where((pixel >= 0) & (pixel <= (last - first)[:, None, None]), weights, 0)
    return weights / jnp.maximum(weights.sum(-1, keepdims=True), 1e-6)
