"""Pretrained stems for images with other channels."""

import numpy as np

from fsg_jax._checks import check_integer


def adapt_stem(kernel: np.ndarray, channels: int) -> np.ndarray:
    """The first kernel (height, width, in, out) for another number of channels, by timm's rule.

    For one channel the input channels are summed: grey images have the response of colour images with equal channels.
    For others they are repeated in order and multiplied by in / channels, so that responses keep their size.

    Raises:
      ValueError: `channels` is no positive integer.
    """
    check_integer("in_channels", channels, 1)
    old = kernel.shape[2]
    if channels == old:
        return kernel
    if channels == 1:
        return kernel.sum(2, keepdims=True)
    repeated = np.take(kernel, np.arange(channels) % old, axis=2)
    return repeated * np.asarray(old / channels, kernel.dtype)
