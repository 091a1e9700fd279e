"""Depth maps: files, geometry, what is missing, and the command that makes them."""

import json

import numpy as np
import pytest
from PIL import Image

from fsg_jax.endoscopy.frames.decode import place_frame
from fsg_jax.endoscopy.frames.depth_maps import (
    DepthInfo,
    check_depth,
    depth_path,
    missing_depth,
    read_depth,
    read_depth_info,
    write_depth,
    write_depth_info,
)
from fsg_jax.endoscopy.frames.source import FrameError, FrameSource
from fsg_jax.endoscopy.index.schema import from_rows
from tests.polyp_frames import draw, make_set, row

SQUARE = place_frame(32, 32, 32)


def test_the_path_of_a_map(tmp_path):
    assert depth_path(tmp_path, "SUN", "case 1/é.1.jpg") == tmp_path / "SUN/case 1/é.1.png"
    for bad in ("/etc/a.jpg", "../a.jpg", "a/../../b.jpg"):
        with pytest.raises(ValueError, match="expected a path inside the folder of dataset 'SUN'"):
            depth_path(tmp_path, "SUN", bad)


def test_a_map_is_min_max_scaled_to_16_bits(tmp_path):
    depth = np.linspace(-3, 7, 32 * 32).reshape(32, 32)
    write_depth(tmp_path / "a/b.png", depth)
    with Image.open(tmp_path / "a/b.png") as image:
        assert (image.mode, image.size) == ("I;16", (32, 32))
    found = read_depth(tmp_path / "a/b.png", SQUARE)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, (depth + 3) / 10 * 65535, atol=0.51)
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b.png"]


def test_a_constant_map_and_one_that_is_not_finite(tmp_path):
    write_depth(tmp_path / "a.png", np.full((4, 4), 2.5, np.float32))
    assert not read_depth(tmp_path / "a.png", SQUARE).any()
    with pytest.raises(ValueError, match=r"b\.png: expected a finite depth map"):
        write_depth(tmp_path / "b.png", np.array([[1.0, np.nan]]))
    assert not (tmp_path / "b.png").exists()


@pytest.mark.parametrize("keep_aspect", [False, True])
@pytest.mark.parametrize("reduction", [1, 2, 4])
def test_a_map_of_any_resolution_lands_where_the_frame_does(tmp_path, keep_aspect, reduction):
    shape, box = (192, 96), (48, 16, 128, 64)
    draw(tmp_path / "a.png", shape, [box])
    depth = np.zeros((shape[1] // reduction, shape[0] // reduction))
    xmin, ymin, xmax, ymax = (edge // reduction for edge in box)
    depth[ymin:ymax, xmin:xmax] = 1
    write_depth(depth_path(tmp_path / "depth", "made-up", "a.png"), depth)
    table = from_rows([row("a.png", shape, box)])
    example = FrameSource(table, {"made-up": tmp_path}, 64, keep_aspect=keep_aspect, depth_root=tmp_path / "depth")[0]
    share = (example["frame"][..., 0].astype(float) - 30) / 170
    values = example["depth"] / 65535
    assert (values >= 0).all()
    inside = slice(16, 48) if keep_aspect else slice(None)
    rows, columns = np.mgrid[:64, :64] + 0.5
    for axis in (rows, columns):
        centre = [(m * axis)[inside].sum() / m[inside].sum() for m in (share, values)]
        assert centre[0] == pytest.approx(centre[1], abs=0.1)
    assert values[inside].sum() == pytest.approx(share[inside].sum(), rel=0.02)


def test_the_padding_of_a_map_repeats_its_edge(tmp_path):
    write_depth(tmp_path / "a.png", np.linspace(5, 6, 20)[:, None] * np.ones((20, 40)))
    found = read_depth(tmp_path / "a.png", place_frame(40, 20, 40, keep_aspect=True))
    np.testing.assert_array_equal(found[:10], np.broadcast_to(found[10], (10, 40)))
    np.testing.assert_array_equal(found[30:], np.broadcast_to(found[29], (10, 40)))
    assert found[10].max() < 1 / 19 * 65535
    assert found[29].min() > 18 / 19 * 65535


@pytest.mark.parametrize("mode", ["L", "I;16"])
def test_maps_from_elsewhere(tmp_path, mode):
    Image.new(mode, (8, 8), 200).save(tmp_path / "a.png")
    np.testing.assert_allclose(read_depth(tmp_path / "a.png", SQUARE), 200)


def test_broken_maps_are_named(tmp_path):
    table, roots = make_set(tmp_path, depth_root=tmp_path / "depth")
    source = FrameSource(table, roots, 32, depth_root=tmp_path / "depth")
    path = source.depth_path(1)
    Image.new("RGB", (8, 8)).save(path)
    with pytest.raises(FrameError, match=r"frame_1\.png: expected a 16-bit greyscale PNG, found pixels of mode RGB"):
        source[1]
    path.write_bytes(source.depth_path(0).read_bytes()[:200])
    with pytest.raises(FrameError, match=r"frame_1\.png: expected an image, found one that cannot be decoded"):
        source[1]
    path.unlink()
    with pytest.raises(FrameError, match=r"frame_1\.png: no such file; .* depth command"):
        source[1]
    assert source[0]["depth"].shape == (32, 32)


def test_missing_maps_are_counted_each_once_in_the_order_of_the_rows(tmp_path):
    table, _ = make_set(tmp_path, depth_root=tmp_path / "depth")
    table = from_rows(table.to_pylist() * 2)  # two polyps in every frame
    assert missing_depth(table, tmp_path / "depth") == []
    assert check_depth(table, tmp_path / "depth") == DepthInfo("noise", "nearer", synthetic=True)
    gone = [depth_path(tmp_path / "depth", "made-up", f"case1/frame_{number}.jpg") for number in (0, 2)]
    for path in gone:
        path.unlink()
    assert missing_depth(table, tmp_path / "depth") == gone
    with pytest.raises(FileNotFoundError, match=r"2 depth maps are missing, the first: .*frame_0\.png, .*frame_2\.png"):
        check_depth(table, tmp_path / "depth")
    assert len(missing_depth(table, tmp_path / "none")) == 3


def test_depth_json(tmp_path):
    info = DepthInfo("some/model", "farther", revision="abc")
    write_depth_info(tmp_path / "d", info)
    assert read_depth_info(tmp_path / "d") == info
    assert json.loads((tmp_path / "d/depth.json").read_text())["larger_is"] == "farther"
    with pytest.raises(FileNotFoundError, match=r"depth\.json: no such file; expected"):
        read_depth_info(tmp_path)
    for text in ("{", "[]", "{}", '{"model": "m"}', '{"model": "m", "larger_is": "bigger"}'):
        (tmp_path / "d/depth.json").write_text(text)
        with pytest.raises(ValueError, match=r"depth\.json.*: expected"):
            read_depth_info(tmp_path / "d")
    (tmp_path / "d/depth.json").write_text('{"model": "m", "larger_is": "nearer", "unit": "mm"}')
    assert read_depth_info(tmp_path / "d") == DepthInfo("m", "nearer")
