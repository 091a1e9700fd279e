"""The depthwise convolution as a sum of shifted products, for XLA's CPU backend, which has no fast kernel for it."""

from collections.abc import Iterator
from functools import partial
from math import gcd
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Pairs = tuple[tuple[int, int], ...]
Images = Float[Array, "batch _height _width channels"]
Kernel = Float[Array, "_rows _columns 1 channels"]

IMAGES_AT_ONCE = 4
"""In the gradient of the kernel: few enough to stay in the processor's cache while every tap reads them."""


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve_depthwise(x: Images, kernel: Kernel, strides: tuple[int, ...], padding: Pairs) -> Images:
    """Convolves each channel with its own kernel.

    Args:
      x: images; lower precision than float32 is summed in float32.
      kernel: of the same dtype.
      strides: (vertical, horizontal).
      padding: pixels of zeros (before, after) in each direction; negative ones crop.
    """
    return _sum_of_products(_pad(x, padding), kernel, strides)


def _forward(x: Images, kernel: Kernel, strides: tuple[int, ...], padding: Pairs) -> tuple[Images, tuple[Any, Any]]:
    return convolve_depthwise(x, kernel, strides, padding), (x, kernel)


def _backward(strides: tuple[int, ...], padding: Pairs, saved: tuple[Any, Any], g: Images) -> tuple[Images, Kernel]:
    x, kernel = saved
    before = [k - 1 - low for k, (low, _) in zip(kernel.shape[:2], padding, strict=True)]
    after = [
        size + k - 2 - (n - 1) * stride - low
        for size, k, n, stride, low in zip(x.shape[1:3], kernel.shape[:2], g.shape[1:3], strides, before, strict=True)
    ]
    spread = _pad(g, tuple(zip(before, after, strict=True)), strides)
    of_images = _sum_of_products(spread, kernel[::-1, ::-1], (1, 1))

    def of_kernel(part: tuple[Images, Images]) -> Array:
        images, g = (value.astype(_sum_dtype(value)) for value in part)
        return jnp.stack([(image * g).sum((0, 1, 2)) for _, image in _shift(_pad(images, padding), kernel, strides)])

    parts = jax.tree.map(_split, (x, g))
    return of_images, lax.map(of_kernel, parts).sum(0).reshape(kernel.shape).astype(kernel.dtype)


convolve_depthwise.defvjp(_forward, _backward)


def _sum_of_products(padded: Images, kernel: Kernel, strides: tuple[int, ...]) -> Images:
    dtype = _sum_dtype(padded)
    total: Any = sum(image.astype(dtype) * tap for tap, image in _shift(padded, kernel.astype(dtype), strides))
    return total.astype(padded.dtype)


def _shift(padded: Images, kernel: Kernel, strides: tuple[int, ...]) -> Iterator[tuple[Array, Array]]:
    """Each tap (1, 1, 1, channels) of the kernel with the pixels that it meets, row by row."""
    rows, columns = kernel.shape[:2]
    below, right = padded.shape[1] - rows, padded.shape[2] - columns
    for i in range(rows):
        for j in range(columns):
            tap = kernel[i : i + 1, j : j + 1]
            yield tap, padded[:, i : i + below + 1 : strides[0], j : j + right + 1 : strides[1]]


def _pad(x: Images, padding: Pairs, strides: tuple[int, ...] = (1, 1)) -> Images:
    """Zeros around the images and, with strides, between their pixels."""
    inner = [(low, high, stride - 1) for (low, high), stride in zip(padding, strides, strict=True)]
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *inner, (0, 0, 0)])


def _split(x: Images) -> Array:
    """`x` in parts of a few images."""
    return x.reshape(-1, gcd(len(x), IMAGES_AT_ONCE), *x.shape[1:])


def _sum_dtype(x: Array) -> Any:
    return jnp.promote_types(x.dtype, jnp.float32)
