"""Files of weights that are cut short, lie, or ask for code to be run: each is refused with one line."""

import json
import struct
import zipfile
from contextlib import suppress

import numpy as np
import pytest
import torch_format
from torch_format import name, number, numbers, pickled, text, torch_file

from fsg_jax.pretrained import torch_files, weight_files
from fsg_jax.pretrained.weight_files import read_weights

safetensors = pytest.importorskip("safetensors.numpy")

TENSORS = {
    "a.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b": np.arange(5),
    "c": np.float16([1, 2]),
    "d": np.zeros((), np.float32),
}
both_formats = pytest.mark.parametrize("legacy", [True, False])


def read(folder, content, suffix=".pth"):
    (folder / f"a{suffix}").write_bytes(content)
    return read_weights(folder / f"a{suffix}")


def npz(folder, **arrays):
    np.savez(folder / "made.npz", **arrays)
    return (folder / "made.npz").read_bytes()


def refused(folder, content, match, suffix=".pth"):
    with pytest.raises(ValueError, match=match) as error:
        read(folder, content, suffix)
    assert "\n" not in str(error.value)
    assert str(folder / f"a{suffix}") in str(error.value)


@both_formats
def test_sound_files_are_read(tmp_path, legacy):
    found = read(tmp_path, torch_file(TENSORS, legacy))
    assert list(found) == list(TENSORS)
    for key, array in TENSORS.items():
        assert found[key].dtype == array.dtype
        np.testing.assert_array_equal(found[key], array)
    turned = torch_file(TENSORS, legacy, shape=(4, 3), strides=(1, 4))
    np.testing.assert_array_equal(read(tmp_path, turned)["a.weight"], TENSORS["a.weight"].T)
    part = torch_file(TENSORS, legacy, shape=(2, 2), strides=(4, 2), offset=5)
    np.testing.assert_array_equal(read(tmp_path, part)["a.weight"], [[5, 7], [9, 11]])


def call(module, function, argument):
    """The pickle of ``module.function(argument)``."""
    return name(module, function) + b"(" + text(argument) + b"tR"


@both_formats
@pytest.mark.parametrize(
    ("module", "function"),
    [
        ("posix", "system"),
        ("os", "system"),
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("subprocess", "Popen"),
        ("torch", "load"),
        ("torch._utils", "_import_dotted_name"),
        ("torch.serialization", "load"),
        ("collections", "namedtuple"),
        ("fsg_jax._files", "write_text"),
        ("torch", "storage.FloatStorage"),
    ],
)
def test_a_pickle_that_calls_something_is_not_run(tmp_path, module, function, legacy):
    target = tmp_path / "run"
    content = torch_file(TENSORS, legacy, extra={"x": call(module, function, f"touch {target}")})
    refused(tmp_path, content, f"found a reference to {module}.{function}, which is not run")
    assert not target.exists()


@both_formats
@pytest.mark.parametrize(
    "value",
    [
        name("collections", "OrderedDict") + b"}" + text("x") + number(3) + b"sb",  # sets an attribute
        b"(" + text("module") + name("torch", "FloatStorage") + b"tQ",
        text("archive/data.pkl") + b"Q",
        name("collections", "OrderedDict") + b")\x81",  # a new object
        name("collections", "OrderedDict") + b"(" + numbers([1]) + b"tR",
        b"\x8c\x02os\x8c\x06system\x93",
        text("x") + b"r" + struct.pack("<I", 2**32 - 1),  # 64 GiB for what it remembers
    ],
)
def test_other_requests_of_a_pickle_end_the_reading(tmp_path, value, legacy):
    refused(tmp_path, torch_file(TENSORS, legacy, extra={"x": value}), "expected a (PyTorch file|state dict)")


@both_formats
@pytest.mark.parametrize(
    "lie",
    [
        {"shape": (3, 5)},
        {"shape": (2**40, 2**40), "strides": (0, 0)},
        {"shape": (13,), "strides": (0,)},
        {"offset": 1},
        {"offset": -1},
        {"strides": (4, 2)},
        {"strides": (-4, 1)},
        {"strides": (4,)},
        {"shape": (2**62,)},
        {"numel": 13},
        {"numel": 2**60},
        {"numel": -1},
        {"kind": "DoubleStorage"},
        {"kind": "ComplexFloatStorage"},
    ],
)
def test_tensors_that_lie_about_their_storage(tmp_path, lie, legacy):
    refused(tmp_path, torch_file(TENSORS, legacy, **lie), "expected")


def test_an_absurd_total_is_refused(tmp_path, monkeypatch):
    """Many tensors that share one storage: a small file, and much memory."""
    monkeypatch.setattr(torch_files, "LARGEST_TOTAL", 1000)
    shared = torch_format.tensor(TENSORS["a.weight"], "0", False)
    extra = {f"x{i}": shared for i in range(30)}
    refused(tmp_path, torch_file(TENSORS, extra=extra), "expected at most 1000 bytes of tensors")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (torch_file(TENSORS, compression=zipfile.ZIP_DEFLATED), "compressed records"),
        (torch_file(TENSORS, order=b"big"), "byte order"),
        (torch_file(TENSORS, legacy=True, order=b"big"), "byte order"),
        (torch_file(TENSORS, legacy=True) + b"\0", "bytes after its end"),
        (torch_file(TENSORS, extra={"x": text("y")}), "found other values: 'x'"),
        (torch_file({}), "found other values: none"),
        (pickled({"a": text("b")}), "no file of torch.save|expected a PyTorch file"),
        (b"", "expected a PyTorch file"),
        (b"\x80\x02" + b"(" * 10_000 + b".", "expected a PyTorch file"),
        (b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x.", "expected a PyTorch file"),
        (b"PK\x03\x04" + b"\0" * 100, "expected a PyTorch file"),
    ],
)
def test_damaged_files_of_torch(tmp_path, content, match):
    refused(tmp_path, content, match)


