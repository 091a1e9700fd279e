"""`python -m experiments.predict` on real image files: how they are read, their order, what is said of the rest."""

import csv
import json
import os
from contextlib import nullcontext
from pathlib import Path

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments import predict as command
from experiments.errors import run_main
from experiments.image_files import decode, find_images
from experiments.predict import Args, Network, load_network, predict
from fsg_jax.pretrained.artifacts import export_stablehlo
from fsg_jax.pretrained.preprocessing import Preprocessing

PLAIN = Preprocessing((0.0,) * 3, (1.0,) * 3, (8, 8), 1.0, "bilinear")
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


class Colour(nn.Module):
    """Logits are ten times the mean of each of the first `outputs` channels: the class of an image is its colour."""

    outputs: int = 3

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", lambda _: jnp.float32(10))
        return scale * x.mean((1, 2))[:, : self.outputs]


def exported(folder, model=None, preprocessing=PLAIN, variables=None):
    variables = variables or {"params": {"scale": jnp.float32(10)}}
    facts = {"preprocessing": preprocessing and preprocessing._asdict(), "weights": "colours"}
    export_stablehlo(folder, model or Colour(), variables, jnp.zeros((1, 8, 8, 3)), facts=facts)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return exported(tmp_path_factory.mktemp("colour"))


def save(path, colour=RED, size=(9, 12), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **options)
    return path


def run(*words, code=0):
    """The command, which exits with `code`."""
    with pytest.raises(SystemExit) if code else nullcontext() as found:
        run_main(lambda: command.main([str(word) for word in words]))
    assert code == (found.value.code if found else 0)


def rows(path):
    with Path(path).open() as file:
        return list(csv.DictReader(file))


def test_images_are_predicted_in_their_order(model, tmp_path, capsys):
    colours = [RED, GREEN, BLUE, GREEN, RED, BLUE, BLUE]
    for i, colour in enumerate(colours):
        save(tmp_path / "frames" / f"{i}.png", colour, size=(5 + i, 9))
    run(model, tmp_path / "frames", "--out", tmp_path / "a.csv", "--batch-size", 3, "--top", 2)
    found = rows(tmp_path / "a.csv")
    assert list(found[0]) == ["path", "class_1", "probability_1", "class_2", "probability_2", "error"]
    assert [Path(row["path"]).name for row in found] == [f"{i}.png" for i in range(7)]
    assert [int(row["class_1"]) for row in found] == [colour.index(255) for colour in colours]
    likely = np.exp(10) / (np.exp(10) + 2)
    np.testing.assert_allclose([float(row["probability_1"]) for row in found], likely, rtol=1e-5)
    out = capsys.readouterr()
    assert out.out == f"7 images, colours: {tmp_path / 'a.csv'}\n"
    assert "7/7" in out.err
    run(model, tmp_path / "frames", "--out", tmp_path / "b.csv", "--top", 2, "--workers", 1)
    assert rows(tmp_path / "b.csv") == found


def test_every_batch_has_one_shape_and_padding_stays_out(tmp_path):
    shapes, seen = set(), []

    def call(images):
        shapes.add(images.shape)
        seen.extend(images[:, 0, 0, 0].tolist())
        return images.mean((1, 2))

    paths = [save(tmp_path / f"{i}.png", (10 * (i + 1), 0, 0)) for i in range(5)]
    network = Network(call, PLAIN, (8, 8, 3), "test")
    found = predict(Args("", (), batch_size=2), network, find_images([str(path) for path in paths]))
    assert shapes == {(2, 8, 8, 3)}
    assert len(found) == 5
    np.testing.assert_allclose(np.array(seen) * 255, [10, 20, 30, 40, 50, 0], rtol=1e-5)
    predict(Args("", (), batch_size=64), network, find_images([str(paths[0])]))
    assert shapes == {(2, 8, 8, 3), (1, 8, 8, 3)}


