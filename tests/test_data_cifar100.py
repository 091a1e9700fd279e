"""Loading CIFAR-100: every source on small files, and every way a copy can be wrong."""

import functools
import hashlib
import os
import subprocess
import sys

import cifar_files
import numpy as np
import pytest

from fsg_jax.data import cifar100, load_cifar100, prepare_tfds

load = functools.partial(load_cifar100, checksum=False)


def python_archive(folder):
    return cifar_files.write_archive(cifar_files.write_python(folder))


def binary_archive(folder):
    return cifar_files.write_archive(cifar_files.write_binary(folder))


WRITERS = {
    "npz": ("npz", cifar_files.write_npz),
    "binary": ("binary", cifar_files.write_binary),
    "binary archive": ("binary", binary_archive),
    "python": ("python", cifar_files.write_python),
    "python archive": ("python", python_archive),
}


def assert_same(dataset, split, label="fine"):
    expected = cifar_files.arrays(split)
    np.testing.assert_array_equal(dataset.images, expected["images"])
    np.testing.assert_array_equal(dataset.labels, expected[label])
    np.testing.assert_array_equal(dataset.coarse_labels, expected["coarse"])
    names = cifar_files.FINE_NAMES if label == "fine" else cifar_files.COARSE_NAMES
    assert dataset.class_names == names


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("split", ["train", "test"])
def test_every_source_gives_the_same_rows(tmp_path, kind, split):
    source, write = WRITERS[kind]
    path = write(tmp_path)
    for asked in ("auto", source):
        assert_same(load(path, split, source=asked), split)
    assert_same(load(str(path), split, label="coarse"), split, "coarse")
    assert_same(load(tmp_path, split), split)
    assert f"({source}, {split})" in load(tmp_path, split).origin


@pytest.mark.parametrize("kind", ["binary archive", "python archive"])
def test_archive_alone_in_a_folder_is_found(tmp_path, kind):
    archive = WRITERS[kind][1](tmp_path / "written")
    assert_same(load(archive.rename(tmp_path / archive.name).parent, "test"), "test")


def test_auto_takes_the_first_source_and_a_named_source_only_its_own(tmp_path):
    for source, write in (WRITERS[kind] for kind in ("python", "binary", "npz")):
        write(tmp_path)
        assert f"({source}, test)" in load(tmp_path, "test").origin
    for source in ("npz", "binary", "python"):
        assert f"({source}, test)" in load(tmp_path, "test", source=source).origin


def test_missing_folder_and_empty_folder_list_what_was_looked_for(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"none: expected CIFAR-100 .*cifar100\.npz, .*meta.*, found no such file"
    ):
        load(tmp_path / "none", "train")
    with pytest.raises(FileNotFoundError, match=r"info\.json, cifar100/\*/dataset_info\.json\), found none of these"):
        load(tmp_path, "train", source="tfds")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": "zip"}, "source: expected one of 'auto', 'npz', 'binary', 'python', 'tfds', found 'zip'"),
        ({"split": "validation"}, "split: expected one of 'train', 'test', found 'validation'"),
        ({"label": "medium"}, "label: expected one of 'fine', 'coarse', found 'medium'"),
    ],
)
def test_unknown_choice(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        load(tmp_path, **{"split": "train", **arguments})


def test_file_of_unknown_format(tmp_path):
    path = tmp_path / "data.tar.gz"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"data\.tar\.gz: expected the name \*\.npz, .*, found another"):
        load(path, "train")


@pytest.mark.parametrize("kind", WRITERS)
def test_other_data_fails_the_checksum(tmp_path, kind):
    path = WRITERS[kind][1](tmp_path)
    with pytest.raises(
        ValueError,
        match=r"expected (md5 [0-9a-f]{32}|sha256 .* official train rows), found [0-9a-f]{32}",
    ):
        load_cifar100(path, "train")


@pytest.mark.parametrize("kind", ["npz", "binary archive", "python archive"])
def test_digest_of_the_users_own_copy(tmp_path, kind):
    path = WRITERS[kind][1](tmp_path)
    digest = "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
    assert_same(load_cifar100(path, "test", checksum=digest), "test")
    with pytest.raises(ValueError, match=f"{path.name}: expected md5 000.*, found"):
        load_cifar100(path, "test", checksum="0" * 32)


