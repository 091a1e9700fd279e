"""The handwritten digits that come with scikit-learn."""

import numpy as np

from fsg_jax._checks import check_choice
from fsg_jax.data.extras import import_extra
from fsg_jax.data.images import ImageDataset
from fsg_jax.data.splits import split_test


def load_digits(split: str = "all") -> ImageDataset:
    """Loads 1,797 handwritten digits, 8x8x1, ten classes; needs no download.

    The original values 0..16 become ``round(value * 255 / 16)``. The data has no official split: ``"test"``
    is a fixed, stratified fifth (359 rows), see `split_test`.

    Args:
      split: ``"all"``, ``"train"`` or ``"test"``.

    Raises:
      ValueError: another split.
      ImportError: scikit-learn is not installed.

    Source: Alpaydin and Kaynak 1998, "Optical Recognition of Handwritten Digits" (its test part).
    """
    check_choice("split", split, ("all", "train", "test"))
    raw = import_extra("sklearn.datasets", "experiments").load_digits()
    images = np.rint(raw.images * (255 / 16)).astype(np.uint8)[..., None]
    names = tuple(str(name) for name in raw.target_names)
    dataset = ImageDataset(images, raw.target.astype(np.int32), names, origin="load_digits")
    if split == "all":
        return dataset
    train, test = split_test(dataset)
    return train if split == "train" else test