def test_unreadable_images_are_listed_and_counted(model, tmp_path, capsys):
    frames = tmp_path / "frames"
    save(frames / "a.png", GREEN)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    noise.save(frames / "b.png")
    (frames / "b.png").write_bytes((frames / "b.png").read_bytes()[:3000])
    (frames / "c.jpg").write_text("no image")
    (frames / "d.png").write_bytes(b"")
    os.mkfifo(frames / "e.png")
    Image.new("F", (8, 8), 0.5).save(frames / "f.tif")
    save(frames / "g.png", BLUE)
    (frames / "notes.txt").write_text("no image either")
    run(model, frames, frames / "gone*", frames / "a.png", "--out", tmp_path / "p.csv", code=2)
    assert "gone*: expected an image, a folder or a pattern" in capsys.readouterr().err
    run(model, frames, "--out", tmp_path / "p.csv", code=1)
    found, err = rows(tmp_path / "p.csv"), capsys.readouterr().err
    assert [Path(row["path"]).name for row in found] == ["a.png", "b.png", "c.jpg", "d.png", "e.png", "f.tif", "g.png"]
    assert [row["class_1"] for row in found] == ["1", "", "", "", "", "", "2"]
    assert [bool(row["error"]) for row in found] == [False, True, True, True, True, True, False]
    assert "expected a regular file" in found[4]["error"]
    assert "values: expected integers from 0 to 65535" in found[5]["error"]
    assert "1 other files in the folders" in err
    assert "error: 5 of 7 images could not be read" in err
    run(model, frames, "--out", tmp_path / "p.json", code=1)
    told = json.loads((tmp_path / "p.json").read_text())
    assert (told["images"], told["unreadable"], told["weights"]) == (7, 5, "colours")
    assert told["predictions"][0]["classes"] == [1, 0, 2]
    assert told["predictions"][2].keys() == {"path", "error"}


def test_all_unreadable_still_writes_the_list(model, tmp_path):
    (tmp_path / "a.png").write_text("no image")
    run(model, tmp_path / "a.png", "--out", tmp_path / "p.csv", code=1)
    (row,) = rows(tmp_path / "p.csv")
    assert row.keys() == {"path", "error"}


def test_files_folders_and_patterns(tmp_path):
    for name in ("b/2.png", "b/1.JPG", "b/deep/3.webp", "b/.hidden/4.png", "b/._5.png", "a.png", "c10.png", "c9.png"):
        save(tmp_path / name, format="PNG")
    (tmp_path / "b" / "Thumbs.db").write_text("")
    (tmp_path / "b" / "readme.md").write_text("")
    odd = save(tmp_path / "no_suffix", format="PNG")
    words = [tmp_path / "c*.png", tmp_path / "b", odd, tmp_path / "b" / "2.png", tmp_path / "**" / "*.png"]
    found = find_images(list(map(str, words)))
    names = [str(path.relative_to(tmp_path)) for path in found.images]
    assert names == ["c10.png", "c9.png", "b/1.JPG", "b/2.png", "b/deep/3.webp", "no_suffix", "a.png"]
    assert found.others == 1
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "a.txt").write_text("")
    with pytest.raises(Exception, match="expected images, found 1 other files"):
        find_images([str(tmp_path / "only")])


def test_a_name_with_a_bracket_is_a_file(tmp_path):
    path = save(tmp_path / "frame[1].png")
    assert find_images([str(path)]).images == [path]


def test_a_name_that_is_no_unicode(model, tmp_path):
    save(tmp_path / "a.png")
    os.rename(tmp_path / "a.png", os.fsencode(tmp_path) + b"/\xff.png")
    run(model, tmp_path, "--out", tmp_path / "p.csv")
    assert rows(tmp_path / "p.csv")[0]["path"].endswith("\\udcff.png")


def pixels(path, channels=3):
    image = decode(path, channels)
    assert image.mode == ("RGB" if channels == 3 else "L")
    return np.asarray(image)


def test_orientation(tmp_path):
    values = np.zeros((2, 3, 3), np.uint8)
    values[0, 0] = RED
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    Image.fromarray(values).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(pixels(tmp_path / "a.png"), np.rot90(values, -1))


@pytest.mark.parametrize(
    ("mode", "colour", "name", "rgb"),
    [
        ("L", 80, "a.png", (80, 80, 80)),
        ("1", 1, "a.png", (255, 255, 255)),
        ("RGBA", (*RED, 255), "a.png", RED),
        ("RGBA", (*RED, 0), "a.png", (255, 255, 255)),
        ("RGBA", (0, 0, 0, 51), "a.png", (204, 204, 204)),
        ("LA", (10, 255), "a.png", (10, 10, 10)),
        ("CMYK", (0, 255, 255, 0), "a.tif", RED),
        ("YCbCr", (76, 85, 255), "a.tif", (254, 0, 0)),
        ("I;16", 257 * 70, "a.png", (70, 70, 70)),
        ("I;16", 65535, "a.tif", (255, 255, 255)),
        ("I", 257 * 70, "a.tif", (70, 70, 70)),
    ],
)
def test_modes(tmp_path, mode, colour, name, rgb):
    Image.new(mode, (3, 2), colour).save(tmp_path / name)
    assert {tuple(pixel) for pixel in pixels(tmp_path / name).reshape(-1, 3).tolist()} == {rgb}


