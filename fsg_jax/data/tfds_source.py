"""CIFAR-100 as TensorFlow Datasets prepares it; reading a prepared copy needs no TensorFlow."""

import os
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from fsg_jax._files import LARGEST, check_file
from fsg_jax.data.archives import check_digest, read_files
from fsg_jax.data.cifar100_files import BINARY_FOLDER, BINARY_MD5, Cifar100Split
from fsg_jax.data.extras import import_extra

_FILES = ("train.bin", "test.bin", "fine_label_names.txt", "coarse_label_names.txt")
_CHUNK = 1000


def read_tfds(path: Path, split: str) -> Cifar100Split:
    """Reads the prepared version folder ``path``, sorted by ``id`` into the official order.

    Raises:
      ValueError: it is not prepared as array_record, has too many rows or too few, or one of its files is no file.
      ImportError: tensorflow-datasets is not installed.
    """
    for file in path.iterdir():
        check_file(file)
    builder = import_extra("tensorflow_datasets", "tfds").builder_from_directory(path)
    found = f"{builder.info.name} as {builder.info.file_format.value}"
    if found != "cifar100 as array_record":
        raise ValueError(f"{path}: expected cifar100 as array_record, found {found}; see prepare_tfds")
    records = builder.as_data_source(split)
    if (count := len(records)) * 3072 > LARGEST:
        raise ValueError(f"{path}: expected at most {LARGEST} bytes of images, found {count} images")
    images = np.zeros((count, 32, 32, 3), np.uint8)
    fine, coarse = np.zeros(count, np.uint8), np.zeros(count, np.uint8)
    row_of = {f"{split}_{row:05d}": row for row in range(count)}  # an id is e.g. train_16399
    for start in range(0, count, _CHUNK):
        for record in records.__getitems__(range(start, min(start + _CHUNK, count))):
            row = row_of.pop(record["id"].decode(), None)
            if row is None:
                raise ValueError(f"{path}: expected each of {count} ids once, found {record['id']!r}")
            images[row], fine[row], coarse[row] = record["image"], record["label"], record["coarse_label"]
    features = builder.info.features
    return Cifar100Split(images, fine, coarse, features["label"].names, features["coarse_label"].names)


def _local_builder(tfds: Any, folder: str, data_dir: Path) -> Any:
    """Makes the CIFAR-100 builder of TFDS, which reads ``folder`` in place of a download."""
    base = tfds.builder_cls("cifar100")
    registered = import_extra("tensorflow_datasets.core.registered", "tfds")

    def split_generators(self: Any, manager: Any) -> Any:
        return base._split_generators(self, SimpleNamespace(download_and_extract=lambda url: folder))

    members = {"__module__": base.__module__, "_split_generators": split_generators}
    with registered.skip_registration():
        cls = type(base)("Cifar100", (base,), members)
    return cls(data_dir=data_dir, file_format="array_record")


def prepare_tfds(
    data_dir: str | os.PathLike, *, source: str | os.PathLike | None = None, checksum: bool | str = True
) -> None:
    """Prepares CIFAR-100 as array_record with TensorFlow Datasets; needs the ``tfds`` extra.

    A copy that is already prepared is kept. TFDS writes to a temporary folder and renames it when complete.

    Args:
      data_dir: the TFDS data folder; created if missing.
      source: the official binary files: ``cifar-100-binary/``, the folder that holds it, or its .tar.gz.
        None lets TFDS download them.
      checksum: of a .tar.gz; True is the official md5, False compares nothing, a digest is compared with.

    Raises:
      FileNotFoundError: ``source`` lacks a file.
      ValueError: the archive is damaged, unsafe or has another digest.
      ImportError: TensorFlow or tensorflow-datasets is not installed.
    """
    tfds = import_extra("tensorflow_datasets", "tfds")
    import_extra("tensorflow", "tfds")
    if source is None:
        tfds.builder("cifar100", data_dir=data_dir, file_format="array_record").download_and_prepare()
        return
    source = Path(source)
    if checksum and source.is_file():
        check_digest(source, BINARY_MD5 if checksum is True else checksum)
    inner = source / BINARY_FOLDER
    files = read_files(inner if inner.is_dir() else source, _FILES, BINARY_FOLDER)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as scratch:
        (Path(folder) / BINARY_FOLDER).mkdir()
        for name, content in files.items():
            (Path(folder) / BINARY_FOLDER / name).write_bytes(content)
        _local_builder(tfds, folder, Path(data_dir)).download_and_prepare(download_dir=scratch)
