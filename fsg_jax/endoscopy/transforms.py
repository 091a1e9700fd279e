"""Transforms of endoscopy frames: box to mask, paired rotation and flip, and the images of the streams.

A batch has the keys ``frame``, ``mask`` and ``depth``. ``frame`` is uint8 or floating point in [0, 1] and leaves as
float32 in [0, 1]; ``depth`` need not be there. Once pixels have moved, the corners in ``box`` are wrong, so the
transforms drop it: `box_to_mask` goes first.

>>> augment = chain(box_to_mask(), paired_rotation(30), paired_flip(), make_streams(("mask", "depth"), 384))
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from fsg_jax._checks import check_integer, check_nonnegative, check_positive, check_probabilities
from fsg_jax.augment.geometry import affine
from fsg_jax.augment.pipeline import get_frames, get_plane, normalize
from fsg_jax.endoscopy.inputs import order_streams
from fsg_jax.typing import Batch, Images, Key, Transform

ENDOSCOPY_MEAN = (0.32239652, 0.22631808, 0.17500061)
"""Mean of the channels of the endoscopy frames, in [0, 1] (reference code of Roffo et al. 2024)."""
ENDOSCOPY_STD = (0.31781745, 0.2405859, 0.19327126)
"""Standard deviation of the channels, likewise."""

Ends: TypeAlias = tuple[Int[Array, " batch"], Int[Array, " batch"]]
"""First and last pixel of an interval, both inside it; the last before the first if there is none."""


def box_to_mask() -> Transform:
    """Returns a transform that adds ``mask``, float32 (batch, height, width): how much of each pixel ``box`` covers.

    ``box`` (batch, 4) is xmin, ymin, xmax, ymax in pixels of ``frame``, half-open: whole numbers give a mask of 0
    and 1, an edge within a pixel gives it the covered share. A box outside the frame gives zeros.

    Raises:
        ValueError: when the transform runs: there is no ``frame``, or no ``box`` of shape (batch, 4).
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
    """Returns a transform that rotates each example about its centre by ``u * degrees``, u ~ U(-1, 1), filling with 0.

    Args:
        degrees: largest angle, at least 0.
        order: 0 takes the nearest pixel, as the reference does; 1 interpolates bilinearly.

    Raises:
        ValueError: an argument is outside its range. When the transform runs: there is no ``mask``, or mask or depth do
            not fit the frame.
    """
    check_nonnegative(degrees=degrees)
    if order not in (0, 1):
        raise ValueError(f"order: expected 0 (nearest) or 1 (bilinear), found {order!r}")

    def move(key: Key, planes: Images) -> Images:
        angles = jnp.deg2rad(degrees) * jax.random.uniform(key, planes.shape[:1], minval=-1, maxval=1)
        return jax.vmap(lambda image, angle: _rotate(image, angle, order))(planes, angles)

    return _paired(move)


def paired_flip(horizontal: float = 0.5, vertical: float = 0.5) -> Transform:
    """Returns a transform that mirrors each example left to right and, independently, top to bottom.

    Args:
        horizontal: probability of the first.
        vertical: probability of the second.

    Raises:
        ValueError: a probability is outside [0, 1]. When the transform runs: as `paired_rotation`.
    """
    check_probabilities(horizontal=horizontal, vertical=vertical)

    def move(key: Key, planes: Images) -> Images:
        for subkey, probability, axis in zip(jax.random.split(key), (horizontal, vertical), (2, 1), strict=True):
            flipped = jax.random.bernoulli(subkey, float(probability), (planes.shape[0], 1, 1, 1))
            planes = jnp.where(flipped, jnp.flip(planes, axis), planes)
        return planes

    return _paired(move)


def _paired(move: Callable[[Key, Images], Images]) -> Transform:
    """Moves frame, mask and depth as the channels of one image, so that no two of them can part."""

    def transform(key: Key, batch: Batch) -> dict[str, Any]:
        frames = get_frames(batch)
        names = ["mask", "depth"] if "depth" in batch else ["mask"]
        planes = [get_plane(batch, name, frames)[..., None] for name in names]
        moved = move(key, jnp.concatenate([frames, *planes], axis=-1))
        kept = {name: value for name, value in batch.items() if name != "box"}
        moved_planes = {name: moved[..., channel] for channel, name in enumerate(names, start=3)}
        return {**kept, "frame": moved[..., :3], **moved_planes}

    return transform


