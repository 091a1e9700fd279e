"""Augmentation of whole batches inside the jitted step: every factory returns a ``Transform``.

>>> augment = chain(random_crop(padding=4), random_flip(), to_float(), mixup(0.2, num_classes=100))
>>> batch = augment(jax.random.key(0), {"image": images, "label": labels})
"""

from fsg_jax.augment.geometry import cutout, random_crop, random_flip, resize
from fsg_jax.augment.mixing import cutmix, mixup, mixup_or_cutmix
from fsg_jax.augment.photometric import colour_jitter, gaussian_noise
from fsg_jax.augment.pipeline import chain, normalize, to_float
from fsg_jax.augment.policy import OPERATIONS, trivial_augment

__all__ = [
    "OPERATIONS",
    "chain",
    "colour_jitter",
    "cutmix",
    "cutout",
    "gaussian_noise",
    "mixup",
    "mixup_or_cutmix",
    "normalize",
    "random_crop",
    "random_flip",
    "resize",
    "to_float",
    "trivial_augment",
]
