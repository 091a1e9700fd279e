"""Examples read from frames on disk."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import grain
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fsg_jax.endoscopy.frames.decode import place_box, place_frame
from fsg_jax.endoscopy.frames.source import FrameError, FrameSource
from fsg_jax.endoscopy.index.schema import from_rows
from tests.polyp_frames import COLOUR, draw, make_set, row


def one_frame(root, shape, boxes, name="a.png", **save):
    draw(root / name, shape, boxes, **save)
    return from_rows([row(name, shape, box) for box in boxes]), {"made-up": root}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value)


def shares(example, frame_shape, size, keep_aspect):
    """How much of `COLOUR` every pixel has, which pixels are of the frame, and which are near the box."""
    share = (example["frame"][..., 0].astype(float) - 30) / (COLOUR[0] - 30)
    placement = place_frame(*frame_shape, size, keep_aspect=keep_aspect)
    of_frame, near_box = np.zeros((2, size, size), bool)
    rows, columns = slice(placement.top, placement.top + placement.height), slice(placement.left, None)
    of_frame[rows, columns][:, : placement.width] = True
    xmin, ymin, xmax, ymax = example["box"].astype(int)
    near_box[max(0, ymin - 2) : ymax + 3, max(0, xmin - 2) : xmax + 3] = True
    return share, of_frame, near_box


@pytest.mark.parametrize("keep_aspect", [False, True])
@pytest.mark.parametrize("shape", [(160, 96), (96, 160), (128, 128), (37, 200)])
@pytest.mark.parametrize(
    ("name", "save", "tolerance"), [("a.png", {}, 3), ("a.jpg", {"quality": 98, "subsampling": 0}, 12)]
)
def test_a_rectangle_drawn_at_the_box_lands_at_the_examples_box(tmp_path, shape, keep_aspect, name, save, tolerance):
    box = (shape[0] // 4, shape[1] // 8, shape[0] * 3 // 4, shape[1] // 2)
    table, roots = one_frame(tmp_path, shape, [box], name, **save)
    example = FrameSource(table, roots, 64, keep_aspect=keep_aspect)[0]
    xmin, ymin, xmax, ymax = example["box"]
    inner = example["frame"][int(ymin) + 3 : int(ymax) - 2, int(xmin) + 3 : int(xmax) - 2].astype(int)
    assert inner.size > 0
    assert np.abs(inner - COLOUR).max() <= tolerance
    share, of_frame, near_box = shares(example, shape, 64, keep_aspect)
    assert np.abs(share[of_frame & ~near_box]).max() < 0.1
    assert share[of_frame].sum() == pytest.approx((xmax - xmin) * (ymax - ymin), rel=0.03)
    assert not example["frame"][~of_frame].any()
    assert of_frame.all() == (not keep_aspect or shape == (128, 128))


def test_the_centre_of_mass_of_a_jpeg_decoded_at_a_smaller_scale(tmp_path):
    shape, box = (1001, 803), (301, 203, 611, 555)  # decoded at a quarter of the scale: 251 x 201, rounded up
    table, roots = one_frame(tmp_path, shape, [box], "a.jpg", quality=95, subsampling=0)
    example = FrameSource(table, roots, 128)[0]
    share = np.clip((example["frame"][..., 0].astype(float) - 30) / 170, 0, 1)
    rows, columns = np.mgrid[:128, :128] + 0.5
    centre = (share * columns).sum() / share.sum(), (share * rows).sum() / share.sum()
    xmin, ymin, xmax, ymax = example["box"]
    np.testing.assert_allclose(centre, [(xmin + xmax) / 2, (ymin + ymax) / 2], atol=0.05)


def test_reduction_is_antialiased(tmp_path):
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "a.png")
    source = FrameSource(from_rows([row("a.png", (256, 256), (0, 0, 9, 9))]), {"made-up": tmp_path}, 32)
    assert np.abs(source[0]["frame"].astype(int) - 127).max() <= 6  # at the edges; without a filter it is 127


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 2000), st.integers(1, 2000), st.integers(1, 512))
def test_a_placement_keeps_the_aspect_and_lies_inside(width, height, size):
    placement = place_frame(width, height, size, keep_aspect=True)
    assert max(placement.width, placement.height) == size
    scale = size / max(width, height)
    assert abs(placement.width - width * scale) <= max(0.5, 1 - width * scale)
    assert abs(placement.height - height * scale) <= max(0.5, 1 - height * scale)
    assert abs(2 * placement.left + placement.width - size) <= 1
    whole = place_box(np.array([0, 0, width, height]), (width, height), placement)
    right, bottom = placement.left + placement.width, placement.top + placement.height
    np.testing.assert_allclose(whole, [placement.left, placement.top, right, bottom], rtol=1e-6)


def test_what_an_example_holds(tmp_path):
    table, roots = make_set(tmp_path, depth_root=tmp_path / "depth")
    source = FrameSource(table, roots, 32, depth_root=tmp_path / "depth")
    assert len(source) == 3
    example = source[np.int64(2)]
    assert list(example) == ["frame", "box", "depth", "size_mm", "histology", "site", "row"]
    assert [(v.dtype, v.shape) for v in example.values()] == [
        (np.uint8, (32, 32, 3)),
        (np.float32, (4,)),
        (np.float32, (32, 32)),
        (np.float32, ()),
        (np.int32, ()),
        (np.int32, ()),
        (np.int64, ()),
    ]
    assert example["size_mm"] == np.float32(4.5)
    assert example["row"] == 2
    assert "depth" not in FrameSource(table, roots, 32)[0]
    for index in (3, -1):
        with pytest.raises(IndexError, match=f"row: expected 0 to 2, found {index}"):
            source[index]


def test_two_polyps_in_one_frame_share_it_and_differ_in_box(tmp_path):
    table, roots = one_frame(tmp_path, (80, 60), [(4, 4, 20, 20), (40, 30, 80, 60)])
    source = FrameSource(table, roots, 40)
    np.testing.assert_array_equal(source[0]["frame"], source[1]["frame"])
    np.testing.assert_allclose(source[0]["box"], np.array([2, 4 * 2 / 3, 10, 20 * 2 / 3], np.float32))
    np.testing.assert_allclose(source[1]["box"], [20, 20, 40, 40])


def test_unicode_paths_of_two_datasets(tmp_path):
    names = {"Ä": "Fälle/例 1/rámec_1.png", "b": "x y/é.png"}
    for dataset, name in names.items():
        draw(tmp_path / dataset / name, (20, 20), [(5, 5, 15, 15)])
    rows = [row(name, (20, 20), (5, 5, 15, 15), dataset=dataset) for dataset, name in names.items()]
    source = FrameSource(from_rows(rows), {d: tmp_path / d for d in names}, 20)
    for index, (dataset, name) in enumerate(names.items()):
        assert source.frame_path(index) == tmp_path / dataset / name
        assert tuple(source[index]["frame"][10, 10]) == COLOUR


def test_a_pickled_source_is_small_and_gives_the_same(tmp_path):
    table, roots = make_set(tmp_path)
    source = FrameSource(from_rows(table.to_pylist() * 1000), roots, 32, keep_aspect=True)
    pickled = pickle.dumps(source)
    assert len(pickled) < 3000 * 100
    assert b"pyarrow" not in pickled
    assert_equal(pickle.loads(pickled)[1], source[1])


def test_threads_and_grain_read_the_same(tmp_path):
    table, roots = make_set(tmp_path)
    source = FrameSource(table, roots, 32)
    with ThreadPoolExecutor(4) as pool:
        for index, example in zip([0, 1, 2] * 8, pool.map(source.__getitem__, [0, 1, 2] * 8), strict=True):
            assert_equal(example, source[index])
    batch = grain.MapDataset.source(source).batch(3)[0]
    np.testing.assert_array_equal(batch["frame"], np.stack([source[i]["frame"] for i in range(3)]))
    np.testing.assert_array_equal(batch["row"], [0, 1, 2])
    assert batch["size_mm"].dtype == np.float32


def test_no_size_is_nan(tmp_path):
    draw(tmp_path / "a.png", (8, 8), [])
    source = FrameSource(from_rows([row("a.png", (8, 8), (0, 0, 4, 4), size_mm=None)]), {"made-up": tmp_path}, 8)
    assert np.isnan(source[0]["size_mm"])


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_other_colour_modes_become_rgb(tmp_path, mode):
    name = "a.jpg" if mode == "CMYK" else "a.png"
    Image.new("RGB", (32, 32), (255, 255, 255)).convert(mode).save(tmp_path / name)
    source = FrameSource(from_rows([row(name, (32, 32), (0, 0, 9, 9))]), {"made-up": tmp_path}, 16)
    assert source[0]["frame"].min() >= 250


def test_exif_orientation_is_not_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    table, roots = one_frame(tmp_path, (80, 40), [(0, 0, 40, 40)], "a.jpg", quality=98, exif=exif)
    frame = FrameSource(table, roots, 40)[0]["frame"].astype(int)
    assert np.abs(frame[:, :17] - COLOUR).max() < 12
    assert np.abs(frame[:, 23:] - (30, 60, 120)).max() < 12


def test_mask_of_a_row(tmp_path):
    draw(tmp_path / "a.png", (80, 40), [])
    mask = np.zeros((40, 80), np.uint8)
    mask[10:30, 20:60] = 255
    Image.fromarray(mask).save(tmp_path / "m.png")
    rows = [row("a.png", (80, 40), (20, 10, 60, 30), mask_path=name) for name in ("m.png", None)]
    source = FrameSource(from_rows(rows), {"made-up": tmp_path}, 40, keep_aspect=True)
    loaded = source.load_mask(0)
    assert loaded.dtype == np.float32
    assert loaded.sum() == pytest.approx(20 * 10, rel=1e-3)
    np.testing.assert_array_equal(loaded[16:24, 11:29], 1)
    assert not loaded[:14].any()
    with pytest.raises(FrameError, match="expected a mask_path in the index, found none for row 1"):
        source.load_mask(1)


def _truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BROKEN = {
    "missing": (lambda path: path.unlink(), "no such file"),
    "empty": (lambda path: path.write_bytes(b""), "cannot be decoded"),
    "text": (lambda path: path.write_text("no image"), "cannot be decoded"),
    "truncated": (_truncate, "cannot be decoded .*truncated"),
    "other size": (lambda path: draw(path, (48, 64), []), "expected 64x48 pixels as in the index, found 48x64"),
    "16 bits": (lambda path: Image.new("I;16", (64, 48)).save(path, format="PNG"), "pixels of mode I;16"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_frame_is_named_with_what_was_found(tmp_path, kind):
    table, roots = make_set(tmp_path)
    damage, message = BROKEN[kind]
    source = FrameSource(table, roots, 32)
    path = source.frame_path(2)
    damage(path)
    with pytest.raises(FrameError, match=f"frame_2.jpg: .*{message}.*index again") as caught:
        source[2]
    assert str(path) in str(caught.value)
    assert source[0]["frame"].shape == (32, 32, 3)


def test_bad_arguments(tmp_path):
    table, roots = make_set(tmp_path)
    with pytest.raises(ValueError, match="size: expected an integer >= 1, found 0"):
        FrameSource(table, roots, 0)
    with pytest.raises(ValueError, match=r"found none for \['made-up'\]"):
        FrameSource(table, {"other": tmp_path}, 32)