@pytest.mark.parametrize("kind", ["binary", "python"])
def test_digest_needs_a_file(tmp_path, kind):
    with pytest.raises(ValueError, match=r"checksum: expected True or False for the folder .*, found the digest"):
        load_cifar100(WRITERS[kind][1](tmp_path), "test", checksum="0" * 32)


@pytest.mark.parametrize(("kind", "name"), [("binary", "test.bin"), ("python", "test")])
def test_missing_and_truncated_file_of_a_folder(tmp_path, kind, name):
    path = WRITERS[kind][1](tmp_path) / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"{name}: "):
        load(tmp_path, "test")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"{name}: no such file"):
        load(tmp_path, "test")


def test_truncated_npz_and_archive(tmp_path):
    for write in (cifar_files.write_npz, python_archive):
        path = write(tmp_path)
        path.write_bytes(path.read_bytes()[:5000])
        with pytest.raises(ValueError, match=f"{path.name}: "):
            load(path, "test")


def test_npz_that_is_another_file(tmp_path):
    np.save(tmp_path / "cifar100.npy", np.zeros(3))
    path = (tmp_path / "cifar100.npy").rename(tmp_path / "cifar100.npz")
    with pytest.raises(ValueError, match=r"cifar100\.npz: expected an .npz without pickles, found"):
        load(path, "test")


def test_empty_binary_file_has_no_rows(tmp_path):
    folder = cifar_files.write_binary(tmp_path)
    (folder / "test.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"binary, test\): images: expected shape .* found \(0, 32, 32, 3\)"):
        load(folder, "test")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test_images": np.zeros((10, 32, 32), np.uint8)}, r"images: expected shape .* found \(10, 32, 32\)"),
        ({"test_images": np.zeros((10, 8, 8, 3), np.uint8)}, r"images: expected shape .* found \(10, 8, 8, 3\)"),
        ({"test_images": np.zeros((10, 32, 32, 3))}, "images: expected uint8, found float64"),
        (
            {"test_images": np.zeros((9, 32, 32, 3), np.uint8)},
            r"labels: expected shape \(9,\), .*, found \(10,\)",
        ),
        ({"test_fine": np.full(10, 100)}, "fine labels: expected 0 to 99, found 100"),
        ({"test_fine": np.full(10, 2**32)}, "fine labels: expected 0 to 99, found 4294967296"),
        ({"test_fine": np.full(10, -1)}, "fine labels: expected 0 to 99, found -1"),
        ({"test_coarse": np.full(10, 20)}, "coarse labels: expected 0 to 19, found 20"),
        ({"test_fine": np.zeros(10)}, r"fine labels: expected integers \(examples,\), found float64 \(10,\)"),
        ({"fine_names": np.array(["a", "b"])}, "fine names: expected 100, found 2"),
        ({"fine_names": None}, "expected the entries .*fine_names.*, found train_images"),
        ({"test_fine": np.array([object()] * 10)}, "expected an .npz without pickles"),
    ],
)
def test_wrong_npz_content(tmp_path, change, message):
    content = {k: v for k, v in (cifar_files.npz_content() | change).items() if v is not None}
    path = tmp_path / "cifar100.npz"
    np.savez(path, **content)
    with pytest.raises(ValueError, match=r"cifar100\.npz.*" + message):
        load(path, "test")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({b"data": np.zeros((10, 3071), np.uint8)}, r"images: expected uint8 .*, found uint8 \(10, 3071\)"),
        ({b"data": [1, 2]}, "images: expected uint8 .*, found list"),
        ({b"fine_labels": [100] * 10}, "fine labels: expected 0 to 99, found 100"),
        ({b"fine_labels": [[1], [2, 3]]}, "fine labels: expected integers .*, found a list"),
        ({b"fine_labels": [b"x"] * 10}, "fine labels: expected integers .*, found a list of \\['str'\\]"),
        ({b"coarse_labels": [0] * 9}, r"coarse_labels: expected shape \(10,\), one per image, found \(9,\)"),
    ],
)
def test_wrong_pickle_content(tmp_path, change, message):
    folder = cifar_files.write_python(tmp_path)
    (folder / "test").write_bytes(cifar_files.pickle_py2(cifar_files.split_pickle("test") | change))
    with pytest.raises(ValueError, match="cifar-100-python.*" + message):
        load(folder, "test")


