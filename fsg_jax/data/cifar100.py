"""CIFAR-100 from whichever copy is at hand; every source gives the same rows in the same order."""

import os
from pathlib import Path

import numpy as np

from fsg_jax.data.archives import download as download_file
from fsg_jax.data.cifar100_files import (
    CIFAR100_URL,
    PYTHON_MD5,
    Cifar100Split,
    read_binary,
    read_npz,
    read_python,
)
from fsg_jax.data.images import ImageDataset
from fsg_jax.data.tfds_source import read_tfds

# Over all pixels of the 50,000 training images, values in [0, 1]; red, green, blue. The 5,000 rows of a
# validation holdout are part of the sample.
CIFAR100_MEAN = (0.50707516, 0.48654887, 0.44091784)
CIFAR100_STD = (0.26733429, 0.25643846, 0.27615047)

_READERS = {"npz": read_npz, "binary": read_binary, "python": read_python, "tfds": read_tfds}
# What a folder is searched for, in this order. A match that is no archive marks the folder it lies in.
_MARKERS = {
    "npz": ("cifar100.npz",),
    "binary": ("fine_label_names.txt", "cifar-100-binary/fine_label_names.txt", "cifar-100-binary.tar.gz"),
    "python": ("meta", "cifar-100-python/meta", "cifar-100-python.tar.gz"),
    "tfds": ("dataset_info.json", "cifar100/*/dataset_info.json"),
}
_ARCHIVES = (".npz", ".gz")


def _search_folder(path: Path, source: str) -> tuple[str, Path] | None:
    for name, patterns in _MARKERS.items():
        for pattern in patterns if source in ("auto", name) else ():
            for match in sorted(path.glob(pattern), reverse=True):
                return name, match if match.suffix in _ARCHIVES else match.parent
    return None


def _source_of_file(path: Path) -> str:
    if path.suffix == ".npz":
        return "npz"
    for source in ("binary", "python"):
        if path.name.endswith((".tar.gz", ".tgz")) and source in path.name:
            return source
    raise ValueError(
        f"{path}: the name does not tell the format; expected *.npz, *binary*.tar.gz or *python*.tar.gz, "
        "or source='npz', 'binary' or 'python'"
    )


def _locate(path: Path, source: str) -> tuple[str, Path] | None:
    """The (source, file or folder) to read, or None if there is none."""
    if path.is_file():
        return (_source_of_file(path) if source == "auto" else source), path
    return _search_folder(path, source)


def _not_found(path: Path, source: str) -> FileNotFoundError:
    looked = [p for name, patterns in _MARKERS.items() if source in ("auto", name) for p in patterns]
    state = "CIFAR-100 is not in this folder" if path.is_dir() else "no such file or folder"
    return FileNotFoundError(
        f"{path}: {state}; looked for {', '.join(looked)} (source={source!r}). download=True fetches "
        "the official archive"
    )


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(map(repr, choices))}")


def _check(data: Cifar100Split, path: Path) -> None:
    if data.images.shape[1:] != (32, 32, 3):
        raise ValueError(f"{path}: images have shape {data.images.shape}; expected (examples, 32, 32, 3)")
    kinds = (("fine", data.fine, data.fine_names, 100), ("coarse", data.coarse, data.coarse_names, 20))
    for kind, labels, names, classes in kinds:
        if len(names) != classes:
            raise ValueError(f"{path}: {len(names)} {kind} class names; expected {classes}")
        outside = labels[(labels < 0) | (labels >= classes)]
        if len(outside):
            raise ValueError(f"{path}: a {kind} label is {outside[0]}; expected 0 to {classes - 1}")


def download_cifar100(
    folder: str | os.PathLike,
    *,
    url: str = CIFAR100_URL,
    known_hash: str | None = PYTHON_MD5,
    progress: bool = True,
) -> Path:
    """Download the official python archive into ``folder``; see `fsg_jax.data.archives.download`."""
    return download_file(url, folder, known_hash=known_hash, progress=progress)


def load_cifar100(
    path: str | os.PathLike,
    split: str,
    *,
    source: str = "auto",
    label: str = "fine",
    checksum: bool | str = True,
    download: bool = False,
) -> ImageDataset:
    """CIFAR-100: 50,000 training or 10,000 test images, 32x32x3, in the official order.

    Args:
      path: an official folder or .tar.gz (python or binary), an .npz, a TFDS ``data_dir`` prepared by
        `prepare_tfds`, or a folder that holds any of these.
      split: ``"train"`` or ``"test"``.
      source: ``"python"``, ``"binary"``, ``"npz"``, ``"tfds"``, or ``"auto"``: the first one found in the
        order npz, binary, python, tfds.
      label: ``"fine"`` (100 classes) or ``"coarse"`` (20).
      checksum: True compares the official archives and pickles with their md5, and every other source with
        the sha256 of the official arrays. False compares nothing. A digest, ``"md5:<hex>"`` or
        ``"sha256:<hex>"``, is that of the archive or .npz.
      download: where nothing is found, download the official python archive into ``path`` first.

    Raises:
      FileNotFoundError: nothing found; the message lists what was looked for.
      ValueError: an unknown choice, or a file that is damaged, cut short, unsafe or not CIFAR-100.

    Source: Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images".
    """
    _check_choice("split", split, ("train", "test"))
    _check_choice("source", source, ("auto", *_READERS))
    _check_choice("label", label, ("fine", "coarse"))
    path = Path(path)
    found = _locate(path, source)
    if found is None and download and source in ("auto", "python"):
        found = "python", download_cifar100(path)
    if found is None:
        raise _not_found(path, source)
    source, path = found
    data = _READERS[source](path, split, checksum)
    _check(data, path)
    return _dataset(data, label, f"{path} ({source}, {split})")


def _dataset(data: Cifar100Split, label: str, origin: str) -> ImageDataset:
    fine, coarse = data.fine.astype(np.int32), data.coarse.astype(np.int32)
    names = data.fine_names if label == "fine" else data.coarse_names
    return ImageDataset(data.images, fine if label == "fine" else coarse, names, coarse, origin)
