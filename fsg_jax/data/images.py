"""Labelled images held in memory."""

import dataclasses

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
        self._check_images()
        self._check_labels("labels", self.labels)
        if self.coarse_labels is not None:
            self._check_labels("coarse_labels", self.coarse_labels)
        if self.labels.max() >= self.num_classes:
            raise ValueError(
                f"{self.origin}: labels has a value {self.labels.max()}; "
                f"expected values below {self.num_classes}, the number of class_names"
            )

    def _check_images(self) -> None:
        shape, dtype = np.shape(self.images), np.asarray(self.images).dtype
        if dtype != np.uint8:
            raise ValueError(f"{self.origin}: images has dtype {dtype}; expected uint8")
        if len(shape) != 4 or 0 in shape[1:]:
            raise ValueError(f"{self.origin}: images has shape {shape}; expected (examples, height, width, channels)")
        if shape[0] == 0:
            raise ValueError(f"{self.origin}: images has no rows, shape {shape}; expected at least one")

    def _check_labels(self, name: str, labels: np.ndarray) -> None:
        shape, dtype = np.shape(labels), np.asarray(labels).dtype
        if dtype != np.int32:
            raise ValueError(f"{self.origin}: {name} has dtype {dtype}; expected int32")
        if shape != (len(self.images),):
            raise ValueError(f"{self.origin}: {name} has shape {shape}; expected ({len(self.images)},), one per image")
        if labels.min() < 0:
            raise ValueError(f"{self.origin}: {name} has a value {labels.min()}; expected none below 0")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_classes(self) -> int:
        """The number of classes, whether or not each has an example."""
        return len(self.class_names)

    def take(self, indices: Int[np.ndarray, " rows"] | Bool[np.ndarray, " examples"] | slice) -> "ImageDataset":
        """The rows at ``indices``, in that order, as a new dataset."""
        coarse = None if self.coarse_labels is None else self.coarse_labels[indices]
        return dataclasses.replace(self, images=self.images[indices], labels=self.labels[indices], coarse_labels=coarse)
