"""The input streams of the endoscopy models: their names, order and channels (Roffo et al. 2024)."""

from collections.abc import Sequence

STREAMS: dict[str, int] = {"rgb": 3, "mask": 3, "depth": 1}
"""Channels by stream: ``rgb``, the expanded crop around the box; ``mask``, the whole frame with all but the box
zeroed (the paper's LOC); ``depth``, the crop of the depth map (the paper's DPT)."""


def order_streams(streams: Sequence[str]) -> tuple[str, ...]:
    """`streams` in the order of `STREAMS`.

    Raises:
      ValueError: no stream, an unknown one, or one twice.
    """
    names = (streams,) if isinstance(streams, str) else tuple(streams)
    if not names or len(set(names)) < len(names) or not set(names) <= set(STREAMS):
        raise ValueError(f"streams: expected one or more of {', '.join(STREAMS)}, each once; found {streams!r}")
    return tuple(name for name in STREAMS if name in names)
