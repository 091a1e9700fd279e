"""Crop, flip, cutout and the affine warp against NumPy and Pillow."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fsg_jax.augment import cutout, random_crop, random_flip, resize
from fsg_jax.augment.geometry import affine


def make_images(count, height, width, channels=3, dtype=np.uint8, seed=0):
    levels = np.random.default_rng(seed).integers(1, 256, (count, height, width, channels))
    return levels.astype(np.uint8) if dtype == np.uint8 else (levels / 255).astype(dtype)


def offsets_of(crop, padded):
    """All offsets at which the crop equals a slice of the padded image."""
    height, width, _ = crop.shape
    rows, columns = padded.shape[0] - height + 1, padded.shape[1] - width + 1
    return [
        (row, column)
        for row in range(rows)
        for column in range(columns)
        if np.array_equal(crop, padded[row : row + height, column : column + width])
    ]


@pytest.mark.parametrize("size", [(16, 12), (5, 4), (9, 6), (20, 3)])
def test_resizing_is_that_of_pillow(key, size):
    images = make_images(2, 9, 6)
    out = np.asarray(resize(size)(key, {"image": images})["image"])
    pillow = [np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)) for image in images]
    assert out.dtype == np.uint8
    np.testing.assert_allclose(out.astype(int), np.stack(pillow).astype(int), atol=1)
    floats = resize(size)(key, {"image": images.astype(np.float32)})["image"]
    assert floats.dtype == np.float32
    assert 0 < np.abs(np.asarray(floats) - out).max() <= 0.5 or size == (9, 6)
    np.testing.assert_array_equal(resize(7)(key, {"image": images})["image"].shape, (2, 7, 7, 3))


def test_resizing_refuses_sizes_below_1():
    with pytest.raises(ValueError, match="size: expected"):
        resize((4, 0))


@pytest.mark.parametrize("mode", ["constant", "reflect"])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_crop_is_a_slice_of_the_padded_image(key, mode, dtype):
    images, padding = make_images(24, 9, 6, dtype=dtype), 2
    out = np.asarray(jax.jit(random_crop(padding, mode))(key, {"image": images})["image"])
    assert out.dtype == dtype
    found = []
    for image, crop in zip(images, out, strict=True):
        padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)), mode=mode)
        offsets = offsets_of(crop, padded)
        assert len(offsets) == 1
        found += offsets
    assert len(set(found)) > 5
    assert {row for row, _ in found} == {column for _, column in found} == set(range(2 * padding + 1))


def test_crop_without_padding_is_the_identity(key):
    images = make_images(2, 5, 4)
    np.testing.assert_array_equal(random_crop(0)(key, {"image": images})["image"], images)


def test_flip_mirrors_about_half_of_the_images(key):
    images = make_images(200, 3, 5, 2)
    out = np.asarray(random_flip()(key, {"image": images})["image"])
    mirrored = np.array([np.array_equal(a, b[:, ::-1]) for a, b in zip(out, images, strict=True)])
    kept = np.array([np.array_equal(a, b) for a, b in zip(out, images, strict=True)])
    assert (mirrored ^ kept).all()
    assert 70 < mirrored.sum() < 130


@pytest.mark.parametrize(("probability", "step"), [(0.0, 1), (1.0, -1)])
def test_flip_probability(key, probability, step):
    images = make_images(8, 3, 5)
    out = random_flip(probability)(key, {"image": images})["image"]
    np.testing.assert_array_equal(out, images[:, :, ::step])


@functools.cache
def compiled_cutout(size):
    return jax.jit(cutout(size))


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.sampled_from([(1, 1, 1), (4, 8, 8), (3, 5, 8), (9, 4, 6), (2, 1, 7), (7, 8, 3)]), seed=st.integers(0, 999)
)
def test_cutout_zeroes_one_clipped_square(sizes, seed):
    size, height, width = sizes
    images = make_images(6, height, width)
    out = np.asarray(compiled_cutout(size)(jax.random.key(seed), {"image": images})["image"])
    zero = (out == 0).all(-1)
    np.testing.assert_array_equal(out, np.where(zero[..., None], 0, images))
    for mask in zero:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert mask.sum() == rows.size * columns.size
        assert rows[-1] - rows[0] + 1 == rows.size <= min(size, height)
        assert columns[-1] - columns[0] + 1 == columns.size <= min(size, width)
        assert rows.size >= min((size + 1) // 2, height)


def test_cutout_reaches_the_full_square_and_the_corners(key):
    out = np.asarray(cutout(4)(key, {"image": np.ones((300, 8, 8, 1), np.float32)})["image"])
    areas = (out == 0).sum((1, 2, 3))
    assert areas.max() == 16
    assert areas.min() == 4
    np.testing.assert_array_equal((out == 0).any(0), True)


PILLOW_FILTERS = [(0, Image.Resampling.NEAREST), (1, Image.Resampling.BILINEAR)]
COEFFICIENTS = [
    (1, 0, 2, 0, 1, -3),
    (1, 0.37, 0, 0, 1, 0),
    (1, 0, 0, -0.21, 1, 0),
    (0.8, 0.1, 1.3, -0.2, 1.1, 0.7),
]


@pytest.mark.parametrize(("order", "resample"), PILLOW_FILTERS)
@pytest.mark.parametrize("coefficients", COEFFICIENTS)
def test_affine_agrees_with_pillow(order, resample, coefficients):
    image = make_images(1, 12, 15)[0]
    expected = Image.fromarray(image).transform((15, 12), Image.Transform.AFFINE, coefficients, resample)
    found = affine(jnp.asarray(image, jnp.float32), jnp.asarray(coefficients, jnp.float32), order)
    # Pillow and this differ outside the outermost pixel centres, where bilinear weights meet the fill.
    inside = affine(jnp.ones((12, 15, 1)), jnp.asarray(coefficients, jnp.float32), 1)[..., 0] > 0.999
    assert inside.sum() > 50
    difference = np.abs(np.asarray(found) - np.asarray(expected, np.float32))[np.asarray(inside)]
    assert difference.max() <= 1


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (lambda: random_crop(-1), "padding"),
        (lambda: random_crop(2.0), "padding"),
        (lambda: random_crop(2, "edge"), "mode"),
        (lambda: random_flip(1.5), "probability"),
        (lambda: cutout(0), "size"),
    ],
)
def test_arguments_are_checked_early(factory, message):
    # With the shape checks on, a wrong type is reported by them before the library's own check.
    with pytest.raises(Exception, match=message):
        factory()
