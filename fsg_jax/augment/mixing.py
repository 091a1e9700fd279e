"""Mixup and CutMix: one ratio per batch, partners by a random permutation, labels become probabilities.

Where the batch has a mask ``valid``, a row whose partner is padding stays unmixed.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fsg_jax._checks import check_integer, check_positive, check_probabilities
from fsg_jax.augment.geometry import box_mask
from fsg_jax.augment.pipeline import get_entry, get_images
from fsg_jax.typing import Batch, Key, Transform

Mix: TypeAlias = Callable[[Key, Array, Array, Array], tuple[Array, Array]]
"""``mix(key, images, probabilities, partner)``: the mixed images and probabilities."""


def mixup(alpha: float, num_classes: int) -> Transform:
    """Computes x' = λ x + (1 - λ) x[partner], likewise the labels, with λ ~ Beta(alpha, alpha).

    Zhang et al. (2018), equation 1. For floating-point images.

    Args:
        alpha: above 0; near 0 mixes little, 1 draws λ uniformly.
        num_classes: number of columns of the new ``label``.

    Raises:
        ValueError: an argument outside its range, or labels that do not fit ``num_classes``.
        TypeError: uint8 images (apply ``to_float`` or ``normalize`` first).
    """
    check_positive(alpha=alpha)
    return _mixing(_mixup(alpha), num_classes)


def cutmix(alpha: float, num_classes: int) -> Transform:
    """Pastes a box of the partner's pixels; the labels are mixed by the exact share of pixels kept.

    The box has sides H sqrt(1 - λ) and W sqrt(1 - λ), rounded down to an even number of pixels, where
    λ ~ Beta(alpha, alpha). Its centre is uniform over the pixels and it is clipped at the border: Yun et al.
    (2019), equations 1 and 2. One box per batch; for uint8 and floating-point images.

    Args:
        alpha: above 0.
        num_classes: number of columns of the new ``label``.

    Raises:
        ValueError: an argument outside its range, or labels that do not fit ``num_classes``.
    """
    check_positive(alpha=alpha)
    return _mixing(_cutmix(alpha), num_classes)


def mixup_or_cutmix(
    mixup_alpha: float, cutmix_alpha: float, num_classes: int, *, cutmix_probability: float = 0.5
) -> Transform:
    """Applies ``cutmix`` to the batch with this probability, else ``mixup``. For floating-point images.

    Raises:
        ValueError: an argument outside its range, or labels that do not fit ``num_classes``.
        TypeError: uint8 images.
    """
    check_positive(mixup_alpha=mixup_alpha, cutmix_alpha=cutmix_alpha)
    check_probabilities(cutmix_probability=cutmix_probability)
    blend, paste = _mixup(mixup_alpha), _cutmix(cutmix_alpha)

    def mix(key: Key, images: Array, labels: Array, partner: Array) -> tuple[Array, Array]:
        choice_key, mix_key = jax.random.split(key)
        choose_paste = jax.random.bernoulli(choice_key, cutmix_probability)
        return jax.lax.cond(choose_paste, paste, blend, mix_key, images, labels, partner)

    return _mixing(mix, num_classes)


def _mixing(mix: Mix, num_classes: int) -> Transform:
    check_integer("num_classes", num_classes, 1)

    def transform(key: Key, batch: Batch) -> dict[str, Any]:
        images, labels = get_images(batch), _probabilities(batch, num_classes)
        partner_key, mix_key = jax.random.split(key)
        partner = _partners(partner_key, batch, images.shape[0])
        images, labels = mix(mix_key, images, labels, partner)
        return {**batch, "image": images, "label": labels}

    return transform


def _mixup(alpha: float) -> Mix:
    def mix(key: Key, images: Array, labels: Array, partner: Array) -> tuple[Array, Array]:
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise TypeError(f"mixup: expected floating-point images, found {images.dtype}; use to_float() first")
        ratio = jax.random.beta(key, alpha, alpha, dtype=jnp.float32)
        return _interpolate(images, images[partner], ratio), _interpolate(labels, labels[partner], ratio)

    return mix


def _cutmix(alpha: float) -> Mix:
    def mix(key: Key, images: Array, labels: Array, partner: Array) -> tuple[Array, Array]:
        _, height, width, _ = images.shape
        ratio_key, row_key, column_key = jax.random.split(key, 3)
        side = jnp.sqrt(1 - jax.random.beta(ratio_key, alpha, alpha, dtype=jnp.float32))
        top, bottom = _interval(row_key, side, height)
        left, right = _interval(column_key, side, width)
        inside = box_mask((height, width), top, left, bottom, right)
        kept = 1 - jnp.mean(inside, dtype=jnp.float32)
        mixed = jnp.where(inside[..., None], images[partner], images)
        return mixed, _interpolate(labels, labels[partner], kept)

    return mix


def _interval(key: Key, side: Float[Array, ""], length: int) -> tuple[Int[Array, "1"], Int[Array, "1"]]:
    """Start and end (exclusive) of an interval of about ``side * length`` pixels around a uniform one."""
    half = jnp.floor(side * length).astype(jnp.int32) // 2
    centre = jax.random.randint(key, (1,), 0, length)
    return centre - half, centre + half


def _interpolate(first: Array, second: Array, ratio: Float[Array, ""]) -> Array:
    mixed = ratio * first.astype(jnp.float32) + (1 - ratio) * second.astype(jnp.float32)
    return mixed.astype(first.dtype)


def _partners(key: Key, batch: Batch, count: int) -> Int[Array, " batch"]:
    partner = jax.random.permutation(key, count)
    if "valid" in batch:
        partner = jnp.where(jnp.asarray(batch["valid"])[partner], partner, jnp.arange(count))
    return partner


def _probabilities(batch: Batch, num_classes: int) -> Float[Array, "batch classes"]:
    labels = jnp.asarray(get_entry(batch, "label"))
    if labels.ndim == 1 and jnp.issubdtype(labels.dtype, jnp.integer):
        return jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
    if labels.ndim == 2 and jnp.issubdtype(labels.dtype, jnp.floating) and labels.shape[1] == num_classes:
        return labels
    raise ValueError(
        f"label: expected integers (batch,) or probabilities (batch, {num_classes}), "
        f"found {labels.dtype} of shape {labels.shape}"
    )
