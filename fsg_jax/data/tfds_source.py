"""CIFAR-100 as TensorFlow Datasets prepares it; reading a prepared copy needs no TensorFlow."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fsg_jax.data.archives import check_digest, read_archive
from fsg_jax.data.cifar100_files import BINARY_FOLDER, BINARY_MD5, Cifar100Split, check_content
from fsg_jax.data.extras import import_extra

_FILES = ("train.bin", "test.bin", "fine_label_names.txt", "coarse_label_names.txt")
_CHUNK = 1000


def read_tfds(path: Path, split: str, checksum: bool | str) -> Cifar100Split:
    """Read the prepared version folder ``path``, sorted by ``id`` into the official order.

    ``checksum=True`` compares the arrays by `fsg_jax.data.cifar100_files.check_content`.

    Raises:
      ValueError: it is not prepared as array_record, or rows are missing.
      ImportError: tensorflow-datasets is not installed.
    """
    if isinstance(checksum, str):
        raise ValueError(f"checksum is a digest, but {path} is a folder; expected True or False")
    tfds = import_extra("tensorflow_datasets", "tfds")
    builder = tfds.builder_from_directory(path)
    if builder.info.name != "cifar100" or builder.info.file_format.value != "array_record":
        found = f"{builder.info.name} as {builder.info.file_format.value}"
        raise ValueError(f"{path}: prepared is {found}; expected cifar100 as array_record, see prepare_tfds")
    features = builder.info.features
    data = _stack(builder.as_data_source(split), split, path)._replace(
        fine_names=tuple(features["label"].names), coarse_names=tuple(features["coarse_label"].names)
    )
    if checksum:
        check_content(data, path, split)
    return data


def _stack(records: Any, split: str, path: Path) -> Cifar100Split:
    """All records, at the place that their ``id`` (``train_16399``) names."""
    count = len(records)
    images = np.zeros((count, 32, 32, 3), np.uint8)
    fine, coarse = np.zeros(count, np.uint8), np.zeros(count, np.uint8)
    row_of = {f"{split}_{row:05d}": row for row in range(count)}
    for start in range(0, count, _CHUNK):
        for record in records.__getitems__(range(start, min(start + _CHUNK, count))):
            row = row_of.pop(record["id"].decode(), None)
            if row is None:
                raise ValueError(f"{path}: id {record['id']!r} is unexpected or double in {count} records")
            images[row], fine[row], coarse[row] = record["image"], record["label"], record["coarse_label"]
    return Cifar100Split(images, fine, coarse, (), ())


class _LocalFiles(NamedTuple):
    """Stands where TFDS expects its download manager, when the files are here already."""

    folder: str

    def download_and_extract(self, url: str) -> str:
        return self.folder


@contextlib.contextmanager
def _binary_files(source: Path, checksum: bool | str) -> Iterator[Path]:
    """A folder that holds ``cifar-100-binary/``: ``source``, its parent, or a temporary one."""
    if source.is_dir():
        parent = source.parent if source.name == BINARY_FOLDER else source
        for name in _FILES:
            if not (parent / BINARY_FOLDER / name).is_file():
                raise FileNotFoundError(f"{parent / BINARY_FOLDER / name}: no such file")
        yield parent
        return
    if checksum:
        check_digest(source, checksum if isinstance(checksum, str) else BINARY_MD5)
    contents = read_archive(source, _FILES, BINARY_FOLDER)
    with tempfile.TemporaryDirectory() as parent_name:
        parent = Path(parent_name)
        (parent / BINARY_FOLDER).mkdir()
        for name, data in contents.items():
            (parent / BINARY_FOLDER / name).write_bytes(data)
        yield parent


def _local_builder(tfds: Any, folder: Path, data_dir: Path) -> Any:
    """The CIFAR-100 builder of TFDS, reading ``folder`` in place of a download."""
    base = tfds.builder_cls("cifar100")
    registered = import_extra("tensorflow_datasets.core.registered", "tfds")

    def split_generators(self: Any, manager: Any) -> Any:
        return base._split_generators(self, _LocalFiles(str(folder)))

    members = {"__module__": base.__module__, "_split_generators": split_generators}
    with registered.skip_registration():
        cls = type(base)("Cifar100", (base,), members)
    return cls(data_dir=data_dir, file_format="array_record")


def prepare_tfds(
    data_dir: str | os.PathLike, *, source: str | os.PathLike | None = None, checksum: bool | str = True
) -> None:
    """Prepare CIFAR-100 as array_record with TensorFlow Datasets; needs the ``tfds`` extra.

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
    with _binary_files(Path(source), checksum) as folder, tempfile.TemporaryDirectory() as scratch:
        _local_builder(tfds, folder, Path(data_dir)).download_and_prepare(download_dir=scratch)
