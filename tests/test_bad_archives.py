"""Archives of CIFAR-100 as they should not be: damaged, doubled, huge or no files at all; one message, at once."""

import functools
import gzip
import io
import os
import pickle
import struct
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import cifar_files
import numpy as np
import pytest

from fsg_jax.data import archives, load_cifar100, load_pickle, read_archive, tfds_source

load = functools.partial(load_cifar100, checksum=False)
MEMBERS = {"top/a": b"first" * 300, "top/b": b"second" * 10}


def tar_gz(members: dict[str, bytes] = MEMBERS) -> bytes:
    return gzip.compress(tar(members), mtime=0)


def tar(members: dict[str, bytes] = MEMBERS) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def header(claimed: int, kind: bytes = tarfile.REGTYPE, name: str = "top/a", **pax: str) -> bytes:
    """A header that claims so many bytes, with nothing behind it."""
    info = tarfile.TarInfo(name)
    info.size, info.type, info.pax_headers = claimed, kind, pax
    return info.tobuf(tarfile.PAX_FORMAT if pax else tarfile.GNU_FORMAT)


def test_no_flipped_bit_of_an_archive_passes(tmp_path):
    good, path = tar_gz(), tmp_path / "a.tar.gz"
    unused = {4, 5, 6, 7, 8, 9}  # time, flags of the compression and system, which say nothing about the content
    for place in range(len(good)):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1 << place % 8]) + good[place + 1 :])
        if place not in unused:
            with pytest.raises(ValueError, match=r"a\.tar\.gz: expected a whole \.tar\.gz archive, found "):
                read_archive(path, ["a"], "top")


def test_no_flipped_bit_of_an_npz_passes(tmp_path):
    path = cifar_files.write_npz(tmp_path)
    good, expected = path.read_bytes(), cifar_files.arrays("test")
    with zipfile.ZipFile(path) as archive:
        used = [info for info in archive.infolist() if "test_" in info.filename or "names" in info.filename]
    for info in used:
        start = good.index(b"\x93NUMPY", info.header_offset)
        for place in np.random.default_rng(0).integers(start, start + info.file_size, 40):
            path.write_bytes(good[:place] + bytes([good[place] ^ 1 << place % 8]) + good[place + 1 :])
            with pytest.raises(ValueError, match=r"cifar100\.npz: expected an \.npz without pickles, found "):
                load(path, "test")
    path.write_bytes(good)
    np.testing.assert_array_equal(load(path, "test").images, expected["images"])


TAR_FAULTS: dict[str, tuple[bytes, str]] = {
    "garbage after the end": (tar_gz() + b"garbage", "Not a gzipped file"),
    "a second archive after the first": (tar_gz() + tar_gz({"top/a": b"other"}), "bytes after the end"),
    "a second archive inside": (gzip.compress(tar() + tar({"top/a": b"other"})), "bytes after the end"),
    "a damaged second header": (gzip.compress(tar()[:2048] + b"x" + tar()[2049:]), "a damaged header"),
    "a checksum cut off": (tar_gz()[:-6], "Compressed file ended"),
    "a member twice": (tar_gz()[:0] + gzip.compress(tar(MEMBERS)[:2048] + tar({"./top/a": b"2"})), "twice"),
    "11 GiB": (gzip.compress(header(11 << 30)), "more than the 536870912 bytes that are unpacked at most"),
    "27 TiB": (gzip.compress(header(27 << 40)), "more than the 536870912 bytes"),
    "27 TiB that nobody wants": (gzip.compress(header(27 << 40, name="top/z") + tar()), "more than the 536870912"),
    "2**80": (gzip.compress(header(2**80)), "more than the 536870912 bytes"),
    "a negative size": (gzip.compress(header(-1024) + tar()), "a negative size"),
    "a long name of 11 GiB": (gzip.compress(header(11 << 30, tarfile.GNUTYPE_LONGNAME)), "more than the 536870912"),
    "a long name of negative size": (gzip.compress(header(-512, tarfile.GNUTYPE_LONGNAME) + tar()), "more than"),
    "a pax header of 11 GiB": (gzip.compress(header(11 << 30, tarfile.XHDTYPE)), "more than the 536870912 bytes"),
    "a pax size": (gzip.compress(header(0, size=str(11 << 30))), "more than the 536870912 bytes"),
    "a pax sparse file": (
        gzip.compress(header(0, **{"GNU.sparse.map": "0,0", "GNU.sparse.size": str(11 << 30)}) + bytes(1024)),
        "only files and folders, found 'top/a', .* sparse",
    ),
    "a pax sparse map of words": (gzip.compress(header(0, **{"GNU.sparse.map": "x"})), "invalid literal"),
    "long names of long names": (gzip.compress(header(0, tarfile.GNUTYPE_LONGNAME) * 2000), "recursion"),
    "many members": (gzip.compress(b"".join(header(0, name=f"top/{i}") for i in range(1001))), "more than 1000 mem"),
    "a pipe in it": (gzip.compress(header(0, tarfile.FIFOTYPE) + bytes(1024)), "only files and folders"),
    "a hard link": (gzip.compress(header(0, tarfile.LNKTYPE) + bytes(1024)), "only files and folders"),
    "nothing": (b"", "empty file"),
    "no tar": (gzip.compress(b"text" * 300), "found "),
}


