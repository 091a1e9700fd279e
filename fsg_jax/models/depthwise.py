"""The depthwise convolution as a sum of shifted products, for XLA's CPU backend, which has no fast kernel for it."""

from collections.abc import Iterator
from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

Pairs = tuple[tuple[int, int], ...]
Images = Float[Array, "batch _height _width channels"]
Kernel = Float[Array, "_rows _columns 1 channels"]

IMAGES_AT_ONCE, PIXELS_AT_ONCE = 4, 80_000
"""In the gradient of the kernel: few enough to stay in the processor's cache while every tap reads them. At least so
many images, or so many of small ones that their pixels, counted by channel, are as many as this."""


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve_depthwise(x: Images, kernel: Kernel, strides: tuple[int, ...], padding: Pairs) -> Images:
    """Convolves each channel with its own kernel.

    Args:
      x: images; lower precision than float32 is summed in float32.
      kernel: of the same dtype.
      strides: (vertical, horizontal).
      padding: pixels of zeros (before, after) in each direction; negative ones crop.
    """
    return _sum_of_products(_pad(x, padding), kernel, strides, padding)


def _forward(x: Images, kernel: Kernel, strides: tuple[int, ...], padding: Pairs) -> tuple[Images, tuple[Any, Any]]:
    return convolve_depthwise(x, kernel, strides, padding), (x, kernel)


def _backward(strides: tuple[int, ...], padding: Pairs, saved: tuple[Any, Any], g: Images) -> tuple[Images, Kernel]:
    x, kernel = saved
    before = [k - 1 - low for k, (low, _) in zip(kernel.shape[:2], padding, strict=True)]
    after = [
        size + k - 2 - (n - 1) * stride - low
        for size, k, n, stride, low in zip(x.shape[1:3], kernel.shape[:2], g.shape[1:3], strides, before, strict=True)
    ]
    around = tuple(zip(before, after, strict=True))
    of_images = _sum_of_products(_pad(g, around, strides), kernel[::-1, ::-1], (1, 1), around)

    def of_kernel(part: tuple[Images, Images]) -> Array:
        images, g = (value.astype(_sum_dtype(value)) for value in part)
        ones = jnp.ones((1, g.size // g.shape[-1]), g.dtype)  # a sum as a matrix product, which is faster
        sums = {
            tap: lax.dot(ones, (met * g).reshape(-1, g.shape[-1]), precision=lax.Precision.HIGHEST)
            for tap, met in _shift(_pad(images, padding), kernel, strides, padding)
        }
        none = jnp.zeros((1, g.shape[-1]), g.dtype)
        return jnp.concatenate([sums.get(tap, none) for tap in np.ndindex(kernel.shape[:2])])

    most = min(len(g), max(IMAGES_AT_ONCE, PIXELS_AT_ONCE * len(g) // g.size))
    count = max(n for n in range(1, most + 1) if len(g) % n == 0)
    parts = jax.tree.map(lambda images: images.reshape(-1, count, *images.shape[1:]), (x, g))
    return of_images, lax.map(of_kernel, parts).sum(0).reshape(kernel.shape).astype(kernel.dtype)


convolve_depthwise.defvjp(_forward, _backward)


def _sum_of_products(padded: Images, kernel: Kernel, strides: tuple[int, ...], padding: Pairs) -> Images:
    dtype = _sum_dtype(padded)
    taps = kernel.astype(dtype)[:, :, None, None]
    met = [taps[tap] * pixels.astype(dtype) for tap, pixels in _shift(padded, kernel, strides, padding)]
    size = [(n - k) // s + 1 for n, k, s in zip(padded.shape[1:3], kernel.shape[:2], strides, strict=True)]
    return sum(met, jnp.zeros((len(padded), *size, padded.shape[-1]), dtype)).astype(padded.dtype)


def _shift(
    padded: Images, kernel: Kernel, strides: tuple[int, ...], padding: Pairs
) -> Iterator[tuple[tuple[int, int], Images]]:
    """Row and column of each tap of the kernel, with the pixels that it meets, unless they are all of the padding."""
    axes = []
    for n, k, stride, (low, high) in zip(padded.shape[1:3], kernel.shape[:2], strides, padding, strict=True):
        taps = ((i, range(i, n - k + i + 1, stride)) for i in range(k))
        axes.append([(i, met) for i, met in taps if not set(met).isdisjoint(range(low, n - high))])
    for (i, rows), (j, columns) in product(*axes):
        yield (i, j), padded[:, rows.start : rows.stop : rows.step, columns.start : columns.stop : columns.step]


def _pad(x: Images, padding: Pairs, strides: tuple[int, ...] = (1, 1)) -> Images:
    """Zeros around the images and, with strides, between their pixels."""
    inner = [(low, high, stride - 1) for (low, high), stride in zip(padding, strides, strict=True)]
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *inner, (0, 0, 0)])


def _sum_dtype(x: Array) -> Any:
    return jnp.promote_types(x.dtype, jnp.float32)