def test_a_palette_with_transparency(tmp_path):
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, *GREEN, *BLUE])
    image.putpixel((0, 0), 2)
    image.save(tmp_path / "a.png", transparency=1)
    found = pixels(tmp_path / "a.png")
    assert found[0, 0].tolist() == list(BLUE)
    assert found[1, 1].tolist() == [255, 255, 255]


def test_one_channel_is_grey(tmp_path):
    assert (pixels(save(tmp_path / "a.png", GREEN), channels=1) == 150).all()


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_an_animation_is_its_first_frame(tmp_path, suffix):
    frames = [Image.new("RGB", (4, 4), colour) for colour in (GREEN, RED)]
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], **options)
    assert pixels(tmp_path / f"a.{suffix}")[2, 2].tolist() == list(GREEN)


def test_integers_beyond_16_bits_are_refused(tmp_path):
    Image.new("I", (3, 2), 70_000).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match="expected integers from 0 to 65535, found int32 from 70000"):
        decode(tmp_path / "a.tif", 3)


def test_a_regression_gives_values(tmp_path):
    folder = exported(tmp_path / "model", Colour(outputs=1))
    save(tmp_path / "a.png", (51, 0, 0))
    run(folder, tmp_path / "a.png", "--out", tmp_path / "p.csv")
    (row,) = rows(tmp_path / "p.csv")
    assert row.keys() == {"path", "value", "error"}
    assert float(row["value"]) == pytest.approx(2)


def test_what_is_not_finite_is_no_prediction(tmp_path, capsys):
    huge = Preprocessing((0.0,) * 3, (1e-38,) * 3, (8, 8), 1.0, "bilinear")
    folder = exported(tmp_path / "model", preprocessing=huge)
    save(tmp_path / "a.png")
    (tmp_path / "p.csv").write_text("old")
    run(folder, tmp_path / "a.png", "--out", tmp_path / "p.csv", code=3)
    assert "a.png: expected finite outputs" in capsys.readouterr().err
    assert (tmp_path / "p.csv").read_text() == "old"
    assert not list(tmp_path.glob("*.tmp"))


def test_what_cannot_be_used_is_an_error_line(model, tmp_path, capsys):
    image = save(tmp_path / "a.png")
    streams = tmp_path / "streams"
    export_stablehlo(streams, Streams(), {"params": {}}, {"a": jnp.zeros((1, 8, 8, 3)), "b": jnp.zeros((1, 8, 8, 1))})
    bare = exported(tmp_path / "bare", preprocessing=None)
    other = exported(tmp_path / "other", preprocessing=PLAIN.resized(4))
    for words, message in (
        ((model, image, "--out", tmp_path / "p.txt"), "--out: expected a file that ends in .csv or .json"),
        ((model, image, "--batch-size", "0"), "--batch-size: expected an integer >= 1"),
        ((model, tmp_path / "none.png"), "none.png: expected an image, a folder or a pattern"),
        ((streams, image), "expected a model of one image with its preprocessing, found inputs"),
        ((bare, image), "expected a model of one image with its preprocessing"),
        ((other, image), "expected preprocessing that gives its input, (8, 8, 3), found (4, 4, 3)"),
        ((tmp_path / "model.stablehlo", image), "model.stablehlo: expected model.stablehlo or model.onnx"),
        ((model, "--out", tmp_path / "p.csv"), "IMAGES: expected one or more, found none"),
    ):
        run(*words, code=2)
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert message in error
    assert not (tmp_path / "p.csv").exists()


class Streams(nn.Module):
    """Two inputs."""

    @nn.compact
    def __call__(self, x):
        return x["a"].mean((1, 2)) + x["b"].mean((1, 2))


def test_the_network_of_an_artifact(model):
    network = load_network(str(model / "model.stablehlo"))
    assert (network.preprocessing, network.shape, network.origin) == (PLAIN, (8, 8, 3), "colours")
