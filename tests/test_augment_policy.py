"""TrivialAugment and its operations against Pillow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from fsg_jax.augment import OPERATIONS, photometric, policy, trivial_augment

SIZES = [(32, 32, 3), (17, 24, 3), (16, 16, 1)]


def make_image(height, width, channels, seed=0):
    """A smooth random image over part of the range, so that no operation is trivial on it."""
    noise = np.random.default_rng(seed).integers(40, 200, (height // 4 + 2, width // 4 + 2, channels))
    planes = [
        np.asarray(Image.fromarray(noise[..., c].astype(np.uint8)).resize((width, height))) for c in range(channels)
    ]
    return np.stack(planes, -1)


def to_pillow(image):
    return Image.fromarray(image if image.shape[-1] == 3 else image[..., 0])


def clipped(levels):
    return np.clip(np.asarray(levels), 0, 255)


ENHANCERS = {
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "saturation": ImageEnhance.Color,
    "sharpness": ImageEnhance.Sharpness,
}


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("name", ENHANCERS)
@pytest.mark.parametrize("factor", [0.01, 0.6, 1.0, 1.9])
def test_enhancers_agree_with_pillow(shape, name, factor):
    image = make_image(*shape)
    expected = np.asarray(ENHANCERS[name](to_pillow(image)).enhance(factor), np.float32).reshape(shape)
    found = jax.jit(getattr(photometric, name))(jnp.asarray(image, jnp.float32), jnp.float32(factor))
    assert np.abs(clipped(found) - expected).max() <= 2


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize(
    ("name", "reference", "values"),
    [
        ("posterize", ImageOps.posterize, (2, 3, 5, 8)),
        ("solarize", ImageOps.solarize, (0, 100, 120, 256)),
    ],
)
def test_levels_agree_with_pillow(shape, name, reference, values):
    image = make_image(*shape)
    for value in values:
        expected = np.asarray(reference(to_pillow(image), value)).reshape(shape)
        found = getattr(photometric, name)(jnp.asarray(image, jnp.float32), jnp.float32(value))
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("shape", [*SIZES, (60, 70, 3)])
@pytest.mark.parametrize(
    ("name", "reference", "tolerance"),
    [("autocontrast", ImageOps.autocontrast, 1.01), ("equalize", ImageOps.equalize, 0)],
)
def test_histogram_operations_agree_with_pillow(shape, name, reference, tolerance):
    image = make_image(*shape)
    expected = np.asarray(reference(to_pillow(image)), np.float32).reshape(shape)
    found = np.asarray(jax.jit(getattr(photometric, name))(jnp.asarray(image, jnp.float32)))
    assert np.abs(found - expected).max() <= tolerance
    assert np.abs(found - image).max() > 10


@pytest.mark.parametrize("name", ["autocontrast", "equalize"])
def test_a_uniform_image_stays(name):
    image = jnp.full((8, 9, 3), 37.0)
    np.testing.assert_array_equal(jax.jit(getattr(photometric, name))(image), image)


def test_saturation_changes_only_three_channels():
    image = jnp.asarray(make_image(8, 8, 4), jnp.float32)
    np.testing.assert_array_equal(photometric.saturation(image, jnp.float32(0.1)), image)


def run_single(name, image, value, order=0):
    operation = policy._OPERATIONS[name]
    found = policy._apply([operation], order, jnp.asarray(image, jnp.float32), jnp.int32(0), jnp.float32(value))
    return np.asarray(found)


@pytest.mark.parametrize("degrees", [20, -35, 90, 135])
def test_rotation_agrees_with_pillow(degrees):
    image = make_image(31, 25, 3)
    expected = np.asarray(Image.fromarray(image).rotate(degrees), np.float32)
    differs = np.abs(run_single("rotate", image, degrees) - expected).max(-1) > 0
    assert differs.mean() < 0.01  # ties between two nearest pixels


@pytest.mark.parametrize(("name", "axis"), [("translate_y", 0), ("translate_x", 1)])
@pytest.mark.parametrize("pixels", [3, -5, 40])
def test_translation_moves_right_and_down(name, axis, pixels):
    image = make_image(12, 10, 3)
    padded = np.pad(image, ((50, 50), (50, 50), (0, 0)))
    rows, columns = (50 - pixels, 50) if axis == 0 else (50, 50 - pixels)
    expected = padded[rows : rows + 12, columns : columns + 10]
    np.testing.assert_array_equal(run_single(name, image, pixels), expected)


@pytest.mark.parametrize(
    ("name", "coefficients"), [("shear_x", (1, 0.4, 0, 0, 1, 0)), ("shear_y", (1, 0, 0, 0.4, 1, 0))]
)
def test_shear_agrees_with_pillow(name, coefficients):
    image = make_image(19, 22, 3)
    expected = Image.fromarray(image).transform((22, 19), Image.Transform.AFFINE, coefficients)
    differs = np.abs(run_single(name, image, 0.4) - np.asarray(expected, np.float32)).max(-1) > 0
    assert differs.mean() < 0.01


def test_magnitudes_of_the_wide_space():
    ends = {name: policy._OPERATIONS[name].magnitudes(31)[[0, 15, 30]].tolist() for name in OPERATIONS}
    assert ends["posterize"] == [8, 5, 2]
    assert ends["solarize"] == [256, 128, 0]
    assert ends["translate_x"] == ends["translate_y"] == [0, 16, 32]
    assert ends["rotate"] == [0, 67.5, 135]
    np.testing.assert_allclose(ends["shear_x"], [0, 0.495, 0.99])
    np.testing.assert_allclose(ends["brightness"], [0.01, 1.005, 2.0])
    signed = [name for name in OPERATIONS if policy._OPERATIONS[name].signed]
    assert signed == ["rotate", "shear_x", "shear_y", "translate_x", "translate_y"]


def test_draws_are_uniform_and_independent(key):
    operations = [policy._OPERATIONS[name] for name in ("brightness", "translate_x")]
    index, value = map(np.asarray, policy._draw(key, operations, 3, 3000))
    for i, expected in [(0, [0.01, 1.005, 2.0]), (1, [-32, -16, 0, 16, 32])]:
        assert abs((index == i).mean() - 0.5) < 0.05
        levels, counts = np.unique(value[index == i].round(4), return_counts=True)
        np.testing.assert_allclose(levels, expected, atol=1e-3)
        assert counts.min() > 150


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        pytest.param(shape, dtype, marks=() if i == j else pytest.mark.slow)
        for i, shape in enumerate([(9, 7, 3), (2, 5, 1), (1, 1, 2)])
        for j, dtype in enumerate([jnp.uint8, jnp.float32, jnp.bfloat16])
    ],
)
def test_any_shape_stays_in_range(key, shape, dtype):
    levels = np.random.default_rng(0).integers(0, 256, (40, *shape))
    images = jnp.asarray(levels, dtype) / (1 if dtype == jnp.uint8 else 255)
    out = jax.jit(trivial_augment(5))(key, {"image": images.astype(dtype)})["image"]
    assert out.shape == images.shape
    assert out.dtype == dtype
    values = np.asarray(out, np.float32)
    assert np.isfinite(values).all()
    assert values.min() >= 0
    assert values.max() <= (255 if dtype == jnp.uint8 else 1)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_float_and_uint8_agree(key, interpolation):
    images = np.stack([make_image(16, 16, 3, seed) for seed in range(40)])
    transform = jax.jit(trivial_augment(interpolation=interpolation))
    whole = np.asarray(transform(key, {"image": images})["image"], np.float32)
    real = np.asarray(transform(key, {"image": images.astype(np.float32) / 255})["image"])
    assert np.abs(whole - 255 * real).max() <= 0.51
    changed = np.abs(whole - images).max((1, 2, 3)) > 0
    assert 0.5 < changed.mean() < 1


def test_identical_images_get_different_draws(key):
    images = np.repeat(make_image(16, 16, 3)[None], 24, 0)
    out = np.asarray(jax.jit(trivial_augment())(key, {"image": images})["image"])
    assert len(np.unique(out.reshape(24, -1), axis=0)) > 12


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_identity_alone_changes_nothing(key, dtype):
    images = make_image(8, 8, 3)[None].astype(dtype) / (1 if dtype == np.uint8 else 255)
    images = images.astype(dtype)
    out = trivial_augment(operations=("identity",))(key, {"image": images})["image"]
    np.testing.assert_allclose(out, images, rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_magnitudes": 1}, "num_magnitudes: expected an integer >= 2, found 1"),
        ({"operations": ("rotate", "hue")}, "operations: .*hue"),
        ({"operations": ()}, "operations: expected one or more"),
    ],
)
def test_arguments_are_checked_early(arguments, message):
    with pytest.raises(ValueError, match=message):
        trivial_augment(**arguments)
