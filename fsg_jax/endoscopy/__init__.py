"""Endoscopy: polyp datasets, frames, the inputs of the networks and the sizing of polyps."""

from fsg_jax.endoscopy.transforms import (
    ENDOSCOPY_MEAN,
    ENDOSCOPY_STD,
    box_to_mask,
    make_streams,
    paired_flip,
    paired_rotation,
)

__all__ = ["ENDOSCOPY_MEAN", "ENDOSCOPY_STD", "box_to_mask", "make_streams", "paired_flip", "paired_rotation"]
