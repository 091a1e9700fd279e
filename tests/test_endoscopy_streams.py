"""The inputs of the multi-stream models: golden numbers of the reference, a crop in double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsg_jax.augment import chain
from fsg_jax.endoscopy import ENDOSCOPY_MEAN, ENDOSCOPY_STD, box_to_mask, make_streams
from fsg_jax.endoscopy.transforms import crop_resize, disc, expanded_box

ALL = ("rgb", "mask", "depth")
crop_of_size = jax.jit(crop_resize, static_argnums=3)


def box_mask(rows, columns, size=384):
    mask = np.zeros((1, size, size), np.float32)
    mask[0, rows[0] : rows[1] + 1, columns[0] : columns[1] + 1] = 1
    return mask


def make_batch(count=2, size=20, seed=0):
    generator = np.random.default_rng(seed)
    mask = np.zeros((count, size, size), np.float32)
    mask[:, 6:11, 4:13] = 1
    return {
        "frame": generator.integers(0, 256, (count, size, size, 3)).astype(np.uint8),
        "mask": mask,
        "depth": generator.uniform(5, 50, (count, size, size)).astype(np.float32),
        "box": np.zeros((count, 4), np.float32),
        "size_mm": np.arange(count, dtype=np.float32),
    }


def normalised(batch, circle=1.0):
    x = (batch["frame"] / 255 - np.array(ENDOSCOPY_MEAN)) / np.array(ENDOSCOPY_STD)
    return x if circle is None else x * disc(*x.shape[1:3], circle)[None, :, :, None]


def interpolated(image, rows, columns, size):
    """Crop, then bilinear with the corners aligned, point by point in double precision."""
    crop = np.asarray(image, np.float64)[rows[0] : rows[1] + 1, columns[0] : columns[1] + 1]

    def along(crop):
        place = np.linspace(0, len(crop) - 1, size) if size > 1 else np.zeros(1)
        low = np.minimum(np.floor(place).astype(int), len(crop) - 1)
        high = np.minimum(low + 1, len(crop) - 1)
        share = (place - low).reshape(-1, 1, 1)
        return (1 - share) * crop[low] + share * crop[high]

    return np.swapaxes(along(np.swapaxes(along(crop), 0, 1)), 0, 1)


@pytest.mark.parametrize(("circle", "pixels"), [(1.0, 115_164), (0.9, 93_280)])
def test_pixels_in_the_disc(key, circle, pixels):
    assert disc(384, 384, circle).sum() == pixels
    batch = {"frame": np.zeros((1, 384, 384, 3), np.uint8), "mask": np.ones((1, 384, 384), np.float32)}
    image = np.asarray(jax.jit(make_streams(("mask",), 384, circle=circle))(key, batch)["image"]["mask"])
    assert (image != 0).all(-1).sum() == (image != 0).any(-1).sum() == pixels
    np.testing.assert_allclose(image[0, 192, 192], [-1.0144, -0.9407, -0.9055], atol=5e-5)


@pytest.mark.parametrize(
    ("rows", "columns", "expand", "expected"),
    [
        ((100, 199), (50, 99), 0.5, ((51, 248), (26, 123))),
        ((100, 199), (50, 99), 0.2, ((81, 218), (41, 108))),
        ((0, 10), (300, 383), 0.5, ((0, 15), (259, 383))),
        ((7, 7), (9, 9), 0.5, ((7, 7), (9, 9))),
        ((0, 383), (0, 383), 0.5, ((0, 383), (0, 383))),
    ],
)
def test_expanded_boxes(rows, columns, expand, expected):
    found = expanded_box(jnp.asarray(box_mask(rows, columns)), expand)
    assert tuple(tuple(int(end[0]) for end in ends) for ends in found) == expected


@settings(max_examples=25, deadline=None)
@given(
    ends=st.lists(st.tuples(*[st.integers(0, 29)] * 2).map(sorted), min_size=2, max_size=2),
    expand=st.sampled_from([0.0, 0.1, 0.2, 0.29, 0.3, 0.5, 1.0, 3.0]),
)
def test_expanded_box_follows_its_definition(ends, expand):
    found = expanded_box(jnp.asarray(box_mask(*ends, size=30) * 1e-3), expand)
    for (first, last), (start, stop) in zip(ends, found, strict=True):
        pad = int(expand * (last - first))
        assert (int(start[0]), int(stop[0])) == (max(first - pad, 0), min(last + pad, 29))


@settings(max_examples=25, deadline=None)
@given(ends=st.lists(st.tuples(*[st.integers(0, 29)] * 2).map(sorted), min_size=2, max_size=2))
def test_kept_aspect_is_a_square_in_the_frame_around_the_crop(ends):
    mask = jnp.asarray(box_mask(*ends, size=30))
    plain, square = expanded_box(mask, 0.5), expanded_box(mask, 0.5, keep_aspect=True)
    extents = [int(stop[0] - start[0]) for start, stop in square]
    assert extents[0] == extents[1] == max(int(stop[0] - start[0]) for start, stop in plain)
    for (start, stop), (first, last) in zip(square, plain, strict=True):
        assert 0 <= int(start[0]) <= int(first[0])
        assert int(last[0]) <= int(stop[0]) <= 29


def test_kept_aspect_of_a_frame_that_is_too_narrow(key):
    """The square leaves the frame: there it is the mean colour, and a square pixel stays square."""
    batch = {"frame": np.full((1, 8, 20, 3), 200, np.uint8), "mask": np.ones((1, 8, 20), np.float32)}
    make = jax.jit(make_streams(("rgb",), 20, circle=None, keep_aspect=True))
    rgb = np.asarray(make(key, batch)["image"]["rgb"][0, :, :, 0])
    assert ((rgb != 0).any(1).sum(), (rgb != 0).any(0).sum()) == (8, 20)
    np.testing.assert_allclose(rgb[rgb != 0], (200 / 255 - ENDOSCOPY_MEAN[0]) / ENDOSCOPY_STD[0], rtol=1e-4)


@settings(max_examples=20, deadline=None)
@given(
    ends=st.lists(st.tuples(*[st.integers(0, 15)] * 2).map(sorted), min_size=2, max_size=2),
    size=st.sampled_from([16, 25]),
)
def test_crop_agrees_with_double_precision(ends, size):
    image = np.random.default_rng(0).normal(size=(1, 16, 16, 3)).astype(np.float32)
    rows, columns = ((jnp.asarray([first]), jnp.asarray([last])) for first, last in ends)
    found = crop_of_size(jnp.asarray(image), rows, columns, size)
    np.testing.assert_allclose(found[0], interpolated(image[0], *ends, size), atol=1e-5)


@pytest.mark.parity
@pytest.mark.parametrize("size", [16, 31])
def test_crop_agrees_with_pytorch(size):
    torch = pytest.importorskip("torch")
    image = np.random.default_rng(0).normal(size=(1, 16, 16, 2)).astype(np.float32)
    crop = torch.from_numpy(np.moveaxis(image, -1, 1)[:, :, 3:13, 5:8].copy())
    expected = torch.nn.functional.interpolate(crop, (size, size), mode="bilinear", align_corners=True)
    rows, columns = (jnp.asarray([3]), jnp.asarray([12])), (jnp.asarray([5]), jnp.asarray([7]))
    found = crop_resize(jnp.asarray(image), rows, columns, size)
    np.testing.assert_allclose(found, np.moveaxis(expected.numpy(), 1, -1), atol=1e-5)


def test_a_shrunk_crop_does_not_alias():
    stripes = np.tile(np.array([0.0, 1.0], np.float32), 32).reshape(1, 1, 64, 1).repeat(64, 1)
    ends = (jnp.asarray([0]), jnp.asarray([63]))
    small = np.asarray(crop_resize(jnp.asarray(stripes), ends, ends, 9))[0, :, 1:-1, 0]
    np.testing.assert_allclose(small, 0.5, atol=0.03)
    constant = crop_resize(jnp.ones((1, 64, 64, 1)), ends, ends, 9)
    np.testing.assert_allclose(constant, 1, rtol=1e-5)


def test_streams_follow_their_definitions(key):
    batch = make_batch()
    out = jax.jit(make_streams(ALL, 20))(key, batch)
    assert set(out) == {"image", "size_mm"}
    assert {name: image.shape for name, image in out["image"].items()} == {
        "rgb": (2, 20, 20, 3),
        "mask": (2, 20, 20, 3),
        "depth": (2, 20, 20, 1),
    }
    assert {image.dtype for image in out["image"].values()} == {jnp.dtype("float32")}
    x, box = normalised(batch), ((4, 12), (0, 16))
    np.testing.assert_allclose(out["image"]["mask"], x * batch["mask"][..., None], atol=1e-5)
    for i in range(2):
        np.testing.assert_allclose(out["image"]["rgb"][i], interpolated(x[i], *box, 20), atol=1e-5)
        depth = interpolated(batch["depth"][i][..., None], *box, 20) * disc(20, 20, 1.0)[..., None]
        assert depth.min() == 0
        np.testing.assert_allclose(out["image"]["depth"][i], depth / depth.max(), atol=1e-5)


def test_without_a_circle_the_depth_fills_its_range(key):
    def run(depth):
        return np.asarray(make(key, {**batch, "depth": depth})["image"]["depth"])

    batch = make_batch()
    make = jax.jit(make_streams(("depth",), 12, circle=None))
    depth = run(batch["depth"])
    np.testing.assert_allclose(depth.min((1, 2, 3)), 0, atol=1e-6)
    np.testing.assert_allclose(depth.max((1, 2, 3)), 1, rtol=1e-6)
    np.testing.assert_allclose(run(3 * batch["depth"] + 2), depth, atol=1e-5)
    np.testing.assert_allclose(run(np.ones_like(batch["depth"])), 0, atol=0.05)


@pytest.mark.parametrize("size", [9, 20, 31])
def test_frames_of_another_size(key, size):
    out = jax.jit(make_streams(ALL, size, keep_aspect=True))(key, make_batch())["image"]
    assert {image.shape[1:3] for image in out.values()} == {(size, size)}
    assert all(np.all(np.isfinite(image)) for image in out.values())
    assert float(jnp.abs(out["mask"]).max()) > 0


def test_an_empty_mask_gives_zeros(key):
    batch = make_batch()
    batch["mask"][0] = 0
    for keep_aspect in (False, True):
        out = jax.jit(make_streams(ALL, 16, keep_aspect=keep_aspect))(key, batch)["image"]
        for image in out.values():
            np.testing.assert_array_equal(image[0], jnp.zeros_like(image[0]))
            assert float(jnp.abs(image[1]).max()) > 0


@pytest.mark.parametrize("streams", [("rgb",), ("mask",), ("depth", "rgb")])
def test_a_subset_holds_the_same_images(key, streams):
    batch = make_batch()
    whole = jax.jit(make_streams(ALL, 10))(key, batch)["image"]
    if "depth" not in streams:
        del batch["depth"]
    part = jax.jit(make_streams(streams, 10))(key, batch)["image"]
    assert set(part) == set(streams)
    for name, image in part.items():
        np.testing.assert_allclose(image, whole[name], atol=1e-6)


def test_the_chain_from_a_box(key):
    batch = make_batch()
    del batch["mask"]
    batch["box"] = np.tile(np.array([[4, 6, 13, 11]], np.float32), (2, 1))
    out = jax.jit(chain(box_to_mask(), make_streams(("rgb", "mask"), 20)))(key, batch)["image"]
    expected = jax.jit(make_streams(("rgb", "mask"), 20))(key, make_batch())["image"]
    for name, image in out.items():
        np.testing.assert_allclose(image, expected[name], atol=1e-5)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("frame", "expected the key 'frame'"),
        ("mask", "key 'mask'.*; apply box_to_mask"),
        ("depth", "expected the key 'depth'"),
    ],
)
def test_batches_are_checked(key, missing, message):
    batch = make_batch()
    del batch[missing]
    with pytest.raises(ValueError, match=message):
        make_streams(ALL, 8)(key, batch)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"streams": ()}, "streams: expected one or more of rgb, mask, depth"),
        ({"streams": ("loc",)}, "streams: expected one or more"),
        ({"size": 0}, "size: expected an integer >= 1, found 0"),
        ({"expand": -0.5}, "expand: expected a finite number >= 0"),
        ({"circle": 0.0}, "circle: expected a finite number > 0"),
        ({"std": 0.0}, "normalize: expected finite mean and finite std > 0"),
    ],
)
def test_arguments_are_checked_early(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_streams(**{"streams": ALL, "size": 8, **kwargs})
