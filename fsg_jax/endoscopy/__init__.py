"""Endoscopy: polyp datasets, frames, the inputs of the networks and the sizing of polyps."""

from fsg_jax.endoscopy.paired import box_to_mask, paired_flip, paired_rotation
from fsg_jax.endoscopy.stream_images import ENDOSCOPY_MEAN, ENDOSCOPY_STD, make_streams

__all__ = ["ENDOSCOPY_MEAN", "ENDOSCOPY_STD", "box_to_mask", "make_streams", "paired_flip", "paired_rotation"]
