"""`python -m experiments.transfer`: features, SVMs, the two references, and targets that are damaged."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from experiments import transfer as command
from experiments.errors import NotFiniteError, UserError, run_main
from experiments.networks import read_networks
from experiments.run_folder import check_record
from experiments.transfer import (
    Args,
    Target,
    check_target,
    doubts,
    fit,
    initial_variables,
    load_target,
    make_features,
    pixels,
    prepared,
    transfer,
)
from fsg_jax.data import load_digits
from fsg_jax.pretrained.preprocessing import Preprocessing

QUICK = {"costs": (1e-3, 1e-2, 1e-1), "folds": 3, "batch_size": 64}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """As in test_inspect.py and test_fooling.py, the baseline alone."""
    folder = tmp_path_factory.mktemp("transfer") / "runs"
    tiny.ablation(tiny.digits(train={"epochs": 2, "test_on": "best"}), ("baseline",), 2, folder)
    return folder


def arrays(train=120, test=60):
    """Digits from 0 to 4, with other labels than those of the training."""
    sets = {split: load_digits(split) for split in ("train", "test")}
    found = {}
    for (split, dataset), count in zip(sets.items(), (train, test), strict=True):
        rows = np.flatnonzero(dataset.labels < 5)[:count]
        found |= {f"{split}_images": dataset.images[rows], f"{split}_labels": 10 * dataset.labels[rows] - 3}
    return found


@pytest.fixture
def target(tmp_path):
    np.savez(tmp_path / "few.npz", **arrays())
    return tmp_path / "few.npz"


def test_the_command(runs, target, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["--costs", "0.001", "0.01", "0.1", "--folds", "3", "--batch-size", "64"]
    command.main([str(runs), "--to", str(target), "--out", str(out), *words])
    printed = capsys.readouterr().out
    assert "| digits baseline | 2 |" in printed
    record = check_record(json.loads((out / "transfer.json").read_text()), "transfer.json")
    assert {"commit", "command", "versions"} <= record["facts"].keys()
    assert "scikit-learn" in record["facts"]["versions"]
    assert (record["settings"]["num_train"], record["settings"]["num_test"], record["settings"]["to"]) == (
        *(120, 60),
        "few.npz",
    )
    assert [(row["seed"], row["features"]) for row in record["rows"]] == [
        (seed, name) for seed in (0, 1) for name in ("pixels", "untrained", "trained")
    ]
    assert not any("initial weights differ" in note for note in record["warnings"])
    by = {(row["seed"], row["features"]): row for row in record["rows"]}
    assert by[0, "pixels"]["accuracy"] == by[1, "pixels"]["accuracy"] > 0.8
    assert (by[0, "pixels"]["dimensions"], by[0, "trained"]["dimensions"]) == (64, 192)
    assert all(row["accuracy_low"] < row["accuracy"] <= row["accuracy_high"] for row in record["rows"])
    (arm,) = [row for row in record["arms"] if row["features"] == "trained"]
    values = [by[seed, "trained"]["accuracy"] for seed in (0, 1)]
    assert (arm["seeds"], arm["accuracy_mean"]) == (2, pytest.approx(np.mean(values)))
    assert arm["accuracy_std"] == pytest.approx(np.std(values, ddof=1))
    assert "# Transfer to few.npz" in (out / "transfer.md").read_text()
    assert str(tmp_path) not in (out / "transfer.md").read_text().split("## Origin")[0]


@pytest.mark.slow
def test_features_are_what_the_head_classifies(runs):
    (network,) = read_networks([runs / "baseline" / "seed-1"], None)
    variables, images = network.restored.variables, load_digits("test").images[:70]
    inputs = prepared(list(images), Preprocessing((0.3053,), (0.3760,), (8, 8), 1.0, "bilinear"))
    np.testing.assert_allclose(inputs, (images / 255 - 0.3053) / 0.3760, rtol=1e-5)
    found = make_features(network, 64)(variables, inputs)  # two batches, the second padded
    head = jax.tree.map(np.asarray, variables["params"]["head"])
    logits = network.model.apply(variables, jnp.asarray(inputs))
    np.testing.assert_allclose(found @ head["kernel"] + head["bias"], logits, rtol=1e-3, atol=1e-4)
    with pytest.raises(NotFiniteError, match="digits baseline: expected finite features"):
        make_features(network, 64)(jax.tree.map(lambda x: x * np.nan, variables), inputs)


def test_the_untrained_network_is_that_of_the_seed(runs):
    (network,) = read_networks([runs / "baseline" / "seed-1"], None)
    variables, same = initial_variables(network)
    assert same
    trained = network.restored.variables
    assert jax.tree.structure(variables["params"]) == jax.tree.structure(trained["params"])
    assert not np.array_equal(variables["params"]["head"]["kernel"], trained["params"]["head"]["kernel"])
    _, same = initial_variables(network._replace(seed=0))
    assert not same


def features():
    """Two classes that one of three columns tells apart, and a constant column."""
    random = np.random.default_rng(0)
    labels = {"train": np.arange(60) % 2, "test": np.arange(40) % 2}
    values = {
        split: np.c_[random.normal(size=(len(y), 2)), 0.6 * random.normal(size=len(y)) + y, np.full(len(y), 7.0)]
        for split, y in labels.items()
    }
    return values, Target({}, labels)


def test_the_fit_is_that_of_scikit_learn():
    values, target = features()
    args = Args((), "", None, **QUICK)
    found = fit(values, target, args)
    machine = make_pipeline(StandardScaler(), LinearSVC(C=found.cost, dual="auto", max_iter=5000, random_state=0))
    machine.fit(values["train"], target.labels["train"])
    assert found.accuracy == machine.score(values["test"], target.labels["test"])
    assert found.accuracy > 0.7
    assert (found.dimensions, found.converged) == (4, True)
    assert found.accuracy_low < found.accuracy < found.accuracy_high


def test_nothing_is_chosen_by_the_test_images():
    values, target = features()
    args = Args((), "", None, **QUICK)
    found = fit(values, target, args)
    turned = Target({}, target.labels | {"test": 1 - target.labels["test"]})
    other = fit(values | {"test": 100 * values["test"]}, turned, args)
    assert (other.cost, other.validation) == (found.cost, found.validation)
    same = fit(values, turned, args)
    assert same.accuracy == pytest.approx(1 - found.accuracy)


def test_doubts_about_a_fit():
    values, target = features()
    args = Args((), "", None, **QUICK | {"costs": (1e-2, 1e3), "iterations": 2})
    found = fit(values, target, args)
    assert not found.converged
    assert doubts("net, trained", found, args) == [
        "net, trained: the SVM stopped after 2 iterations (--iterations) before it converged.",
        f"net, trained: C = {found.cost:g} is at the end of what was tried (--costs).",
    ]
    assert doubts("net", found._replace(converged=True, cost=1.0), args) == []


def test_grey_and_colour():
    grey, colour = np.full((4, 4, 1), 100, np.uint8), np.zeros((4, 4, 3), np.uint8) + np.uint8([200, 100, 50])
    rgb = prepared([grey, colour], Preprocessing((0.0,) * 3, (1.0,) * 3, (8, 8), 1.0, "bilinear"))
    assert rgb.shape == (2, 8, 8, 3)
    np.testing.assert_allclose(rgb[0], 100 / 255, rtol=1e-6)
    np.testing.assert_allclose(rgb[1, 0, 0], np.array([200, 100, 50]) / 255, rtol=1e-6)
    luma = prepared([grey, colour], Preprocessing((0.0,), (1.0,), (4, 4), 1.0, "bilinear"))
    np.testing.assert_allclose(luma[:, 0, 0, 0], np.array([100, 124]) / 255, atol=1 / 255)


def test_pixels_are_as_they_are_unless_they_are_too_many():
    images = {split: [np.full((4, 6, 3), 51, np.uint8)] * 2 for split in ("train", "test")}
    found = pixels(Target(images, {}), (8, 8))
    assert found["train"].shape == (2, 72)
    np.testing.assert_allclose(found["test"], 0.2, rtol=1e-6)
    assert pixels(Target(images, {}), (4, 4))["test"].shape == (2, 48)
    mixed = images | {"test": [np.full((9, 5, 1), 51, np.uint8)]}
    found = pixels(Target(mixed, {}), (8, 8))
    assert (found["train"].shape, found["test"].shape) == ((2, 192), (1, 192))
    np.testing.assert_allclose(found["test"], 0.2, rtol=1e-6)


def test_a_folder_of_images(tmp_path):
    for split, counts in (("train", {"cat": 3, "dog": 4}), ("test", {"cat": 1, "dog": 2})):
        for name, count in counts.items():
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (5 + i, 4), (i, 200, 0)).save(folder / f"{i}.png")
    found = load_target(str(tmp_path))
    assert found.labels["train"].tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert found.labels["test"].tolist() == [0, 1, 1]
    assert [image.shape for image in found.images["test"]] == [(4, 5, 3), (4, 5, 3), (4, 6, 3)]
    (tmp_path / "test" / "cow").mkdir()
    with pytest.raises(ValueError, match=r"test: expected the classes of train, \['cat', 'dog'\], found \['cow'\] too"):
        load_target(str(tmp_path))
    (tmp_path / "test" / "cat" / "0.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"cat/0\.png: expected an image"):
        load_target(str(tmp_path))
    with pytest.raises(ValueError, match="expected folders train/CLASS of images"):
        load_target(str(tmp_path / "test"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test_labels": None}, r"few\.npz: test_labels: expected an array, found none among"),
        ({"train_images": np.zeros((120, 8, 8, 1), "f4")}, "train_images: expected uint8 .*, found float32"),
        ({"train_images": np.zeros((120, 8, 8), "u1")}, r"train_images: expected uint8 .*, found uint8 \(120, 8, 8\)"),
        ({"test_images": np.zeros((60, 8, 8, 2), "u1")}, "test_images: expected uint8"),
        ({"test_images": np.zeros((0, 8, 8, 1), "u1")}, "test_images: expected uint8"),
        ({"train_labels": np.zeros(119, int)}, r"train_labels: expected integers of shape \(120,\)"),
        ({"train_labels": np.zeros(120)}, "train_labels: expected integers of shape .* found float64"),
        ({"test_labels": np.full(60, "cat", object)}, r"few\.npz: expected an \.npz without pickles"),
    ],
)
def test_an_npz_that_is_none_of_ours(tmp_path, change, message):
    found = {name: array for name, array in (arrays() | change).items() if array is not None}
    np.savez(tmp_path / "few.npz", **found)
    with pytest.raises(ValueError, match=message):
        load_target(str(tmp_path / "few.npz"))


def test_targets_that_an_svm_cannot_learn():
    args = Args((), "x.npz", None, **QUICK)
    labels = {"train": np.arange(9) % 3, "test": np.arange(3)}
    check_target(Target({}, labels), args)
    for train, test, message in (
        (np.zeros(9, int), np.zeros(3, int), r"x\.npz: train labels: expected two classes or more, found \[0\]"),
        (
            np.array([0, 0, 0, 1, 1]),
            np.arange(2),
            r"expected 3 images or more of every class.* found by class \{1: 2\}",
        ),
        (np.arange(9) % 3, np.array([0, 5]), r"test labels: expected those of the training images, found \[5\] too"),
    ):
        with pytest.raises(ValueError, match=message):
            check_target(Target({}, {"train": train, "test": test}), args)


def test_what_is_refused(runs, target, tmp_path, capsys):
    (tmp_path / "bad.npz").write_bytes(b"PK no zip")
    run = str(runs / "baseline" / "seed-0")
    for words, message in (
        (("--to", "mnist"), "--to: expected digits, a .npz file or a folder with train and test, found mnist"),
        (("--to", str(tmp_path / "bad.npz")), "bad.npz: expected an .npz without pickles"),
        (("--to", str(tmp_path / "none.npz")), "none.npz"),
        (("--to", str(target), "--folds", "1"), "--folds: expected an integer >= 2"),
        (("--to", str(target), "--costs", "0"), "--costs: expected finite numbers above 0"),
        (("--to", str(target), "--folds", "100"), "expected 100 images or more of every class"),
    ):
        with pytest.raises(SystemExit) as exit_:
            run_main(lambda words=words: command.main([run, "--out", str(tmp_path / "out"), *words]))
        assert exit_.value.code == 2
        assert message in capsys.readouterr().err
    with pytest.raises(UserError, match="found none"):
        transfer(Args((), str(target), tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_digits_as_the_target(runs, tmp_path):
    args = Args((runs / "baseline" / "seed-0",), "digits", tmp_path / "out")
    found = transfer(replace(args, costs=(1e-2, 1e-1), folds=2))
    assert found["rows"][0]["accuracy"] > 0.94  # of the pixels
    assert (found["settings"]["num_train"], found["settings"]["num_test"]) == (1438, 359)
    assert found["warnings"][0] == "digits baseline seed 0: it was trained on digits, so that this is no transfer."
