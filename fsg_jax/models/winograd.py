"""Convolutions by kernels of 3x3 with fewer multiplications: Winograd's minimal filtering F(2x2, 3x3).

Lavin and Gray 2015, "Fast Algorithms for Convolutional Neural Networks", arXiv 1509.09308. The four pixels of a tile of
2x2 need 36 multiplications a pair of channels; from the 4x4 pixels that they see, transformed, 16 suffice. Over all
tiles and channels these are 16 products of matrices, which XLA's CPU backend computes at full speed. Rounding errors in
float32 (root mean square, 128 to 512 channels) were 0.6 to 1.5 times those of XLA's convolution.
"""

from collections.abc import Sequence
from functools import partial

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

Images = Float[Array, "batch _height _width _channels"]
Kernel = Float[Array, "3 3 _in _out"]
Tiles = Float[Array, "tiles _channels"]
Pairs = tuple[tuple[int, int], ...]

# y = A^T [(G w G^T) * (B^T x B)] A of a tile, equations 8 and 10 of the paper.
OF_IMAGES = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
OF_KERNEL = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
OF_RESULT = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])


def convolve_winograd(x: Images, kernel: Kernel, padding: Pairs) -> Images:
    """The convolution of stride 1 of images by a kernel of 3x3.

    Args:
      x: images.
      kernel: (3, 3, in, out).
      padding: zeros before and after rows and columns, none negative.

    Returns:
      Images of height + padding - 2 and width + padding - 2, at least one pixel.
    """
    size = [n + sum(pair) - 2 for n, pair in zip(x.shape[1:3], padding, strict=True)]
    seen, kernels = _transform(OF_IMAGES, _tiles_seen(x, padding)), _transform_kernel(kernel)
    products = [[_multiply(seen[i][j], kernels[4 * i + j]) for j in range(4)] for i in range(4)]
    rows, columns = (-(-n // 2) for n in size)
    tiles = [[y.reshape(len(x), rows, columns, -1) for y in row] for row in _transform(OF_RESULT, products)]
    y = jnp.stack([jnp.stack(row, 3) for row in tiles], 2)  # (batch, rows, 2, columns, 2, channels)
    return y.reshape(len(x), 2 * rows, 2 * columns, -1)[:, : size[0], : size[1]]


def _tiles_seen(x: Images, padding: Pairs) -> list[list[Tiles]]:
    """By row and column within the 4x4 pixels that a tile sees: these pixels of all tiles."""
    even = [(low, high + (n + low + high) % 2) for n, (low, high) in zip(x.shape[1:3], padding, strict=True)]
    x = jnp.pad(x, [(0, 0), *even, (0, 0)])
    height, width = (n - 3 for n in x.shape[1:3])
    return [[x[:, i : i + height : 2, j : j + width : 2].reshape(-1, x.shape[-1]) for j in range(4)] for i in range(4)]


def _transform_kernel(kernel: Kernel) -> Float[Array, "16 _in _out"]:
    """``G w G^T``, by one product."""
    matrix = jnp.asarray(np.kron(OF_KERNEL, OF_KERNEL), kernel.dtype)
    return _multiply(matrix, kernel.reshape(9, -1)).reshape(16, *kernel.shape[2:])


def _transform(matrix: np.ndarray, parts: Sequence[Sequence[Array]]) -> list[list[Array]]:
    """``M P M^T`` where the entries of P are arrays."""
    columns = [_combine(matrix, [row[j] for row in parts]) for j in range(len(parts[0]))]
    return [_combine(matrix, [column[i] for column in columns]) for i in range(len(matrix))]


def _combine(matrix: np.ndarray, parts: Sequence[Array]) -> list[Array]:
    """``M p`` of a vector of arrays, without those whose factor is 0."""
    rows = ([part if m == 1 else float(m) * part for m, part in zip(row, parts, strict=True) if m] for row in matrix)
    return [sum(terms[1:], terms[0]) for terms in rows]


_multiply = partial(lax.dot, precision="highest")