@pytest.mark.parametrize("name", TAR_FAULTS)
def test_an_archive_that_is_refused(tmp_path, name):
    data, message = TAR_FAULTS[name]
    path = tmp_path / "a.tar.gz"
    path.write_bytes(data)
    tracemalloc.start()
    with pytest.raises(ValueError, match=rf"a\.tar\.gz: expected .*{message}"):
        read_archive(path, ["a"], "top")
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("data", [bytes(5 << 20), tar({"top/z": bytes(5 << 20)}), tar() + bytes(5 << 20)])
def test_what_is_unpacked_is_bounded(tmp_path, monkeypatch, data):
    monkeypatch.setattr(archives, "LARGEST", 1 << 20)
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(data))
    with pytest.raises(ValueError, match="more than the 2097152 bytes that are unpacked at most"):
        read_archive(tmp_path / "a.tar.gz", ["a"], "top")


def test_several_gzip_members_and_zeros_are_one_archive(tmp_path):
    data = tar()
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(data[:700]) + gzip.compress(data[700:] + bytes(3000)) + bytes(99))
    assert read_archive(tmp_path / "a.tar.gz", ["b"], "top") == {"b": MEMBERS["top/b"]}


def test_what_an_operating_system_adds_to_an_archive_is_passed_over(tmp_path):
    added = ("._top", "top/._a", "top/.DS_Store", "__MACOSX/top/._a", "top/Thumbs.db", "top/desktop.ini")
    (tmp_path / "a.tar.gz").write_bytes(tar_gz(dict.fromkeys((*added, "top/._a"), b"\0") | MEMBERS))
    assert read_archive(tmp_path / "a.tar.gz", ["a"], "top") == {"a": MEMBERS["top/a"]}
    path = cifar_files.write_npz(tmp_path)
    with zipfile.ZipFile(path, "a") as archive:
        for name in ("__MACOSX/._test_images.npy", ".DS_Store"):
            archive.writestr(name, b"\0")
    assert len(load(path, "test")) == 10


