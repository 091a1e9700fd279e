"""Crops of Kvasir-SEG, maps against masks, and `experiments.localise` from frames to the page."""

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import jaccard_score

from experiments import crops as crops_command
from experiments import localise as command
from experiments.ablate import ablate
from experiments.classification import load_split, load_splits
from experiments.cli import AblateArgs
from experiments.config import Data, change
from experiments.configs import CONFIGS
from experiments.errors import UserError
from fsg_jax.data.arrays import load_arrays
from fsg_jax.endoscopy.mask_crops import draw_crops, mask_shares
from fsg_jax.explain.localisation import binarise, jaccard, points_inside

SIDE = 220


def frame(folder, split, name, seed):
    """A noisy frame with one bright, round polyp, and its mask."""
    rng = np.random.default_rng(seed)
    centre, radius = rng.uniform(30, SIDE - 30, 2), rng.uniform(14, 24)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    mask = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < radius**2
    pixels = rng.integers(60, 90, (SIDE, SIDE, 3)) + 120 * mask[..., None]
    for kind, image in (("images", pixels), ("masks", 255 * mask)):
        path = folder / split / kind / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.astype(np.uint8)).save(path, quality=95)


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kvasir")
    for i, split in enumerate(["train"] * 6 + ["validation"] * 3 + ["test"] * 5):
        frame(folder, split, str(i), i)
    return folder


def test_shares_of_all_squares():
    mask = np.random.default_rng(0).random((9, 7)) < 0.4
    shares = mask_shares(mask, 3)
    expected = [[mask[i : i + 3, j : j + 3].mean() for j in range(5)] for i in range(7)]
    np.testing.assert_allclose(shares, expected)
    with pytest.raises(ValueError, match=r"mask: expected at least 8 x 8 pixels, found \(9, 7\)"):
        mask_shares(mask, 8)


def test_crops_are_what_they_say_and_any_can_be_drawn():
    mask = np.zeros((12, 12), bool)
    mask[6:, 6:] = True
    drawn = [draw_crops(mask, 4, 3, np.random.default_rng(seed)) for seed in range(60)]
    for with_polyp, without in drawn:
        assert len(with_polyp) == len(without) == 3
        for crop in with_polyp:
            assert mask[crop.top : crop.top + 4, crop.left : crop.left + 4].mean() == crop.share >= 0.2
        assert not any(mask[c.top : c.top + 4, c.left : c.left + 4].any() for c in without)
    places = {(crop.top, crop.left) for with_polyp, _ in drawn for crop in with_polyp}
    assert places == set(zip(*np.nonzero(mask_shares(mask, 4) >= 0.2), strict=True))
    assert draw_crops(np.ones((5, 5), bool), 4, 3, np.random.default_rng(0))[1] == []


def test_otsu_shares_and_overlaps():
    values = np.concatenate([np.linspace(0, 0.2, 60), np.linspace(0.8, 1, 40)]).reshape(10, 10)
    np.testing.assert_array_equal(binarise(values), values > 0.5)
    assert binarise(values, 0.25).sum() == 25
    assert not binarise(np.ones((3, 3))).any()
    found, truth = np.random.default_rng(1).random((2, 10, 10)) < 0.5
    assert jaccard(found, truth) == pytest.approx(jaccard_score(truth.ravel(), found.ravel()))
    assert jaccard(np.zeros((2, 2), bool), np.zeros((2, 2), bool)) == 1
    assert points_inside(values, values > 0.99) == 1
    assert points_inside(np.array([[1.0, 1.0], [0.0, 1.0]]), np.array([[True, False], [True, False]])) == pytest.approx(
        1 / 3
    )
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="values: expected finite"):
            binarise(np.array([[0.0, bad]]))
    with pytest.raises(ValueError, match="how: expected None or a share"):
        binarise(values, 1.5)
    with pytest.raises(ValueError, match=r"found: expected shape \(3, 3\)"):
        jaccard(np.ones((2, 2), bool), np.ones((3, 3), bool))


def cut(frames, out, **options):
    return crops_command.make_crops(crops_command.Args(frames, out, **options))


