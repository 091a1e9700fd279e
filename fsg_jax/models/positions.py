"""Tables of positions for other grids of patches, by the rules of those who trained them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from fsg_jax._checks import expect, look_up
from fsg_jax.typing import AnyArray


def resize_positions(
    table: Float[AnyArray, "1 _tokens dim"], old: tuple[int, int], new: tuple[int, int], rule: str
) -> Any:
    """A table of positions for another grid of patches; rows of other tokens, which come first, stay as they are.

    Args:
      table: of NumPy, then computed in float64, or of JAX, then in its own precision and differentiable.
      old: rows and columns of the grid that the table is for.
      new: rows and columns of the grid that is wanted.
      rule: a key of `RULES`.

    Raises:
      ValueError: an unknown rule.
    """
    weights_of = look_up(RULES, rule, "rule of positions")
    if old == new:
        return table
    first = table.shape[1] - old[0] * old[1]
    grid: Any = table[0, first:].reshape(*old, -1)
    grid = grid.astype(np.float64) if isinstance(table, np.ndarray) else grid
    for weights in (weights_of(*sides).astype(grid.dtype) for sides in zip(old, new, strict=True)):
        grid = (weights @ grid.reshape(len(grid), -1)).reshape(len(weights), *grid.shape[1:]).swapaxes(0, 1)
    rows = grid.reshape(1, -1, table.shape[-1]).astype(table.dtype)
    if not first:
        return rows
    join = np.concatenate if isinstance(table, np.ndarray) else jnp.concatenate
    return join([table[:, :first], rows], axis=1)


def _linear(old: int, new: int) -> np.ndarray:
    """Weights (new, old) of linear interpolation, first on first and last on last."""
    at = np.linspace(0, old - 1, new) if new > 1 else np.zeros(1)
    return np.maximum(0, 1 - np.abs(at[:, np.newaxis] - np.arange(old)))


def _cubic(old: int, new: int, *, a: float, antialias: bool, clamp: bool) -> np.ndarray:
    """Weights (new, old) of Keys' kernel of parameter `a`; rows sum to 1.

    Args:
      old: number of positions that there are.
      new: number of positions that are wanted.
      a: slope of the kernel at 1.
      antialias: widen the kernel by the step if the grid gets coarser.
      clamp: taps beyond an end fall on it; else they are dropped.
    """
    step = max(old / new, 1.0) if antialias else 1.0
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    beyond = int(2 * step) + 2 if clamp else 0
    taps = np.arange(-beyond, old + beyond)
    x = np.abs(taps - centres[:, np.newaxis]) / step
    near, far = ((a + 2) * x - (a + 3)) * x * x + 1, a * (((x - 5) * x + 8) * x - 4)
    kernel = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    weights = kernel @ (np.clip(taps, 0, old - 1)[:, np.newaxis] == np.arange(old))
    return weights / weights.sum(1, keepdims=True)


RULES: dict[str, Callable[[int, int], np.ndarray]] = {
    "timm": partial(_cubic, a=-0.5, antialias=True, clamp=False),
    "torch": partial(_cubic, a=-0.75, antialias=False, clamp=True),
    "google": _linear,
}
"""Weights (new, old) of one axis. ``"timm"``: Keys' cubic with a = -0.5, antialiased, as timm does with its state dicts
(in float32); ``"torch"``: that of PyTorch's bicubic without antialiasing, a = -0.75, which ViG was trained with;
``"google"``: linear between the corners, ``scipy.ndimage.zoom`` of order 1, as Google does with its ViTs. (timm reads
Google's files with a third rule.)"""


def square(positions: int, name: str) -> tuple[int, int]:
    """The grid of so many positions. Raises ValueError unless it is a square."""
    side = round(positions**0.5)
    expect(side * side == positions, name, "the positions of a square grid", positions)
    return side, side