def npy(descr: str, shape: tuple[int, ...], content: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n".encode()
    size = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + size + text + content


def entry(data: bytes, name: str = "test_images.npy", **attributes: int) -> Callable[[Path], None]:
    """Writes an .npz in which one member is `data`; `attributes` are changed in its entry in the directory."""

    def write(path: Path) -> None:
        content = {k: v for k, v in cifar_files.npz_content().items() if f"{k}.npy" != name}
        np.savez(path, **content)
        with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
            info = zipfile.ZipInfo(name)
            archive.writestr(info, data, zipfile.ZIP_DEFLATED)
            for key, value in attributes.items():
                setattr(info, key, value)

    return write


def patched(place: int, value: bytes) -> Callable[[Path], None]:
    """Changes bytes of an entry in the directory of an .npz, and where they lie in its header."""

    def write(path: Path) -> None:
        data = bytearray(cifar_files.write_npz(path.parent / "other").read_bytes())
        name = b"test_images.npy"
        for at in (data.rindex(name) - 46 + place, data.index(name) - 30 + place - 2):
            data[at : at + len(value)] = value
        path.write_bytes(data)

    return write


def again(name: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        np.savez(path, **cifar_files.npz_content())
        with (
            zipfile.ZipFile(path, "a") as archive,
            pytest.warns(UserWarning, match="Duplicate") if "npy" in name else open(os.devnull),
        ):
            archive.writestr(name, b"2")

    return write


def bytes_of(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(change(cifar_files.write_npz(path.parent / "other").read_bytes()))

    return write


def compressed(method: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w", method) as archive:
            archive.writestr("test_images.npy", bytes(1000))

    return write


def changed(**arrays: np.ndarray) -> Callable[[Path], None]:
    return lambda path: np.savez(path, **cifar_files.npz_content() | arrays)


NPZ_FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "empty": (bytes_of(lambda data: b""), "not a zip file"),
    "bytes before": (bytes_of(lambda data: b"garbage" + data), "other bytes before"),
    "two archives": (bytes_of(lambda data: data + data), "other bytes before"),
    "an empty entry": (entry(b""), "EOF: reading magic string"),
    "cut entry": (entry(npy("'|u1'", (10, 32, 32, 3), bytes(100))), r"uint8 \(10, 32, 32, 3\) in \d+ bytes"),
    "bytes after the array": (entry(npy("'|u1'", (1, 32, 32, 3), bytes(3073))), "bytes after the array"),
    "1 TiB": (entry(npy("'|u1'", (2**40,))), r"uint8 \(1099511627776,\) in \d+ bytes"),
    "2**70": (entry(npy("'|u1'", (2**70,), version=(2, 0))), "uint8 "),
    "2**70, version 3": (entry(npy("'|u1'", (2**70,), version=(3, 0))), "uint8 "),
    "many empty texts": (entry(npy("'<U0'", (2**40,)), "fine_names.npy"), r"<U0 \(1099511627776,\) in"),
    "a negative shape": (entry(npy("'|u1'", (-1,))), "found "),
    "an unknown version": (entry(npy("'|u1'", (3,), version=(9, 9))), "found "),
    "a long header": (entry(b"\x93NUMPY\2\0" + struct.pack("<I", 2**32 - 1) + bytes(99)), "found EOF"),
    "a deep header": (entry(npy("[" * 3000 + "]" * 3000, (1,))), "found "),
    "a pickle": (entry(pickle.dumps([1])), "found the magic string"),
    "objects": (changed(test_fine=np.array([[1]] * 10, object)), "found "),
    "twice": (again("test_images.npy"), "test_images twice"),
    "twice, once without .npy": (again("test_images"), "test_images twice"),
    "11 GiB in the directory": (patched(24, struct.pack("<I", 2**32 - 2)), "more than the 268435456 bytes"),
    "encrypted": (patched(8, b"\1\0"), "encrypted"),
    "an unknown compression": (patched(10, b"\x63\0"), "another compression"),
    "bzip2": (compressed(zipfile.ZIP_BZIP2), "another compression"),
    "lzma": (compressed(zipfile.ZIP_LZMA), "another compression"),
}
CONTENT_FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "structured names": (changed(fine_names=np.zeros(100, [("a", "i4")])), "fine names: expected 100 different texts"),
    "names of bytes": (changed(fine_names=np.array(cifar_files.FINE_NAMES, "S")), "names: expected 100 different tex"),
    "one name": (changed(coarse_names=np.array("apple")), "coarse names: expected 20, found no list"),
    "a table of names": (changed(coarse_names=np.full((20, 2), "a")), "coarse names: expected 20, found no list"),
    "a name twice": (changed(coarse_names=np.full(20, "a")), "coarse names: expected 20 different texts"),
    "one label": (changed(test_fine=np.int64(3)), r"fine labels: expected integers .*, found int64 \(\)"),
    "structured labels": (changed(test_fine=np.zeros(10, [("a", "i4")])), "fine labels: expected integers"),
    "durations": (changed(test_fine=np.zeros(10, "m8[s]")), "fine labels: expected integers"),
    "structured images": (changed(test_images=np.zeros((10, 32, 32, 3), "u1,u1")), "images: expected uint8"),
    "one number": (changed(test_images=np.uint8(1)), r"images: expected shape .*, found \(\)"),
}


@pytest.mark.parametrize("name", [*NPZ_FAULTS, *CONTENT_FAULTS])
def test_an_npz_that_is_refused(tmp_path, name):
    write, message = (NPZ_FAULTS | CONTENT_FAULTS)[name]
    write(tmp_path / "cifar100.npz")
    tracemalloc.start()
    expected = "expected an .npz without pickles, .*" if name in NPZ_FAULTS else ".*"
    with pytest.raises(ValueError, match=rf"cifar100\.npz.*: {expected}{message}"):
        load(tmp_path / "cifar100.npz", "test")
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


class Makes:
    """Unpickles as what a function returns."""

    def __init__(self, function: Callable, *args: object) -> None:
        self.made = function, args

    def __reduce__(self) -> tuple:
        return self.made


@pytest.mark.parametrize(
    "data",
    [
        pickle.dumps(Makes(np.ndarray, (2**40,)), 2),
        pickle.dumps([1], 2) + b"garbage",
        pickle.dumps([1], 2) * 2,
        b"\x80\x05\x96" + struct.pack("<Q", 2**62) + b".",
        b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b".",
    ],
)
def test_pickles_that_are_refused(data):
    with pytest.raises(ValueError, match="train: expected a pickle of only arrays"):
        load_pickle(data, "train")


def test_a_pickle_allocates_no_array_without_its_content():
    reconstruct = np.ndarray.__reduce__(np.empty(0))[0]
    found = load_pickle(pickle.dumps(Makes(reconstruct, np.ndarray, (11 << 30,), "B"), 4), "train")
    assert found.shape == (0,)


def nested(depth: int) -> list:
    labels: list = [0] * 10
    for _ in range(depth):
        labels = [labels] * 10
    return labels


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({b"fine_labels": nested(12)}, r"fine labels: .*, found a list of \['list'\]"),
        ({b"fine_labels": {b"a": 1}}, r"fine labels: .*, found a list of \['no list'\]"),
        ({b"fine_labels": [2**30] * 10}, "fine labels: expected 0 to 99"),
    ],
)
def test_labels_of_a_pickle(tmp_path, change, message):
    folder = cifar_files.write_python(tmp_path)
    content = {key.decode(): value for key, value in (cifar_files.split_pickle("test") | change).items()}
    (folder / "test").write_bytes(pickle.dumps(content, 4))
    with pytest.raises(ValueError, match=message):
        load(folder, "test")


