"""Data: labelled images in memory, CIFAR-100 and the digits, fixed splits, and batches."""

from fsg_jax.data.archives import check_digest, download, load_pickle, read_archive
from fsg_jax.data.arrays import load_arrays
from fsg_jax.data.cifar100 import CIFAR100_MEAN, CIFAR100_STD, download_cifar100, load_cifar100
from fsg_jax.data.digits import load_digits
from fsg_jax.data.images import ImageDataset
from fsg_jax.data.loader import Loader, LoaderIterator, eval_batches, make_loader
from fsg_jax.data.prefetch import Prefetch
from fsg_jax.data.resident import chunk_rows, make_resident_steps, put_dataset
from fsg_jax.data.splits import split_test, stratified_holdout
from fsg_jax.data.tfds_source import prepare_tfds

__all__ = [
    "CIFAR100_MEAN",
    "CIFAR100_STD",
    "ImageDataset",
    "Loader",
    "LoaderIterator",
    "Prefetch",
    "check_digest",
    "chunk_rows",
    "download",
    "download_cifar100",
    "eval_batches",
    "load_arrays",
    "load_cifar100",
    "load_digits",
    "load_pickle",
    "make_loader",
    "make_resident_steps",
    "prepare_tfds",
    "put_dataset",
    "read_archive",
    "split_test",
    "stratified_holdout",
]
