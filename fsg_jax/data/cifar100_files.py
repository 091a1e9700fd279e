"""The file formats of CIFAR-100: the official pickles, the official binary files, and one .npz."""

import hashlib
import math
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from fsg_jax._files import LARGEST, check_file, is_system_file
from fsg_jax.data.archives import load_pickle, read_files

CIFAR100_URL = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
PYTHON_MD5 = "md5:eb9058c3a382ffc7106e4002c42a8d85"
BINARY_MD5 = "md5:03b5dce01913d631647c71ecec9e9cb8"
PYTHON_FILES_MD5 = {
    "train": "md5:16019d7e3df5f24257cddd939b257f8d",
    "test": "md5:f0ef6b0ae62326f3e7ffdfab6717acfc",
    "meta": "md5:7973b15100ade9c7d40fb424638fde48",
}
PYTHON_FOLDER, BINARY_FOLDER = "cifar-100-python", "cifar-100-binary"
CONTENT_SHA256 = {
    "train": "6feebb6ef7dc9d67bacd1032c289d8e237f8a4d38843e15639587727bdc33fe1",
    "test": "cb09bbaf5f8d31ea8963ebab57304ad0f94c1756f587abfef63e0fc3ceb6c888",
}
"""sha256 of the images (NHWC), the fine labels and the coarse labels, all uint8, one after the other."""

_PIXELS = 3 * 32 * 32
_ROW = 2 + _PIXELS


class Cifar100Split(NamedTuple):
    """One split: images (examples, 32, 32, 3) uint8, integer labels (examples,), sequences of names in label order."""

    images: np.ndarray
    fine: np.ndarray
    coarse: np.ndarray
    fine_names: Any
    coarse_names: Any


def read_python(path: Path, split: str) -> Cifar100Split:
    """Reads the official pickles ``train`` or ``test`` and ``meta``, from their folder or its .tar.gz."""
    files = read_files(path, (split, "meta"), PYTHON_FOLDER)
    rows, meta = (load_pickle(files[name], str(path / name)) for name in (split, "meta"))
    images, *labels = _entries(rows, ("data", "fine_labels", "coarse_labels"), path / split)
    names = _entries(meta, ("fine_label_names", "coarse_label_names"), path / "meta")
    return Cifar100Split(_images(images, path / split), *labels, *names)


def read_binary(path: Path, split: str) -> Cifar100Split:
    """Reads the official binary files, from their folder or its .tar.gz.

    A row is the coarse label, the fine label and 3,072 pixels, one byte each.
    """
    name, *names = f"{split}.bin", "fine_label_names.txt", "coarse_label_names.txt"
    files = read_files(path, (name, *names), BINARY_FOLDER)
    size = len(files[name])
    if size % _ROW:
        raise ValueError(f"{path / name}: expected a multiple of {_ROW} bytes, found {size}: cut short?")
    rows = np.frombuffer(files[name], np.uint8).reshape(-1, _ROW)
    try:
        fine_names, coarse_names = (files[n].decode().split() for n in names)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8 in {' and '.join(names)}, found {error}") from error
    return Cifar100Split(_images(rows[:, 2:], path / name), rows[:, 1], rows[:, 0], fine_names, coarse_names)


