"""The file formats of CIFAR-100: the official pickles, the official binary files, and one .npz."""

import hashlib
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fsg_jax.data.archives import check_digest, read_archive, read_folder
from fsg_jax.data.pickles import load_pickle

CIFAR100_URL = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
PYTHON_FOLDER, PYTHON_MD5 = "cifar-100-python", "md5:eb9058c3a382ffc7106e4002c42a8d85"
PYTHON_FILES_MD5 = {
    "train": "md5:16019d7e3df5f24257cddd939b257f8d",
    "test": "md5:f0ef6b0ae62326f3e7ffdfab6717acfc",
    "meta": "md5:7973b15100ade9c7d40fb424638fde48",
}
BINARY_FOLDER, BINARY_MD5 = "cifar-100-binary", "md5:03b5dce01913d631647c71ecec9e9cb8"
_NAME_FILES = ("fine_label_names.txt", "coarse_label_names.txt")
# sha256 of the images (NHWC), the fine labels and the coarse labels, all uint8, one after the other.
CONTENT_SHA256 = {
    "train": "6feebb6ef7dc9d67bacd1032c289d8e237f8a4d38843e15639587727bdc33fe1",
    "test": "cb09bbaf5f8d31ea8963ebab57304ad0f94c1756f587abfef63e0fc3ceb6c888",
}
_PIXELS = 3 * 32 * 32
_ROW = 2 + _PIXELS


class Cifar100Split(NamedTuple):
    """One split as stored: images (examples, 32, 32, 3) uint8, labels (examples,), names in label order."""

    images: np.ndarray
    fine: np.ndarray
    coarse: np.ndarray
    fine_names: tuple[str, ...]
    coarse_names: tuple[str, ...]


def check_content(data: Cifar100Split, path: Path, split: str) -> None:
    """Compare the arrays with the digest of the complete official split, in the official order.

    Raises:
      ValueError: they differ.
    """
    digest = hashlib.sha256()
    for array in (data.images, data.fine.astype(np.uint8), data.coarse.astype(np.uint8)):
        digest.update(np.ascontiguousarray(array).data)
    if digest.hexdigest() != CONTENT_SHA256[split]:
        raise ValueError(
            f"{path}: the sha256 of its {len(data.images)} {split} rows is {digest.hexdigest()}, "
            f"expected {CONTENT_SHA256[split]} for the official split (checksum=False skips this test)"
        )


def _images(rows: Any, path: Path) -> np.ndarray:
    """Rows of 3,072 bytes, channels first, as (examples, 32, 32, 3)."""
    if not isinstance(rows, np.ndarray) or rows.dtype != np.uint8 or rows.shape[1:] != (_PIXELS,):
        found = f"{getattr(rows, 'dtype', type(rows).__name__)} {getattr(rows, 'shape', '')}"
        raise ValueError(f"{path}: the image data is {found}; expected uint8 (examples, {_PIXELS})")
    return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _entry(content: Any, key: str, path: Path) -> Any:
    if not isinstance(content, Mapping) or key not in content:
        found = sorted(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(f"{path}: no entry {key!r}; found {found}")
    return content[key]


def _labels(content: Any, key: str, path: Path) -> np.ndarray:
    try:
        labels = np.asarray(_entry(content, key, path))
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{path}: entry {key!r} is not a list of labels: {error}") from error
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{path}: {key!r} is {labels.dtype} {labels.shape}; expected integers (examples,)")
    return labels


def _names(content: Any, key: str, path: Path) -> tuple[str, ...]:
    return tuple(str(name) for name in _entry(content, key, path))


def _fetch(path: Path, names: tuple[str, ...], folder: str, digest: str | None) -> dict[str, bytes]:
    """The files ``names`` of a folder, or of an archive of it with this digest."""
    if path.is_dir():
        return read_folder(path, names)
    if digest:
        check_digest(path, digest)
    return read_archive(path, names, folder)


def _archive_digest(path: Path, checksum: bool | str, official: str) -> str | None:
    if isinstance(checksum, str) and path.is_dir():
        raise ValueError(f"checksum is a digest, but {path} is a folder; expected True or False")
    return checksum if isinstance(checksum, str) else (official if checksum else None)


def read_python(path: Path, split: str, checksum: bool | str) -> Cifar100Split:
    """Read the official pickles ``train``, ``test`` and ``meta``, from their folder or its .tar.gz.

    ``checksum=True`` compares the archive, or each file of the folder, with the official md5.
    """
    files = _fetch(path, (split, "meta"), PYTHON_FOLDER, _archive_digest(path, checksum, PYTHON_MD5))
    if path.is_dir() and checksum:
        for name in files:
            check_digest(path / name, PYTHON_FILES_MD5[name])
    rows, meta = (load_pickle(files[name], str(path / name)) for name in (split, "meta"))
    return Cifar100Split(
        _images(_entry(rows, "data", path / split), path / split),
        _labels(rows, "fine_labels", path / split),
        _labels(rows, "coarse_labels", path / split),
        _names(meta, "fine_label_names", path / "meta"),
        _names(meta, "coarse_label_names", path / "meta"),
    )


def read_binary(path: Path, split: str, checksum: bool | str) -> Cifar100Split:
    """Read the official binary files, from their folder or its .tar.gz.

    A row is the coarse label, the fine label and 3,072 pixels, one byte each. ``checksum=True`` compares the
    archive with the official md5; a folder, whose files have no official md5, by `check_content`.
    """
    name = f"{split}.bin"
    digest = _archive_digest(path, checksum, BINARY_MD5)
    files = _fetch(path, (name, *_NAME_FILES), BINARY_FOLDER, digest)
    size = len(files[name])
    if size % _ROW:
        raise ValueError(f"{path / name}: it has {size} bytes; expected a multiple of {_ROW}: is it cut short?")
    rows = np.frombuffer(files[name], np.uint8).reshape(-1, _ROW)
    fine_names, coarse_names = (tuple(files[names].decode().split()) for names in _NAME_FILES)
    images = _images(rows[:, 2:], path / name)
    data = Cifar100Split(images, rows[:, 1], rows[:, 0], fine_names, coarse_names)
    if path.is_dir() and checksum:
        check_content(data, path, split)
    return data


def read_npz(path: Path, split: str, checksum: bool | str) -> Cifar100Split:
    """Read ``{train,test}_{images,fine,coarse}``, ``fine_names`` and ``coarse_names`` from one .npz.

    ``checksum=True`` compares the arrays by `check_content`; a digest is that of the file.
    """
    if isinstance(checksum, str):
        check_digest(path, checksum)
    keys = (f"{split}_images", f"{split}_fine", f"{split}_coarse", "fine_names", "coarse_names")
    content = _load_npz(path, keys)
    data = Cifar100Split(
        content[f"{split}_images"],
        _labels(content, f"{split}_fine", path),
        _labels(content, f"{split}_coarse", path),
        _names(content, "fine_names", path),
        _names(content, "coarse_names", path),
    )
    if checksum is True:
        check_content(data, path, split)
    return data


def _load_npz(path: Path, keys: tuple[str, ...]) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected an .npz with {', '.join(keys)}")
    try:
        with zipfile.ZipFile(path) as archive:
            found = [name.removesuffix(".npy") for name in archive.namelist()]
        missing = [key for key in keys if key not in found]
        if not missing:
            with np.load(path, allow_pickle=False) as content:
                return {key: content[key] for key in keys}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: not a readable .npz without pickles: {error}") from error
    raise ValueError(f"{path}: no entry {', '.join(missing)}; found {', '.join(sorted(found))}")
