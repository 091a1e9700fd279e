"""The inputs of the endoscopy models: their names, order and channels (Roffo et al. 2024)."""

from collections.abc import Sequence

from fsg_jax.models.multistream import PAPER_STREAMS, get_channels

INPUT_CHANNELS: dict[str, int] = dict(PAPER_STREAMS)
"""Channels by stream: ``rgb``, the expanded crop around the box; ``mask``, the whole frame with all but the box
zeroed (the paper's LOC); ``depth``, the crop of the depth map (the paper's DPT)."""


def order_streams(streams: Sequence[str]) -> tuple[str, ...]:
    """Returns `streams` in the order of `INPUT_CHANNELS`.

    Raises:
      ValueError: there is no stream, an unknown one, or one twice.
    """
    return tuple(get_channels(streams))