def make_streams(
    streams: Sequence[str],
    size: int,
    *,
    expand: float = 0.5,
    circle: float | None = 1.0,
    keep_aspect: bool = False,
    mean: float | Sequence[float] = ENDOSCOPY_MEAN,
    std: float | Sequence[float] = ENDOSCOPY_STD,
) -> Transform:
    """Returns a transform that replaces ``frame``, ``mask``, ``depth`` and ``box`` by ``image``, float32 by stream.

    The frame becomes x = (frame - mean) / std, which is 0 (the mean colour, as in the reference) outside the circular
    field of view. Then, with S = ``size``:

    * ``rgb`` (batch, S, S, 3): x cropped to the expanded box of the mask, `expanded_box`, and resized;
    * ``mask`` (batch, S, S, 3): x times the mask, the whole frame, resized with antialiasing;
    * ``depth`` (batch, S, S, 1): the depth map cropped likewise, 0 outside a disc about the crop, then
      (d - min) / max(max - min, 1e-5) within each image.

    An empty mask gives zeros in all of them. The source is Roffo et al. (2024) and its code, section "inputs".

    Args:
        streams: one or more of ``rgb``, ``mask``, ``depth``; only these are computed.
        size: side of the images in pixels; the frame may be larger or smaller.
        expand: each side of the box moves out by this share of its extent, at least 0.
        circle: radius of the disc, where 1 touches the sides of the frame; None leaves the corners.
        keep_aspect: crop a square, so that both axes have one scale (the reference does not; size is metric).
        mean: as in `normalize`, for frames in [0, 1].
        std: as in `normalize`.

    Raises:
        ValueError: an argument is outside its range. When the transform runs: a key that a stream needs is missing, or
            its shape does not fit.
    """
    names = order_streams(streams)
    check_integer("size", size, 1)
    check_nonnegative(expand=expand)
    if circle is not None:
        check_positive(circle=circle)
    to_normal = normalize(mean, std)

    def transform(key: Key, batch: Batch) -> dict[str, Any]:
        frames = get_frames(batch)
        mask = jnp.clip(get_plane(batch, "mask", frames), 0, 1)
        x = _inside(to_normal(key, {"image": frames})["image"], circle)
        box = expanded_box(mask, expand, keep_aspect)
        image = {}
        if "rgb" in names:
            image["rgb"] = crop_resize(x, *box, size)
        if "mask" in names:
            image["mask"] = _resize(x * mask[..., None], size)
        if "depth" in names:
            depth = get_plane(batch, "depth", frames)[..., None]
            image["depth"] = _min_max(_inside(crop_resize(depth, *box, size), circle))
        kept = {name: value for name, value in batch.items() if name not in ("frame", "mask", "depth", "box")}
        return {**kept, "image": image}

    return transform


def expanded_box(
    mask: Float[Array, "batch height width"], expand: float, keep_aspect: bool = False
) -> tuple[Ends, Ends]:
    """Returns rows and columns of the box of the pixels above 0, each side moved out by ``trunc(expand * extent)``.

    The extent is last - first, and the result is clipped to the image. An empty mask gives empty intervals.

    Args:
        mask: one mask an example.
        expand: at least 0.
        keep_aspect: whether to widen the shorter of the two intervals to the extent of the longer, about its middle,
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
    """Crops each image to its rows and columns and resizes it, with the corner pixels of both on one another.

    Output pixel i lies at ``first + i (last - first) / (size - 1)``. Enlarging is bilinear, as PyTorch's
    ``interpolate(mode="bilinear", align_corners=True)``; shrinking widens the triangle of weights by the scale, so
    that it does not alias. Beyond the image there is 0; an empty interval gives zeros.
    """
    down = _weights(*rows, images.shape[1], size)
    across = _weights(*columns, images.shape[2], size)
    precision = jax.lax.Precision.HIGHEST
    images = jnp.einsum("bih,bhwc->biwc", down, images, precision=precision)
    return jnp.einsum("bjw,biwc->bijc", across, images, precision=precision)


def disc(height: int, width: int, radius: float) -> np.ndarray:
    """Returns ``x^2 + y^2 <= radius^2`` (height, width), where x and y run evenly from -1 to 1, ends included."""
    y, x = np.linspace(-1, 1, height), np.linspace(-1, 1, width)
    return np.hypot(y[:, None], x[None, :]) <= radius


def _cover(low: Float[Array, " batch"], high: Float[Array, " batch"], length: int) -> Float[Array, "batch length"]:
    """Returns the share of each of ``length`` pixels that lies in [low, high)."""
    pixel = jnp.arange(length, dtype=jnp.float32)[None, :]
    return jnp.clip(jnp.minimum(pixel + 1, high[:, None]) - jnp.maximum(pixel, low[:, None]), 0, 1)


def _rotate(
    image: Float[Array, "height width channels"], angle: Float[Array, ""], order: int
) -> Float[Array, "height width channels"]:
    """Rotates counter-clockwise, by radians."""
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    y, x = image.shape[0] / 2, image.shape[1] / 2
    return affine(image, jnp.stack([cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y]), order)


def _inside(images: Images, circle: float | None) -> Images:
    if circle is None:
        return images
    _, height, width, _ = images.shape
    return jnp.where(disc(height, width, circle)[None, :, :, None], images, 0)


def _resize(images: Images, size: int) -> Float[Array, "batch size size channels"]:
    shape = (images.shape[0], size, size, images.shape[-1])
    return images if images.shape == shape else jax.image.resize(images, shape, "linear", antialias=True)


def _min_max(images: Images) -> Images:
    low, high = images.min((1, 2, 3), keepdims=True), images.max((1, 2, 3), keepdims=True)
    return (images - low) / jnp.maximum(high - low, 1e-5)


def _ends(marked: Bool[Array, "batch length"]) -> Ends:
    last = marked.shape[1] - 1 - jnp.argmax(marked[:, ::-1], axis=1)
    return jnp.argmax(marked, axis=1), jnp.where(marked.any(1), last, -1)


def _expand(first: Int[Array, " batch"], last: Int[Array, " batch"], expand: float, length: int) -> Ends:
    # A table in double precision: expand * extent must not be rounded across a whole number.
    pads = jnp.asarray(np.trunc(expand * np.arange(length)), jnp.int32)
    pad = pads[jnp.maximum(last - first, 0)]
    return jnp.maximum(first - pad, 0), jnp.where(last < first, -1, jnp.minimum(last + pad, length - 1))


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
