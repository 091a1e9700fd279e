"""Pretrained tensors for other images than those they were trained on: position tables and stems resized."""

import numpy as np

from fsg_jax._checks import check_integer, expect


def resize_positions(table: np.ndarray, old: tuple[int, int], new: tuple[int, int], rule: str) -> np.ndarray:
    """A table of positions for another grid of patches; rows of other tokens, which come first, stay as they are.

    Args:
      table: (1, tokens, dim).
      old, new: rows and columns of the grids.
      rule: ``"timm"``, Keys' cubic with a = -0.5, antialiased, as timm does with its state dicts (in float32);
        ``"google"``, linear between the corners, ``scipy.ndimage.zoom`` of order 1, as Google does with its ViTs.
        (timm reads Google's files with a third rule.)
    """
    if old == new:
        return table
    first = table.shape[1] - old[0] * old[1]
    grid = table[0, first:].reshape(*old, -1).astype(np.float64)
    for axis, (have, want) in enumerate(zip(old, new, strict=True)):
        weights = _cubic(have, want) if rule == "timm" else _linear(have, want)
        grid = np.moveaxis(np.tensordot(weights, grid, (1, axis)), 0, axis)
    grid = grid.reshape(1, -1, table.shape[-1]).astype(table.dtype)
    return np.concatenate([table[:, :first], grid], axis=1)


def _linear(old: int, new: int) -> np.ndarray:
    """Weights (new, old) of linear interpolation, first on first and last on last."""
    at = np.linspace(0, old - 1, new) if new > 1 else np.zeros(1)
    return np.maximum(0, 1 - np.abs(at[:, np.newaxis] - np.arange(old)))


def _cubic(old: int, new: int) -> np.ndarray:
    """Weights (new, old) of Keys' kernel, a = -0.5, as wide as the step if the grid gets coarser; rows sum to 1."""
    step = max(old / new, 1.0)
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    x = np.abs(np.arange(old) - centres[:, np.newaxis]) / step
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    return weights / weights.sum(1, keepdims=True)


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


def square(positions: int, name: str) -> tuple[int, int]:
    """The grid of so many positions. Raises ValueError unless it is a square."""
    side = round(positions**0.5)
    expect(side * side == positions, name, "the positions of a square grid", positions)
    return side, side