def test_the_file_of_crops(frames, tmp_path, capsys):
    arrays = cut(frames, tmp_path / "crops.npz", size=32, each=2)
    assert "train: 12 crops with a polyp, 12 without; no frame with fewer" in capsys.readouterr().out
    read = load_arrays(tmp_path / "crops.npz", "test")
    np.testing.assert_array_equal(read.images, arrays["test_images"])
    assert (read.class_names, len(read)) == (("none", "polyp"), 20)
    name, (top, left) = arrays["test_frames"][0], arrays["test_places"][0]
    whole = np.asarray(Image.open(frames / "test/images" / name))
    np.testing.assert_array_equal(read.images[0], whole[top : top + 32, left : left + 32])
    bright = [image.max() > 150 for image in read.images]  # the polyp
    np.testing.assert_array_equal(bright, read.labels == 1)
    again = cut(frames, tmp_path / "again.npz", size=32, each=2)
    np.testing.assert_array_equal(again["train_images"], arrays["train_images"])


def test_bad_frames_and_files_are_named(frames, tmp_path):
    frame(tmp_path / "k", "train", "a", 0)
    for split in ("validation", "test"):
        frame(tmp_path / "k", split, "b", 1)
    mask = tmp_path / "k/train/masks/a.jpg"
    Image.new("L", (8, 8)).save(mask)
    with pytest.raises(UserError, match=r"(?s)1 frames cannot be used.*a\.jpg: expected the size of its image"):
        cut(tmp_path / "k", tmp_path / "c.npz")
    mask.unlink()
    with pytest.raises(UserError, match=r"1 masks are missing.*a\.jpg"):
        cut(tmp_path / "k", tmp_path / "c.npz")
    with pytest.raises(UserError, match="expected the images of Kvasir-SEG"):
        cut(tmp_path, tmp_path / "c.npz")
    assert not (tmp_path / "c.npz").exists()
    (tmp_path / "bad.npz").write_bytes(b"PK no archive")
    with pytest.raises(ValueError, match=r"bad\.npz: expected an \.npz"):
        load_arrays(tmp_path / "bad.npz", "train")
    np.savez(tmp_path / "none.npz", train_images=np.zeros((1, 96, 96, 3), np.uint8))
    with pytest.raises(ValueError, match="train_labels: expected an array, found none among"):
        load_arrays(tmp_path / "none.npz", "train")
    with pytest.raises(ValueError, match=r"data\.path: expected the \.npz of experiments\.crops"):
        load_split(Data(name="kvasir_crops"), "train")


def test_crops_of_another_size_are_refused(frames, tmp_path):
    cut(frames, tmp_path / "crops.npz", size=32)
    with pytest.raises(ValueError, match=r"images: expected pixels \(96, 96, 3\), found \(32, 32, 3\)"):
        load_splits(Data(name="kvasir_crops", path=tmp_path / "crops.npz"))


@pytest.mark.slow
def test_from_frames_to_the_page(frames, tmp_path, capsys):
    """The bright polyps are found: by a short training on crops alone, with a level chosen on validation frames."""
    cut(frames, tmp_path / "crops.npz", each=4, least=0.02)
    small = {"model.width": 2, "train.epochs": 3, "train.batch_size": 8, "optimizer.warmup_epochs": 0.0}
    experiment = change(CONFIGS["kvasir_crops"][0], {"data.path": tmp_path / "crops.npz", **small})
    ablate(AblateArgs(experiment, tmp_path / "runs", 1, ("baseline", "att3_sigmoid")))
    words = [str(tmp_path / "runs"), "--frames", str(frames), "--out", str(tmp_path / "out"), "--resamples", "50"]
    command.main(words)
    found = command.localise(command.Args((tmp_path / "runs",), frames, tmp_path / "out", resamples=50))
    kinds = {(row["arm"].split()[-1], row["kind"]) for row in found["rows"]}
    assert kinds == {
        ("none", "centre"),
        ("baseline", "Grad-CAM"),
        ("baseline", "gradient"),
        ("att3_sigmoid", "attention"),
        ("att3_sigmoid", "Grad-CAM"),
        ("att3_sigmoid", "gradient"),
    }
    for row in found["summary"]:
        assert 0 <= row["otsu"]["low"] <= row["otsu"]["mean"] <= row["otsu"]["high"] <= 1
    centre = next(row for row in found["rows"] if row["kind"] == "centre")
    masks = command.read_split(frames, "test", None).masks
    maps = command.centre_maps(5, masks.shape[1:], float(centre["variant"]))
    np.testing.assert_allclose(centre["otsu"], command.overlaps(maps, masks, None), atol=1e-6)
    page = (tmp_path / "out/localise.md").read_text()
    assert "near-duplicate" in page
    assert (tmp_path / "out/localise.png").stat().st_size > 10_000