def read_npz(path: Path, split: str) -> Cifar100Split:
    """Reads ``{train,test}_{images,fine,coarse}``, ``fine_names`` and ``coarse_names`` from one .npz."""
    keys = (f"{split}_images", f"{split}_fine", f"{split}_coarse", "fine_names", "coarse_names")
    check_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = _members(archive)
            if sum(members[key].file_size for key in keys if key in members) > LARGEST:
                raise ValueError(f"more than the {LARGEST} bytes that are unpacked at most")
            arrays = {key: _read_array(archive, members[key]) if key in keys else None for key in members}
    except Exception as error:  # a damaged archive can raise nearly anything
        raise ValueError(f"{path}: expected an .npz without pickles, found {error}") from error
    return Cifar100Split(*_entries(arrays, keys, path))


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The arrays of an .npz by name."""
    infos = [info for info in archive.infolist() if not any(map(is_system_file, PurePosixPath(info.filename).parts))]
    names = Counter(info.filename.removesuffix(".npy") for info in infos)
    if twice := [name for name, times in names.items() if times > 1]:
        raise ValueError(f"{twice[0]} twice")
    if any(info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for info in infos):
        raise ValueError("another compression than that of NumPy")
    if min((info.header_offset for info in archive.infolist()), default=0):
        raise ValueError("other bytes before the archive")
    return dict(zip(names, infos, strict=True))


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """Reads an array to the end of its member, where the checksum is compared."""
    with archive.open(member) as file:
        one = np.lib.format.read_magic(file) == (1, 0)
        read = np.lib.format.read_array_header_1_0 if one else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    if math.prod(shape) * max(dtype.itemsize, 1) > member.file_size:
        raise ValueError(f"{member.filename}: {dtype} {shape} in {member.file_size} bytes")
    with archive.open(member) as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
        if file.read(1):
            raise ValueError(f"{member.filename}: bytes after the array")
    return array


READERS = {"npz": read_npz, "binary": read_binary, "python": read_python}
"""``read(path, split)`` by the name of the format; what it gives is not checked yet."""


def official_digests(path: Path, source: str, split: str) -> dict[Path, str]:
    """Digests of the official archive `path`, or of the files in the folder `path`, where there are any."""
    if path.is_dir():
        return {path / name: PYTHON_FILES_MD5[name] for name in (split, "meta")} if source == "python" else {}
    archives = {"binary": BINARY_MD5, "python": PYTHON_MD5}
    return {path: archives[source]} if source in archives else {}


def check_split(data: Cifar100Split, path: Path) -> Cifar100Split:
    """Checks what was read from `path`, whatever the format.

    Returns:
      The split, its labels int32 and its names tuples of str.

    Raises:
      ValueError: images of another shape, labels out of range or not integers, or too many or too few names.
    """
    if data.images.shape[1:] != (32, 32, 3):
        raise ValueError(f"{path}: images: expected shape (examples, 32, 32, 3), found {data.images.shape}")
    fine, fine_names = _check_labels(data.fine, data.fine_names, 100, f"{path}: fine")
    coarse, coarse_names = _check_labels(data.coarse, data.coarse_names, 20, f"{path}: coarse")
    return Cifar100Split(data.images, fine, coarse, fine_names, coarse_names)


def check_content(data: Cifar100Split, path: Path, split: str) -> None:
    """Compares the arrays with the digest of the complete official split, in the official order.

    Raises:
      ValueError: they differ.
    """
    digest = hashlib.sha256()
    for array in (data.images, data.fine.astype(np.uint8), data.coarse.astype(np.uint8)):
        digest.update(np.ascontiguousarray(array).data)
    if digest.hexdigest() != CONTENT_SHA256[split]:
        raise ValueError(
            f"{path}: expected sha256 {CONTENT_SHA256[split]}, that of the official {split} rows, found "
            f"{digest.hexdigest()} of {len(data.images)} rows (checksum=False skips this test)"
        )


def _entries(content: Any, keys: Sequence[str], path: Path) -> list[Any]:
    if not isinstance(content, Mapping) or not set(keys) <= set(content):
        has = (
            [key for key in content if isinstance(key, str)]
            if isinstance(content, Mapping)
            else [type(content).__name__]
        )
        found = ", ".join(has)[:200]
        raise ValueError(f"{path}: expected the entries {', '.join(keys)}, found {found}")
    return [content[key] for key in keys]


def _images(rows: Any, path: Path) -> np.ndarray:
    """Rows of 3,072 bytes, channels first, as (examples, 32, 32, 3)."""
    if not isinstance(rows, np.ndarray) or rows.dtype != np.uint8 or rows.shape[1:] != (_PIXELS,):
        found = f"{getattr(rows, 'dtype', type(rows).__name__)} {getattr(rows, 'shape', '')}"
        raise ValueError(f"{path}: images: expected uint8 (examples, {_PIXELS}), found {found}")
    return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _check_labels(labels: Any, names: Any, classes: int, origin: str) -> tuple[np.ndarray, tuple[str, ...]]:
    if not isinstance(labels, np.ndarray):
        if other := {type(label).__name__ for label in labels} - {"int"} if isinstance(labels, list) else {"no list"}:
            raise ValueError(f"{origin} labels: expected integers (examples,), found a list of {sorted(other)}")
        labels = np.array(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(f"{origin} labels: expected integers (examples,), found {labels.dtype} {labels.shape}")
    outside = labels[(labels < 0) | (labels >= classes)]
    if len(outside):
        raise ValueError(f"{origin} labels: expected 0 to {classes - 1}, found {outside[0]}")
    listed = names.ndim == 1 if isinstance(names, np.ndarray) else isinstance(names, list | tuple)
    if not listed or len(names) != classes:
        raise ValueError(f"{origin} names: expected {classes}, found {len(names) if listed else 'no list'}")
    if not all(isinstance(name, str) for name in names) or len(set(names)) < classes:
        raise ValueError(f"{origin} names: expected {classes} different texts, found {names[:3]} ...")
    return labels.astype(np.int32), tuple(map(str, names))
