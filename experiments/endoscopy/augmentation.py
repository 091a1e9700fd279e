"""From the frames of a batch to what the network is given."""

from collections.abc import Sequence
from typing import Any

from experiments.endoscopy.polyp_config import PolypData
from fsg_jax import augment, endoscopy
from fsg_jax.typing import Transform

Statistics = tuple[Sequence[float], Sequence[float]]
"""Mean and standard deviation of the channels of a frame, in [0, 1]."""

ENDOSCOPY: Statistics = (endoscopy.ENDOSCOPY_MEAN, endoscopy.ENDOSCOPY_STD)


def train_transform(config: PolypData, streams: Sequence[str], statistics: Statistics = ENDOSCOPY) -> Transform:
    """Geometry shared by frame, mask and depth, then photometry of the frame, then the streams."""
    return augment.chain(
        endoscopy.box_to_mask(),
        endoscopy.paired_rotation(config.rotation),
        endoscopy.paired_flip(config.flip, config.flip),
        augment.colour_jitter(*config.jitter),
        augment.gaussian_noise(config.noise),
        make_streams(config, streams, statistics),
    )


def eval_transform(config: PolypData, streams: Sequence[str], statistics: Statistics = ENDOSCOPY) -> Transform:
    """The streams of the frames as they are."""
    return augment.chain(endoscopy.box_to_mask(), make_streams(config, streams, statistics))


def make_streams(config: PolypData, streams: Sequence[str], statistics: Statistics) -> Transform:
    """What the network is given, in training and in validation alike."""
    options: dict[str, Any] = {"expand": config.expand, "circle": config.circle, "keep_aspect": config.keep_aspect}
    mean, std = statistics
    return endoscopy.make_streams(streams, config.input_size, mean=mean, std=std, **options)
