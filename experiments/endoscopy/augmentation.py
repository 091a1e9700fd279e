"""From the frames of a batch to what the network is given."""

from collections.abc import Sequence

from experiments.endoscopy.polyp_config import PolypData
from fsg_jax import augment, endoscopy
from fsg_jax.typing import Transform


def train_transform(config: PolypData, streams: Sequence[str]) -> Transform:
    """Geometry shared by frame, mask and depth, then photometry of the frame, then the streams."""
    return augment.chain(
        endoscopy.box_to_mask(),
        endoscopy.paired_rotation(config.rotation),
        endoscopy.paired_flip(config.flip, config.flip),
        augment.colour_jitter(*config.jitter),
        augment.gaussian_noise(config.noise),
        make_streams(config, streams),
    )


def eval_transform(config: PolypData, streams: Sequence[str]) -> Transform:
    """The streams of the frames as they are."""
    return augment.chain(endoscopy.box_to_mask(), make_streams(config, streams))


def make_streams(config: PolypData, streams: Sequence[str]) -> Transform:
    """What the network is given, in training and in validation alike."""
    return endoscopy.make_streams(
        streams, config.input_size, expand=config.expand, circle=config.circle, keep_aspect=config.keep_aspect
    )
