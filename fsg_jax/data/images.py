"""Labelled images held in memory."""

import dataclasses
import math

import numpy as np
from jaxtyping import Bool, Int


@dataclasses.dataclass(frozen=True, eq=False)
class ImageDataset:
    """Images with one class each, checked on construction.

    Args:
      images: uint8 (examples, height, width, channels), values 0..255.
      labels: int32 (examples,) in [0, ``num_classes``).
      class_names: one name per class, in label order.
      coarse_labels: int32 (examples,), not negative; superclasses, where the data has them.
      origin: the file or function the rows come from; errors begin with it.

    Raises:
      ValueError: a wrong dtype, rank, length or label, or no row at all.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    coarse_labels: np.ndarray | None = None
    origin: str = "ImageDataset"

    def __post_init__(self) -> None:
        shape = np.shape(self.images)
        fits = len(shape) == 4 and 0 not in shape
        self._check("images", self.images, "uint8", "(examples, height, width, channels), all at least 1", fits)
        for name, classes in (("labels", self.num_classes), ("coarse_labels", math.inf)):
            labels = getattr(self, name)
            if labels is not None:
                fits = np.shape(labels) == shape[:1]
                self._check(name, labels, "int32", f"({shape[0]},), one per image", fits)
                outside = labels[(labels < 0) | (labels >= classes)]
                if outside.size:
                    raise ValueError(f"{self.origin}: {name}: expected values in [0, {classes}), found {outside[0]}")

    def _check(self, name: str, array: np.ndarray, dtype: str, shape: str, fits: bool) -> None:
        if np.asarray(array).dtype != dtype:
            raise ValueError(f"{self.origin}: {name}: expected {dtype}, found {np.asarray(array).dtype}")
        if not fits:
            raise ValueError(f"{self.origin}: {name}: expected shape {shape}, found {np.shape(array)}")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_classes(self) -> int:
        """The number of classes, whether or not each has an example."""
        return len(self.class_names)

    def take(self, indices: Int[np.ndarray, " rows"] | Bool[np.ndarray, " examples"] | slice) -> "ImageDataset":
        """Returns the rows at ``indices``, in that order, as a new dataset."""
        coarse = None if self.coarse_labels is None else self.coarse_labels[indices]
        return dataclasses.replace(self, images=self.images[indices], labels=self.labels[indices], coarse_labels=coarse)
