"""`python -m experiments.attention`: numbers, a picture and a page of saved networks, and what it refuses."""

import base64
import io
import json
import re
from contextlib import nullcontext

import jax
import numpy as np
import pytest
import reduced
import tiny
from cases import fast
from PIL import Image

import fsg_jax as fsg
from experiments import attention as command
from experiments.attention import choose_levels
from experiments.attention_pictures import overlay
from experiments.errors import run_main
from fsg_jax import explain
from fsg_jax.pretrained.preprocessing import Preprocessing

PREPROCESSING = Preprocessing((0.4, 0.5, 0.6), (0.2, 0.25, 0.3), (12, 8), 1.0, "bilinear")
NAMES = ("vgg_att", "vit_tiny", "resnet18")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name in NAMES:
        options = {"normalise": "softmax"} if name == "vgg_att" else {}
        model = reduced.reduced(name, **options)
        weights = reduced.variables(name, **options)
        fsg.save_pretrained(folder / name, model, weights, preprocessing=PREPROCESSING)
    return folder


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    """Three images, wider than the networks' crop, and one that is none."""
    folder = tmp_path_factory.mktemp("frames")
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (12, 20, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    (folder / "1b<i>.png").write_text("no image")
    return folder


def run(*words, code=0):
    """The command, which exits with `code`."""
    with pytest.raises(SystemExit) if code else nullcontext() as found:
        run_main(lambda: command.main([str(word) for word in words]))
    assert code == (found.value.code if found else 0)


def pixels(file):
    with Image.open(file) as image:
        return np.asarray(image)


def told(folder):
    return json.loads((folder / "attention.json").read_text())


@pytest.mark.parametrize(
    ("name", "levels"), fast([("vgg_att", ["level2", "level3"]), ("vit_tiny", ["blocks_0", "blocks_1"])])
)
def test_numbers_picture_and_page(models, frames, tmp_path, capsys, name, levels):
    run(models / name, frames, "--out", tmp_path, "--batch-size", 2, "--show", 2, code=1)
    out = capsys.readouterr()
    assert f"4 images, {', '.join(levels)} of {models / name}: {tmp_path / 'attention.html'}" in out.out
    assert "error: 1 of 4 images could not be read" in out.err
    found = told(tmp_path)
    assert (found["images"], found["unreadable"], found["gates"]) == (4, 1, True)
    assert found["weights"] == str(models / name)
    assert found["preprocessing"] == json.loads(json.dumps(PREPROCESSING._asdict()))
    rows = [row for row in found["maps"] if "error" not in row]
    assert [row["path"] for row in rows] == [str(frames / f"{i}.png") for i in range(3)]
    assert found["maps"][2]["path"].endswith("1b<i>.png") or found["maps"][1]["path"].endswith("1b<i>.png")

    loaded = fsg.load_pretrained(str(models / name))
    images = np.stack([PREPROCESSING(pixels(row["path"])) for row in rows])
    logits, maps = jax.jit(lambda v, x: explain.attention_maps(loaded.model, v, x))(loaded.variables, images)
    probabilities = np.asarray(jax.nn.softmax(logits))
    assert [row["classes"][0] for row in rows] == probabilities.argmax(1).tolist()
    np.testing.assert_allclose([row["probabilities"][0] for row in rows], probabilities.max(1), rtol=1e-4)
    assert list(found["levels"]) == levels
    for level in levels:
        own = [row["levels"][level] for row in rows]
        assert tuple(found["levels"][level].values()) == maps[level].shape[1:]
        np.testing.assert_allclose([one["min"] for one in own], maps[level].min((1, 2)), rtol=1e-4)
        np.testing.assert_allclose([one["max"] for one in own], maps[level].max((1, 2)), rtol=1e-4)
        np.testing.assert_allclose([one["sum"] for one in own], maps[level].sum((1, 2)), rtol=1e-4)
        np.testing.assert_allclose([one["entropy"] for one in own], explain.map_entropy(maps[level]), rtol=1e-3)
        at = [maps[level][i][tuple(one["at"])] for i, one in enumerate(own)]
        np.testing.assert_allclose(at, maps[level].max((1, 2)), rtol=1e-4)

    page = (tmp_path / "attention.html").read_text()
    assert "1b&lt;i&gt;.png" in page
    assert "1 of 4 images could not be read" in page
    assert "3 images, of which the first 2 are shown" in page
    assert "gates of this network act on channels and have no maps" in page
    assert not re.findall(r'(?:src|href)="(?!data:)', page)  # it holds all that it shows
    encoded = re.findall(r"data:image/png;base64,([^\"]+)", page)
    pictures = [pixels(io.BytesIO(base64.b64decode(text))) for text in encoded]
    assert [picture.shape for picture in pictures] == [(12, 8, 3)] * 6
    seen = pixels(frames / "0.png")[:, 6:14]  # the centre, before it was normalised
    np.testing.assert_array_equal(pictures[0], seen)
    assert pixels(tmp_path / "attention.png").shape[1] > 3 * 150
    assert sorted(path.name for path in tmp_path.iterdir()) == ["attention.html", "attention.json", "attention.png"]


def test_levels_are_chosen():
    blocks = [f"blocks_{i}" for i in range(12)]
    assert choose_levels(blocks[:4], ()) == tuple(blocks[:4])
    assert choose_levels(blocks, ()) == ("blocks_0", "blocks_6", "blocks_10", "blocks_11")
    assert choose_levels(blocks[:5], ()) == ("blocks_0", "blocks_2", "blocks_3", "blocks_4")
    assert choose_levels(blocks, ("blocks_10", "blocks_2")) == ("blocks_2", "blocks_10")


def test_overlays():
    """Colours run from the smallest to the largest value; a map that is the same everywhere is blue, not noise."""
    image, ends = np.full((2, 2, 3), 0.5), {"min": 0.1, "max": 0.4}
    values = np.array([[0.1, 0.2], [0.3, 0.4]])
    found = overlay(image, values, ends).astype(int)
    assert len({tuple(pixel) for pixel in found.reshape(-1, 3).tolist()}) == 4
    assert found[1, 1, 0] > found[1, 1, 2]
    assert found[0, 0, 2] > found[0, 0, 0]
    np.testing.assert_array_equal(found, overlay(image, 10 * values, {"min": 1.0, "max": 4.0}))
    same = overlay(image, 0.25 + 1e-8 * values, {"min": 0.25, "max": 0.25 + 1e-8})
    np.testing.assert_array_equal(same, np.tile(found[:1, :1], (2, 2, 1)))
    zero = overlay(image, 0 * values, {"min": 0.0, "max": 0.0})  # sigmoids can all be 0
    np.testing.assert_array_equal(zero, same)


def test_networks_without_maps_are_refused(models, frames, tmp_path, capsys):
    run(models / "resnet18", frames, "--out", tmp_path / "a", code=2)
    assert re.search(r"^error: .*resnet18: ResNet: expected attention over space: VGG .*gates act on channels",
                     capsys.readouterr().err)  # fmt: skip
    run(models / "vit_tiny", frames, "--out", tmp_path / "a", "--levels", "blocks_2", code=2)
    assert "--levels: expected one of 'blocks_0', 'blocks_1', found 'blocks_2'" in capsys.readouterr().err
    run(models / "vit_tiny", frames / "none*", "--out", tmp_path / "a", code=2)
    run(models / "vit_tiny", frames, "--out", frames / "0.png", code=2)
    assert "--out: expected a folder, found the file" in capsys.readouterr().err
    run(models / "vit_tiny", frames, "--out", tmp_path / "a", "--show", 0, code=2)
    run(tmp_path / "model.stablehlo", frames, "--out", tmp_path / "a", code=2)
    assert "found an exported one, without maps" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_without_readable_images_the_page_says_so(models, frames, tmp_path):
    run(models / "vgg_att", frames / "1b<i>.png", "--out", tmp_path, "--levels", "level3", code=1)
    assert "1 of 1 images could not be read" in (tmp_path / "attention.html").read_text()
    assert list(told(tmp_path)["levels"]) == ["level3"]
    assert not (tmp_path / "attention.png").exists()


@pytest.mark.slow
def test_a_run(frames, tmp_path):
    """The ViT of a run on digits, of one channel, whose weights come from its checkpoint."""
    tiny.ablation(tiny.digits(train={"epochs": 1}), ("fsg",), 1, tmp_path)
    run(tmp_path / "fsg" / "seed-0", frames / "*[0-9].png", "--out", tmp_path / "out")
    found = told(tmp_path / "out")
    assert list(found["levels"]) == ["blocks_0"]
    assert found["images"] == 3
    assert found["unreadable"] == 0