def test_a_record_twice(tmp_path):
    content = tmp_path / "b.pth"
    content.write_bytes(torch_file(TENSORS))
    with zipfile.ZipFile(content, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("archive/data/0", b"\0" * 48)
    refused(tmp_path, content.read_bytes(), "or one twice")


def sound_files(folder):
    return {
        "old.pth": torch_file(TENSORS, legacy=True),
        "new.pth": torch_file(TENSORS),
        "a.safetensors": safetensors.save(TENSORS),
        "a.npz": npz(folder, **TENSORS),
    }


@pytest.mark.parametrize("file", ["old.pth", "new.pth", "a.safetensors", "a.npz"])
def test_files_that_are_cut_short(tmp_path, file):
    content = sound_files(tmp_path)[file]
    suffix = file[file.index(".") :]
    read(tmp_path, content, suffix)
    for end in sorted({0, 1, 7, 8, 9, 60, *range(0, len(content), len(content) // 40), len(content) - 1}):
        with pytest.raises(ValueError, match="expected"):
            read(tmp_path, content[:end], suffix)


@pytest.mark.parametrize("file", ["old.pth", "new.pth", "a.safetensors", "a.npz"])
def test_files_with_a_byte_changed_are_read_or_refused(tmp_path, file):
    """Of the bytes of a format without a checksum some are values, and cannot be told."""
    content, generator = sound_files(tmp_path)[file], np.random.default_rng(0)
    for at in generator.integers(0, len(content), 150):
        changed = bytearray(content)
        changed[at] ^= 1 << generator.integers(8)
        with suppress(ValueError):
            assert read(tmp_path, bytes(changed), file[file.index(".") :])


def header(entries, data=b"", size=None):
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


@pytest.mark.parametrize(
    "content",
    [
        header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"\0" * 4),
        header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"\0" * 16),
        header({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, b"\0" * 8),
        header({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}, b"\0" * 8),
        header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}, b"\0" * 8),
        header({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, b"\0" * 8),
        header({k: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for k in "ab"}, b"\0" * 8),
        header({"a": {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]}}, b"\0" * 8),
        header({"a": {"dtype": "O", "shape": [1], "data_offsets": [0, 8]}}, b"\0" * 8),
        header({}, size=2**62),
        header({}, size=2**20),
        header([]),
        header({}),
    ],
)
def test_safetensors_whose_header_lies(tmp_path, content):
    refused(tmp_path, content, "expected", ".safetensors")


def test_npz_of_objects_and_of_absurd_sizes(tmp_path):
    refused(tmp_path, npz(tmp_path, a=np.array([{}], object)), "object", ".npz")
    whole = npz(tmp_path, a=np.zeros(100, np.float32))
    refused(tmp_path, whole.replace(b"(100,)", b"(900,)"), "expected a whole .npz", ".npz")
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr(
            "a.npy",
            b"\x93NUMPY\x01\x00\x76\x00"
            + b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999,), }".ljust(117)
            + b"\n",
        )
    refused(tmp_path, (tmp_path / "b.npz").read_bytes(), "which is not what it holds", ".npz")


def test_a_zip_bomb(tmp_path, monkeypatch):
    monkeypatch.setattr(weight_files, "LARGEST_TOTAL", 10**6)
    np.savez_compressed(tmp_path / "b.npz", a=np.zeros(10**6, np.float32))
    refused(tmp_path, (tmp_path / "b.npz").read_bytes(), "4000128 bytes of arrays, more than 1000000", ".npz")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".npz"])
def test_values_that_are_not_finite_are_named(tmp_path, suffix, value):
    tensors = {"fine": np.zeros(2, np.float32), "layer.weight": np.float32([0, value]), "half": np.float16([value])}
    make = {".pth": torch_file, ".safetensors": safetensors.save, ".npz": lambda t: npz(tmp_path, **t)}[suffix]
    with pytest.raises(ValueError, match="expected finite float32 values, found NaN or infinite ones in ") as error:
        read(tmp_path, make(tensors), suffix)
    assert sorted(str(error.value).partition(" ones in ")[2].split(", ")) == ["half", "layer.weight"]


def test_numbers_too_large_for_float32_and_other_kinds(tmp_path):
    refused(tmp_path, npz(tmp_path, a=np.array([1e200])), "infinite ones in a", ".npz")
    refused(tmp_path, npz(tmp_path, a=np.array(["text"])), "expected arrays of numbers, found a: <U4", ".npz")
    refused(tmp_path, npz(tmp_path, a=np.zeros(2, complex)), "expected arrays of numbers, found a: complex128", ".npz")


def test_bfloat16_of_numpy_is_known(tmp_path):
    low = np.float32([1.5, -2]).view(np.uint16)[1::2].view("V2")
    np.testing.assert_array_equal(read(tmp_path, npz(tmp_path, a=low), ".npz")["a"].astype(np.float32), [1.5, -2])


def test_other_files_are_refused(tmp_path):
    refused(tmp_path, b"", "expected a file named .safetensors, .pth, .pt, .bin, .npz, found '.h5'", ".h5")
    (tmp_path / "a.pth").mkdir()
    with pytest.raises(ValueError, match="expected a regular file"):
        read_weights(tmp_path / "a.pth")
