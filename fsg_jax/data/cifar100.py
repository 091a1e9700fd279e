"""CIFAR-100 from whichever copy is at hand; every source gives the same rows in the same order."""

import os
from pathlib import Path

from fsg_jax._checks import check_choice
from fsg_jax._files import LARGEST, check_file, local
from fsg_jax.data import archives
from fsg_jax.data.cifar100_files import CIFAR100_URL, PYTHON_MD5, READERS, check_content, check_split, official_digests
from fsg_jax.data.images import ImageDataset
from fsg_jax.data.tfds_source import read_tfds

# Over all pixels of the 50,000 training images, values in [0, 1]; red, green, blue. The 5,000 rows of a
# validation holdout are part of the sample.
CIFAR100_MEAN = (0.50707516, 0.48654887, 0.44091784)
"""Of the training images in [0, 1], by channel."""
CIFAR100_STD = (0.26733429, 0.25643846, 0.27615047)
"""Of the training images in [0, 1], by channel."""

_READERS = {**READERS, "tfds": read_tfds}
# What a folder is searched for, in this order. A match that is no archive marks the folder it lies in.
_MARKERS = {
    "npz": ("cifar100.npz",),
    "binary": ("fine_label_names.txt", "cifar-100-binary/fine_label_names.txt", "cifar-100-binary.tar.gz"),
    "python": ("meta", "cifar-100-python/meta", "cifar-100-python.tar.gz"),
    "tfds": ("dataset_info.json", "cifar100/*/dataset_info.json"),
}


def download_cifar100(
    folder: str | os.PathLike, *, url: str = CIFAR100_URL, known_hash: str | None = PYTHON_MD5, progress: bool = True
) -> Path:
    """Downloads the official python archive into ``folder``; see `fsg_jax.data.archives.download`."""
    return archives.download(url, folder, known_hash=known_hash, progress=progress)


def load_cifar100(
    path: str | os.PathLike,
    split: str,
    *,
    source: str = "auto",
    label: str = "fine",
    checksum: bool | str = True,
    download: bool = False,
) -> ImageDataset:
    """Loads CIFAR-100: 50,000 training or 10,000 test images, 32x32x3, in the official order.

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
    check_choice("split", split, ("train", "test"))
    check_choice("source", source, ("auto", *_READERS))
    check_choice("label", label, ("fine", "coarse"))
    source, path = _locate(local(path), source, download)
    if isinstance(checksum, str) and path.is_dir():
        raise ValueError(f"checksum: expected True or False for the folder {path}, found the digest {checksum!r}")
    digests = official_digests(path, source, split) if checksum is True else {path: checksum} if checksum else {}
    for file, digest in digests.items():
        archives.check_digest(file, digest, LARGEST)
    data = check_split(_READERS[source](path, split), path)
    if checksum and not digests:
        check_content(data, path, split)
    labels, names = (data.fine, data.fine_names) if label == "fine" else (data.coarse, data.coarse_names)
    return ImageDataset(data.images, labels, names, data.coarse, f"{path} ({source}, {split})")


def _locate(path: Path, source: str, download: bool) -> tuple[str, Path]:
    """Finds what to read: its source, and its file or folder."""
    if path.exists() and not path.is_dir():
        check_file(path)
        return (_source_of_file(path) if source == "auto" else source), path
    markers = {pattern: name for name in _MARKERS if source in ("auto", name) for pattern in _MARKERS[name]}
    for pattern, name in markers.items():
        for match in sorted(path.glob(pattern), reverse=True):
            return name, match if match.suffix in (".npz", ".gz") else match.parent
    if download and source in ("auto", "python"):
        return "python", download_cifar100(path)
    raise FileNotFoundError(
        f"{path}: expected CIFAR-100 (source={source!r}: {', '.join(markers)}), found "
        f"{'none of these' if path.is_dir() else 'no such file or folder'}; download=True fetches the official archive"
    )


def _source_of_file(path: Path) -> str:
    if path.suffix == ".npz":
        return "npz"
    for source in ("binary", "python"):
        if path.name.endswith((".tar.gz", ".tgz")) and source in path.name:
            return source
    raise ValueError(
        f"{path}: expected the name *.npz, *binary*.tar.gz or *python*.tar.gz, found another, which does not tell the "
        "format; give source='npz', 'binary' or 'python'"
    )
