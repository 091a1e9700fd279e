"""From a frame, the mask of its polyp and its depth map to the inputs of `fsg_jax.models.MultiStream`."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fsg_jax._checks import check_integer, check_nonnegative, check_positive
from fsg_jax.augment.pipeline import get_frames, get_plane, normalize
from fsg_jax.endoscopy.crop import crop_resize, expanded_box
from fsg_jax.endoscopy.inputs import order_streams
from fsg_jax.typing import Batch, Images, Key, Transform

ENDOSCOPY_MEAN = (0.32239652, 0.22631808, 0.17500061)
"""Mean of the channels of the endoscopy frames, in [0, 1] (reference code of Roffo et al. 2024)."""
ENDOSCOPY_STD = (0.31781745, 0.2405859, 0.19327126)
"""Standard deviation of the channels, likewise."""

SOURCES = ("frame", "mask", "depth", "box")


def disc(height: int, width: int, radius: float) -> np.ndarray:
    """Booleans (height, width): ``x^2 + y^2 <= radius^2``, where x and y run evenly from -1 to 1, ends included."""
    y, x = np.linspace(-1, 1, height), np.linspace(-1, 1, width)
    return np.hypot(y[:, None], x[None, :]) <= radius


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
    """Replace ``frame``, ``mask``, ``depth`` and ``box`` by ``image``: a dict of float32 images by stream.

    First the frame becomes x = (frame - mean) / std, 0 outside the circular field of view (so of the mean colour,
    as in the reference). Then, with S = ``size``:

    * ``rgb`` (batch, S, S, 3): x cropped to the expanded box of the mask, `crop.expanded_box`, and resized;
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
        mean, std: as in `normalize`, for frames in [0, 1].

    Raises:
        ValueError: an argument outside its range, or when it runs: a key that a stream needs is missing or misfits.
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
        return {**{name: value for name, value in batch.items() if name not in SOURCES}, "image": image}

    return transform


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
