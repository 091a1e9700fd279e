"""The complete CIFAR-100: the same rows from every source. Skipped where there is no copy.

A copy is the folder that the environment variable FSG_CIFAR100 names.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fsg_jax.data import CIFAR100_MEAN, CIFAR100_STD, load_cifar100, prepare_tfds, stratified_holdout

UNPACK = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar100" / "unpack.py"


@pytest.fixture(scope="session")
def copy_of(tmp_path_factory):
    """A function from a source to the folder that holds it."""
    folder = Path(os.environ.get("FSG_CIFAR100") or tmp_path_factory.mktemp("cifar100"))

    def find(source):
        if "FSG_CIFAR100" in os.environ:
            return folder
        if not UNPACK.is_file():
            pytest.skip("no copy of CIFAR-100: FSG_CIFAR100 is not set")
        if not any(folder.glob(f"cifar*100*{source}*")):
            subprocess.run([sys.executable, UNPACK, "--out", folder, "--format", source], check=True)
        return folder

    yield find
    if "FSG_CIFAR100" not in os.environ:
        shutil.rmtree(folder)


def load(folder, split, source, **options):
    try:
        return load_cifar100(folder, split, source=source, **options)
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "test"])
def test_npz_is_the_official_split(copy_of, split):
    dataset = load(copy_of("npz"), split, "npz")
    assert len(dataset) == {"train": 50_000, "test": 10_000}[split]
    assert (np.bincount(dataset.labels) == len(dataset) // 100).all()
    assert (np.bincount(dataset.coarse_labels) == len(dataset) // 20).all()
    assert dataset.class_names[:3] == ("apple", "aquarium_fish", "baby")


@pytest.mark.slow
@pytest.mark.parametrize("source", ["binary", "python"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_sources_agree_with_the_npz(copy_of, source, split):
    # checksum=False: the official per-image file names, part of the official md5, may be missing.
    dataset = load(copy_of(source), split, source, checksum=source == "binary")
    expected = load(copy_of("npz"), split, "npz")
    for name in ("images", "labels", "coarse_labels", "class_names"):
        np.testing.assert_array_equal(getattr(dataset, name), getattr(expected, name))


@pytest.mark.slow
def test_binary_archive_agrees_with_its_folder(copy_of):
    folder = copy_of("binary")
    archive = load(folder / "cifar-100-binary.tar.gz", "test", "binary", checksum=False)
    np.testing.assert_array_equal(archive.images, load(folder, "test", "binary").images)


@pytest.mark.slow
@pytest.mark.tfds
@pytest.mark.filterwarnings("ignore")  # TensorFlow's own, while it prepares
def test_tfds_agrees_with_the_official_split(copy_of, tmp_path):
    pytest.importorskip("tensorflow_datasets")
    folder = copy_of("binary")
    if not (folder / "cifar-100-binary").is_dir():
        pytest.skip("no cifar-100-binary")
    prepare_tfds(tmp_path, source=folder)
    for split in ("train", "test"):  # checksum=True compares every pixel and label
        names = load_cifar100(folder, split, source="binary").class_names
        assert load_cifar100(tmp_path, split, source="tfds").class_names == names


@pytest.mark.slow
def test_mean_std_and_holdout(copy_of):
    dataset = load(copy_of("npz"), "train", "npz")
    pixels = dataset.images.reshape(-1, 3)
    counts = np.stack([np.bincount(pixels[:, c], minlength=256) for c in range(3)])
    values = np.arange(256) / 255
    mean = counts @ values / len(pixels)
    std = np.sqrt(counts @ values**2 / len(pixels) - mean**2)
    np.testing.assert_allclose(mean, CIFAR100_MEAN, atol=5e-9)
    np.testing.assert_allclose(std, CIFAR100_STD, atol=5e-9)
    train, held = stratified_holdout(dataset.labels, 5000)
    assert (np.bincount(dataset.labels[held]) == 50).all()
    assert (np.bincount(dataset.labels[train]) == 450).all()
