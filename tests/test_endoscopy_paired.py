"""Geometry shared by frame, mask and depth; colour jitter and noise; against NumPy, SciPy and torchvision."""

import importlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import map_coordinates

from fsg_jax.augment import chain, colour_jitter, gaussian_noise
from fsg_jax.augment.photometric import ADJUSTMENTS
from fsg_jax.endoscopy import box_to_mask, paired_flip, paired_rotation

CHAIN = jax.jit(chain(box_to_mask(), paired_rotation(180, order=0), paired_flip()))


def frames(count=3, height=10, width=12, seed=0):
    return np.random.default_rng(seed).integers(1, 256, (count, height, width, 3)).astype(np.uint8)


def planes(count=3, height=10, width=12, seed=1):
    return np.random.default_rng(seed).uniform(1, 9, (count, height, width)).astype(np.float32)


@settings(max_examples=20, deadline=None)
@given(
    corners=st.lists(st.tuples(*[st.integers(-3, 14)] * 2).map(sorted), min_size=2, max_size=2),
    shape=st.sampled_from([(10, 7), (1, 9)]),
)
def test_whole_boxes_are_half_open(corners, shape):
    (left, right), (top, bottom), (height, width) = *corners, shape
    batch = {"frame": frames(1, height, width), "box": np.array([[left, top, right, bottom]], np.float32)}
    expected = np.zeros((height, width), np.float32)
    expected[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = 1
    found = box_to_mask()(jax.random.key(0), batch)
    np.testing.assert_array_equal(found["mask"][0], expected)
    assert found["frame"].dtype == np.uint8


def test_edges_within_a_pixel_cover_it_in_part(key):
    batch = {"frame": frames(2, 6, 8), "box": np.array([[1.25, 2, 4.5, 3.75], [3.2, 1.4, 3.6, 1.9]], np.float32)}
    mask = np.asarray(box_to_mask()(key, batch)["mask"])
    np.testing.assert_allclose(mask[0, 2, :6], [0, 0.75, 1, 1, 0.5, 0])
    np.testing.assert_allclose(mask[0, :, 2], [0, 0, 1, 0.75, 0, 0])
    np.testing.assert_allclose(mask.sum((1, 2)), [3.25 * 1.75, 0.4 * 0.5], rtol=1e-5)
    assert (mask[1] > 0).sum() == 1


@settings(max_examples=20, deadline=None)
@given(row=st.integers(0, 10), column=st.integers(0, 10), seed=st.integers(0, 10_000))
def test_a_marked_pixel_moves_the_same_way_everywhere(row, column, seed):
    frame, depth = np.zeros((2, 11, 11, 3), np.uint8), np.zeros((2, 11, 11), np.float32)
    frame[:, row, column], depth[:, row, column] = 255, 7.0
    box = np.tile(np.array([[column, row, column + 1, row + 1]], np.float32), (2, 1))
    out = CHAIN(jax.random.key(seed), {"frame": frame, "depth": depth, "box": box, "size_mm": np.ones(2)})
    assert set(out) == {"frame", "mask", "depth", "size_mm"}
    np.testing.assert_array_equal(out["frame"], jnp.repeat(out["mask"][..., None], 3, axis=-1))
    np.testing.assert_array_equal(out["depth"], 7 * out["mask"])


def rotated(plane, degrees, order):
    """Counter-clockwise about the centre in double precision; row 0 is the top."""
    height, width = plane.shape
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    y, x = np.mgrid[:height, :width] - np.array([(height - 1) / 2, (width - 1) / 2]).reshape(2, 1, 1)
    source = [sin * x + cos * y + (height - 1) / 2, cos * x - sin * y + (width - 1) / 2]
    return map_coordinates(plane.astype(np.float64), source, order=order, mode="grid-constant")


def angles(key, degrees, count):
    """The angles drawn, recovered from where they send one pixel of a large plane."""
    frame, mask = np.zeros((count, 201, 201, 3), np.uint8), np.zeros((count, 201, 201), np.float32)
    mask[:, 99:102, 189:192] = 1
    out = np.asarray(jax.jit(paired_rotation(degrees))(key, {"frame": frame, "mask": mask})["mask"], np.float64)
    y, x = np.mgrid[-100:101, -100:101]
    return np.rad2deg(np.arctan2(-(out * y).sum((1, 2)), (out * x).sum((1, 2))))


@pytest.mark.parametrize("shape", [(10, 12), (9, 9)])
def test_rotation_agrees_with_double_precision(key, shape):
    frame, depth, mask = frames(4, *shape), planes(4, *shape), planes(4, *shape, seed=2) / 9
    out = jax.jit(paired_rotation(40))(key, {"frame": frame, "depth": depth, "mask": mask})
    for i, angle in enumerate(angles(key, 40, 4)):
        for c in range(3):
            np.testing.assert_allclose(out["frame"][i, ..., c], rotated(frame[i, ..., c] / 255, angle, 1), atol=0.02)
        np.testing.assert_allclose(out["mask"][i], rotated(mask[i], angle, 1), atol=0.02)
        np.testing.assert_allclose(out["depth"][i], rotated(depth[i], angle, 1), atol=0.2)


def test_rotation_is_uniform_and_of_one_angle_an_example(key):
    drawn = angles(key, 30, 64)
    assert np.all(np.abs(drawn) <= 30.1)
    assert drawn.max() > 20
    assert drawn.min() < -20
    assert abs(drawn.mean()) < 8
    assert 14 < drawn.std() < 21
    assert len(np.unique(drawn.round(4))) == 64


@pytest.mark.parametrize("order", [0, 1])
def test_no_rotation_and_no_flip_keep_every_pixel(key, order):
    batch = {"frame": frames(), "mask": planes() / 9, "depth": planes()}
    out = chain(paired_rotation(0, order), paired_flip(0, 0))(key, batch)
    np.testing.assert_allclose(out["frame"], batch["frame"] / np.float32(255), rtol=1e-6)
    for name in ("mask", "depth"):
        np.testing.assert_array_equal(out[name], batch[name])


@pytest.mark.parametrize(("horizontal", "vertical"), [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_certain_flips(key, horizontal, vertical):
    batch = {"frame": frames() / np.float32(255), "mask": planes() / 9}
    out = paired_flip(horizontal, vertical)(key, batch)
    step = np.s_[:, :: -1 if vertical else 1, :: -1 if horizontal else 1]
    for name, before in batch.items():
        np.testing.assert_array_equal(out[name], before[step])


def test_flips_are_independent_halves(key):
    mask = np.tile(np.arange(4, dtype=np.float32).reshape(1, 2, 2), (400, 1, 1))
    out = np.asarray(paired_flip()(key, {"frame": np.zeros((400, 2, 2, 3), np.uint8), "mask": mask})["mask"])
    corner = np.bincount(out[:, 0, 0].astype(int), minlength=4)
    assert corner.sum() == 400
    assert corner.min() > 65


@pytest.mark.parametrize("float_frame", [False, True])
def test_photometric_output_is_float_in_range_and_leaves_the_rest(key, float_frame):
    frame = frames() / np.float32(255) if float_frame else frames()
    batch = {"frame": frame, "mask": planes(), "label": np.arange(3)}
    out = jax.jit(chain(colour_jitter(0.9, 0.9, 0.9, 0.5), gaussian_noise(0.5)))(key, batch)
    assert out["frame"].dtype == jnp.float32
    assert float(out["frame"].min()) == 0
    assert float(out["frame"].max()) == 1
    assert not np.allclose(out["frame"], frames() / 255, atol=0.1)
    np.testing.assert_array_equal(out["mask"], batch["mask"])
    plain = chain(colour_jitter(), gaussian_noise(0))(key, batch)["frame"]
    np.testing.assert_allclose(plain, frames() / np.float32(255), rtol=1e-6)


def test_brightness_factors_are_uniform(key):
    frame = np.full((400, 1, 2, 3), 0.5, np.float32)
    factor = np.asarray(colour_jitter(brightness=0.4)(key, {"frame": frame})["frame"])[:, 0, 0, 0] / 0.5
    assert 0.6 <= factor.min() < 0.62
    assert 1.38 < factor.max() <= 1.4
    np.testing.assert_allclose([factor.mean(), factor.std()], [1, 0.8 / 12**0.5], atol=0.03)


def test_adjustments_come_in_a_random_order(key):
    """A white and a black pixel, made brighter and of less contrast: clipping tells which came first.

    Brightness first leaves the white pixel white, and contrast then keeps the sum 1; contrast first gives two greys,
    which brightness makes sum to more than 1.
    """
    frame = np.tile(np.array([1, 0], np.float32).reshape(1, 1, 2, 1), (128, 1, 1, 3))
    out = np.asarray(jax.jit(colour_jitter(brightness=1, contrast=1))(key, {"frame": frame})["frame"])[:, 0, :, 0]
    total = out.sum(-1)[out[:, 1] > 1e-3]
    brightness_first = np.isclose(total, 1, atol=1e-4).sum()
    contrast_first = (total > 1.001).sum()
    assert 5 < brightness_first < 27
    assert 5 < contrast_first < 27


def test_hue_of_pure_colours():
    colours = jnp.asarray([[[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0.4, 0.4, 0.4]]])
    third = ADJUSTMENTS["hue"](colours, jnp.float32(1 / 3))
    np.testing.assert_allclose(third[0, :3], np.eye(3)[[1, 2, 0]], atol=1e-5)
    np.testing.assert_allclose(third[0, 3], 0.4, atol=1e-6)
    np.testing.assert_allclose(ADJUSTMENTS["hue"](colours, jnp.float32(0.5))[0, 0], [0, 1, 1], atol=1e-5)


def test_noise_has_its_deviation(key):
    frame = np.full((2, 64, 64, 3), 0.5, np.float32)
    out = np.asarray(gaussian_noise(0.1, key="picture")(key, {"picture": frame})["picture"])
    np.testing.assert_allclose([out.mean(), out.std()], [0.5, 0.1], atol=0.002)
    edge = np.asarray(gaussian_noise(0.1)(key, {"frame": np.ones_like(frame)})["frame"])
    assert edge.max() == 1
    assert 0.4 < (edge == 1).mean() < 0.6


@pytest.fixture(scope="module")
def torchvision():
    torch = pytest.importorskip("torch")
    importlib.import_module("test_parity_timm")  # declares what the import of torchvision may miss
    return torch, importlib.import_module("torchvision.transforms.v2.functional")


@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "value"),
    [*itertools.product(("brightness", "contrast", "saturation"), (0.3, 1.7)), ("hue", -0.4), ("hue", 0.07)],
)
def test_adjustments_agree_with_torchvision(torchvision, name, value):
    torch, functional = torchvision
    image = frames(1)[0] / np.float32(255)
    image[0, :3] = [[0.2, 0.2, 0.2], [0, 0, 0], [1, 1, 0]]
    reference = getattr(functional, f"adjust_{name}")(torch.from_numpy(np.moveaxis(image, -1, 0).copy()), value)
    found = ADJUSTMENTS[name](jnp.asarray(image), jnp.float32(value))
    np.testing.assert_allclose(found, np.moveaxis(reference.numpy(), 0, -1), atol=2e-5)


def test_nearest_rotation_agrees_with_pillow(key):
    mask = planes(3, 21, 21)
    out = paired_rotation(90, order=0)(key, {"frame": frames(3, 21, 21), "mask": mask})["mask"]
    for i, angle in enumerate(angles(key, 90, 3)):
        expected = np.asarray(Image.fromarray(mask[i]).rotate(angle))
        assert np.mean(np.asarray(out[i]) == expected) > 0.97


@pytest.mark.parametrize(
    ("transform", "batch", "message"),
    [
        (box_to_mask(), {"frame": frames()}, "found no 'box'"),
        (box_to_mask(), {"frame": frames(), "box": np.zeros((2, 4))}, r"shape \(3, 4\), found a box of shape \(2, 4\)"),
        (box_to_mask(), {"image": frames()}, "batch: expected the key 'frame', found "),
        (paired_flip(), {"frame": frames()}, r"batch: expected the key 'mask', found .*; apply box_to_mask\(\) first"),
        (paired_flip(), {"frame": frames(), "mask": planes(3, 5, 5)}, r"mask: expected shape \(3, 10, 12\)"),
        (
            paired_rotation(5),
            {"frame": frames(), "mask": planes(), "depth": planes(2)},
            r"depth: expected shape \(3, 10, 12\), that of the frame, found \(2, 10, 12\)",
        ),
        (colour_jitter(0.1), {"frame": frames()[..., :1]}, "frame: expected 3 channels"),
        (gaussian_noise(0.1), {"frame": frames()[0]}, "frame: expected shape"),
    ],
)
def test_batches_are_checked(key, transform, batch, message):
    with pytest.raises(ValueError, match=message):
        transform(key, batch)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (lambda: paired_rotation(-1), "degrees: expected a finite number >= 0"),
        (lambda: paired_rotation(float("nan")), "degrees"),
        (lambda: paired_rotation(5, order=3), r"order: expected 0 \(nearest\) or 1"),
        (lambda: paired_flip(1.5), "horizontal: expected a probability"),
        (lambda: paired_flip(0.5, -0.1), "vertical: expected a probability"),
        (lambda: colour_jitter(-0.1), "brightness: expected"),
        (lambda: colour_jitter(hue=0.6), r"hue: expected a shift in \[0, 0.5\] turns, found 0.6"),
        (lambda: gaussian_noise(-1), "std: expected"),
    ],
)
def test_arguments_are_checked_early(factory, message):
    with pytest.raises(ValueError, match=message):
        factory()
