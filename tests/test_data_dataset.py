"""ImageDataset: what it refuses, and taking rows. The package imports without its extras."""

import subprocess
import sys

import numpy as np
import pytest

from fsg_jax.data import ImageDataset

NAMES = ("cat", "dog", "owl")


def make(**changes):
    fields = {
        "images": np.zeros((4, 5, 6, 3), np.uint8),
        "labels": np.array([0, 1, 2, 1], np.int32),
        "class_names": NAMES,
        "origin": "some/file",
    }
    return ImageDataset(**{**fields, **changes})


def test_length_classes_and_take():
    images = np.arange(4 * 2 * 2, dtype=np.uint8).reshape(4, 2, 2, 1)
    dataset = make(images=images, coarse_labels=np.array([0, 0, 1, 1], np.int32))
    assert (len(dataset), dataset.num_classes) == (4, 3)
    part = dataset.take(np.array([3, 0]))
    np.testing.assert_array_equal(part.images, images[[3, 0]])
    np.testing.assert_array_equal(part.labels, [1, 0])
    np.testing.assert_array_equal(part.coarse_labels, [1, 0])
    assert (part.class_names, part.origin) == (NAMES, "some/file")
    assert len(dataset.take(np.array([True, False, True, True]))) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": np.zeros((4, 5, 6, 3), np.float32)}, "images: expected uint8, found float32"),
        ({"images": np.zeros((4, 5, 6), np.uint8)}, r"images: expected shape .*, found \(4, 5, 6\)"),
        ({"images": np.zeros((4, 0, 6, 3), np.uint8)}, r"images: expected shape .*, found \(4, 0, 6, 3\)"),
        ({"images": np.zeros((0, 5, 6, 3), np.uint8)}, r"images: expected shape .*, found \(0, 5, 6, 3\)"),
        ({"images": np.zeros((3, 5, 6, 3), np.uint8)}, r"labels: expected shape \(3,\), one per image, found \(4,\)"),
        ({"labels": np.zeros(4, np.int64)}, "labels: expected int32, found int64"),
        ({"labels": np.zeros((4, 1), np.int32)}, r"labels: expected shape \(4,\), one per image, found \(4, 1\)"),
        ({"labels": np.array([0, 3, 1, 1], np.int32)}, r"labels: expected values in \[0, 3\), found 3"),
        ({"labels": np.array([0, -1, 1, 1], np.int32)}, r"labels: expected values in \[0, 3\), found -1"),
        (
            {"coarse_labels": np.zeros(3, np.int32)},
            r"coarse_labels: expected shape \(4,\), .*, found \(3,\)",
        ),
        ({"coarse_labels": np.full(4, -2, np.int32)}, r"coarse_labels: expected values in \[0, inf\), found -2"),
    ],
)
def test_refuses(changes, message):
    with pytest.raises(ValueError, match="some/file: .*" + message):
        make(**changes)


def test_taking_no_rows_is_refused():
    with pytest.raises(ValueError, match=r"found \(0, 5, 6, 3\)"):
        make().take(np.array([], np.int64))


BLOCKED = ("grain", "pooch", "tqdm", "tensorflow_datasets", "tensorflow", "PIL", "sklearn")
IMPORT_WITHOUT_EXTRAS = f"""
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED!r}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Block())
import numpy as np
from fsg_jax import data

dataset = data.ImageDataset(np.zeros((2, 1, 1, 1), np.uint8), np.zeros(2, np.int32), ("a",))
calls = {{
    "data": lambda: next(iter(data.make_loader(dataset, 1, seed=0))),
    "experiments": data.load_digits,
    "tfds": lambda: data.prepare_tfds("never"),
}}
for extra, call in calls.items():
    try:
        call()
    except ImportError as error:
        assert f"fsg-jax[{{extra}}]" in str(error), error
    else:
        raise SystemExit(extra)
print("fine")
"""


def test_imports_without_extras_and_names_them():
    result = subprocess.run([sys.executable, "-c", IMPORT_WITHOUT_EXTRAS], capture_output=True, text=True)
    assert result.stdout == "fine\n", result.stderr