def test_label_names_that_are_no_text(tmp_path):
    folder = cifar_files.write_binary(tmp_path)
    (folder / "coarse_label_names.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(ValueError, match=r"cifar-100-binary: expected UTF-8 in fine_label_names\.txt and coarse_lab"):
        load(folder, "test")


PLACES = {
    "npz": (cifar_files.write_npz, "cifar100.npz"),
    "archive": (lambda folder: cifar_files.write_archive(cifar_files.write_python(folder)), "cifar-100-python.tar.gz"),
    "python": (cifar_files.write_python, "cifar-100-python/test"),
    "meta": (cifar_files.write_python, "cifar-100-python/meta"),
    "binary": (cifar_files.write_binary, "cifar-100-binary/test.bin"),
    "names": (cifar_files.write_binary, "cifar-100-binary/fine_label_names.txt"),
}


@pytest.mark.parametrize("checksum", [True, False])
@pytest.mark.parametrize("fault", ["pipe", "folder", "8 TiB"])
@pytest.mark.parametrize("kind", PLACES)
def test_no_regular_file_is_opened(tmp_path, kind, fault, checksum):
    write, name = PLACES[kind]
    given, path = write(tmp_path), tmp_path / name
    path.unlink()
    if fault == "8 TiB":
        path.touch()
        os.truncate(path, 8 << 40)
    else:
        {"pipe": os.mkfifo, "folder": os.mkdir}[fault](path)
    expected = "at most 268435456 bytes" if fault == "8 TiB" else "a regular file"
    if fault == "folder" and given == path:
        return  # it may hold other copies
    first = "|test: expected md5" if checksum else ""
    with pytest.raises(ValueError, match=rf"({name}: expected {expected}, found {first})"):
        load_cifar100(given, "test", checksum=checksum)


def test_a_prepared_copy_that_is_refused(tmp_path, monkeypatch):
    info = SimpleNamespace(name="cifar100", file_format=SimpleNamespace(value="array_record"))
    source = SimpleNamespace(info=info, as_data_source=lambda split: range(2**40))
    module = SimpleNamespace(builder_from_directory=lambda path: source)
    monkeypatch.setattr(tfds_source, "import_extra", lambda *_: module)
    (tmp_path / "dataset_info.json").touch()
    with pytest.raises(ValueError, match="expected at most 268435456 bytes of images, found 1099511627776 images"):
        load(tmp_path, "test")
    os.mkfifo(tmp_path / "cifar100-test.array_record")
    with pytest.raises(ValueError, match="array_record: expected a regular file, found"):
        load(tmp_path, "test")


@pytest.mark.parametrize("path", ["gs://bucket/cifar100", "s3://bucket/a.npz"])
def test_a_url_is_no_path(path):
    with pytest.raises(ValueError, match=f"{path}: expected a path of a local file system, found a URL"):
        load(path, "test")
