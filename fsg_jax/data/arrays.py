"""Labelled images of one's own in one .npz file, by split."""

from pathlib import Path

import numpy as np

from fsg_jax._checks import expect
from fsg_jax._files import check_file
from fsg_jax.data.images import ImageDataset

LARGEST = 8 << 30
"""Bytes of a file."""


def load_arrays(path: Path, split: str) -> ImageDataset:
    """Reads ``{split}_images``, ``{split}_labels`` and ``class_names``, as `experiments.crops` writes them.

    Args:
      path: the .npz file.
      split: ``"train"``, ``"validation"``, ``"test"``, or another name that the file has.

    Raises:
      ValueError: the file is damaged, an array is missing, or is not as `ImageDataset` wants it.
      OSError: there is no such file.
    """
    check_file(path, LARGEST)
    wanted = (f"{split}_images", f"{split}_labels", "class_names")
    try:
        with np.load(path, allow_pickle=False) as archive:
            names, arrays = list(archive), {name: archive[name] for name in wanted if name in archive}
    except Exception as error:  # a damaged archive can raise nearly anything
        raise ValueError(f"{path}: expected an .npz without pickles, found {error}") from error
    for name in wanted:
        expect(name in arrays, f"{path}: {name}", "an array", f"none among {sorted(names)}")
    images, labels, classes = (arrays[name] for name in wanted)
    right = classes.ndim == 1 and classes.dtype.kind == "U"
    expect(right, f"{path}: class_names", "one text a class", f"{classes.dtype} {classes.shape}")
    return ImageDataset(images, labels, tuple(map(str, classes)), origin=f"{path}: {split}")