def test_pickle_without_an_entry_or_of_another_type(tmp_path):
    folder = cifar_files.write_python(tmp_path)
    (folder / "test").write_bytes(cifar_files.pickle_py2({b"data": cifar_files.rows("test"), b"labels": [1]}))
    with pytest.raises(ValueError, match=r"test: expected the entries .*fine_labels.*, found data, labels"):
        load(folder, "test")
    (folder / "test").write_bytes(cifar_files.pickle_py2([1, 2]))
    with pytest.raises(ValueError, match=r"test: expected the entries data, .*, found list"):
        load(folder, "test")


def test_archive_with_code_in_its_pickle(tmp_path):
    trace = tmp_path / "trace"
    code = b"cposix\nsystem\n(" + cifar_files.opcodes(f"touch {trace}".encode()) + b"tR."
    folder = cifar_files.write_python(tmp_path)
    (folder / "train").write_bytes(code)
    path = cifar_files.write_archive(folder)
    with pytest.raises(ValueError, match=r"train: expected a pickle .*reference to posix\.system"):
        load(path, "train")
    assert not trace.exists()


def test_download_fetches_only_what_is_missing(tmp_path, monkeypatch):
    pytest.importorskip("pooch")
    served = python_archive(tmp_path / "served")
    with cifar_files.web_server(served.parent, monkeypatch) as (address, requests):
        url = f"{address}/{served.name}"
        near = functools.partial(cifar100.download_cifar100, url=url, known_hash=None, progress=False)
        monkeypatch.setattr(cifar100, "download_cifar100", near)
        for _ in range(2):
            assert_same(load(tmp_path / "data", "test", download=True), "test")
        assert len(requests) == 1
    with pytest.raises(FileNotFoundError, match="expected CIFAR-100"):
        load(tmp_path / "other", "test", source="npz", download=True)


READ_WITHOUT_TENSORFLOW = """
import sys
from importlib.machinery import PathFinder

class WithoutTensorflow(PathFinder):
    @classmethod
    def find_spec(cls, name, *rest):
        return None if name.partition(".")[0] == "tensorflow" else super().find_spec(name, *rest)

sys.meta_path[sys.meta_path.index(PathFinder)] = WithoutTensorflow
import hashlib
from fsg_jax.data import load_cifar100
data = load_cifar100(sys.argv[1], "train", checksum=False)
assert "tensorflow" not in sys.modules
print(hashlib.sha256(data.images.tobytes() + data.labels.tobytes()).hexdigest())
"""
PREPARE = """
import sys
from fsg_jax.data import prepare_tfds
prepare_tfds(sys.argv[1], source=sys.argv[2], checksum=False)
"""


def python(code, *arguments):
    """Run ``code`` in a new process, which may import TensorFlow: its last line of output."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip().rpartition("\n")[2]


@pytest.mark.tfds
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["binary", "binary archive"])
def test_tfds_prepares_and_reads_without_tensorflow(tmp_path, kind):
    pytest.importorskip("tensorflow_datasets")
    source = WRITERS[kind][1](tmp_path / "files")
    python(PREPARE, tmp_path / "tfds", source)
    dataset = cifar_files.arrays("train")
    digest = hashlib.sha256(dataset["images"].tobytes() + dataset["fine"].astype(np.int32).tobytes())
    assert python(READ_WITHOUT_TENSORFLOW, tmp_path / "tfds") == digest.hexdigest()
    for label in ("fine", "coarse"):
        assert_same(load(tmp_path / "tfds", "test", label=label), "test", label)
    with pytest.raises(ValueError, match=r"official test rows, found .* of 10 rows"):
        load_cifar100(tmp_path / "tfds", "test")
    info = next((tmp_path / "tfds").glob("cifar100/*/dataset_info.json"))
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(ValueError, match="expected cifar100 as array_record, found cifar100 as tfrecord"):
        load(tmp_path / "tfds", "test")


def test_tfds_refuses_an_incomplete_or_wrong_source(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("tensorflow")
    folder = cifar_files.write_binary(tmp_path / "files")
    archive = cifar_files.write_archive(folder)
    with pytest.raises(ValueError, match=r"cifar-100-binary\.tar\.gz: expected md5"):
        prepare_tfds(tmp_path / "tfds", source=archive)
    (folder / "test.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"test\.bin: no such file"):
        prepare_tfds(tmp_path / "tfds", source=folder)
    assert not (tmp_path / "tfds").exists()
