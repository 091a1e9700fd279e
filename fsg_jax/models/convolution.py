"""A convolution that XLA's CPU backend computes fast: depthwise, of small images, of many channels, in loops.

That backend has fast kernels only for images (batch, height, width, channels) and kernels (height, width, in, out).
Gradients of `jax.lax.conv_general_dilated` are convolutions of other layouts, which it rewrites at the top level of a
program but not inside `jax.lax.scan`, `jax.lax.map` or `jax.lax.cond`. A scan over steps of a small ResNet-18 took 15
times as long as a loop in Python; with this convolution it takes 0.99 times as long (experiments/results).
"""

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from fsg_jax.models.depthwise import convolve_depthwise
from fsg_jax.models.winograd import convolve_winograd

LAYOUT = ("NHWC", "HWIO", "NHWC")
FEW_PIXELS, MANY_CHANNELS = 7 * 7, 256
"""Of a result, and of image and result, where a sum of matrix products is faster on two cores, for 16 images."""
WINOGRAD_CHANNELS = 128
"""Of image and result, from which on fewer multiplications are faster, for 8 to 128 images of 8x8 to 28x28."""
Pairs = tuple[tuple[int, int], ...]

Images = Float[Array, "batch _height _width _channels"]
Kernel = Float[Array, "_rows _columns _in _out"]


def conv_general_dilated(lhs: Array, rhs: Array, window_strides: Any, padding: Any, **options: Any) -> Array:
    """Computes `jax.lax.conv_general_dilated` in a way that suits XLA's CPU backend, for ``flax.linen.Conv``::

        nn.Conv(64, (3, 3), conv_general_dilated=conv_general_dilated)

    Values and gradients are those of JAX's function but for rounding; forward-mode and second derivatives are not
    supported. It applies to two spatial dimensions in the layout ``("NHWC", "HWIO", "NHWC")`` without dilation, and
    without groups or with a group for each channel (depthwise); anything else is passed on to JAX's function.
    """
    groups = options.get("feature_group_count", 1)
    depthwise = 1 < groups == lhs.shape[-1] == rhs.shape[-1]
    if not (groups == 1 or depthwise) or not _is_plain(lhs, rhs, options):
        return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **options)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], window_strides, padding)
    strides, padding = tuple(window_strides), tuple((int(low), int(high)) for low, high in padding)
    spare = [n + sum(pair) - k for n, k, pair in zip(lhs.shape[1:3], rhs.shape[:2], padding, strict=True)]
    if min(spare) < 0 or lhs.size == 0:  # no pixels come out
        return lax.conv_general_dilated(lhs, rhs, strides, padding, **options)
    if depthwise:
        return convolve_depthwise(lhs, rhs, strides, padding)
    size = [n // stride + 1 for n, stride in zip(spare, strides, strict=True)]
    pointwise = rhs.shape[:2] == (1, 1) and padding == ((0, 0), (0, 0))
    small = any(k > n for k, n in zip(rhs.shape[:2], size, strict=True))
    if pointwise or small or (prod(size) <= FEW_PIXELS and min(rhs.shape[2:]) >= MANY_CHANNELS):
        return _sum_of_matrix_products(lhs, rhs, strides, padding, size)
    lhs, padding = _pad_safely(lhs, rhs, padding)
    return _convolve(lhs, rhs, strides, padding)


def _sum_of_matrix_products(
    x: Images, kernel: Kernel, strides: tuple[int, ...], padding: Pairs, size: Sequence[int]
) -> Images:
    """One product for each tap of the kernel, of the pixels that it meets, as rows of a matrix; none with padding.

    XLA's CPU backend has no fast kernel where the image or the result is smaller than the kernel (512 channels, 3x3 on
    images of 2x2: 100 times slower), and for an input gradient it first turns the kernel, which takes longer than to
    apply it where there are few pixels and many channels.
    """
    axes = zip(x.shape[1:3], kernel.shape[:2], strides, padding, size, strict=True)
    rows, columns = ([_met(i, n, stride, low, out) for i in range(k)] for n, k, stride, (low, _), out in axes)
    dtype, products = jnp.promote_types(x.dtype, jnp.float32), []
    for i, (top, bottom, above) in enumerate(rows):
        for j, (left, right, before) in enumerate(columns):
            if top < bottom and left < right:
                starts = (above, before)
                counts = (bottom - top, right - left)
                stops = [a + (n - 1) * stride + 1 for a, n, stride in zip(starts, counts, strides, strict=True)]
                met = lax.slice(x, (0, *starts, 0), (len(x), *stops, x.shape[-1]), (1, *strides, 1))
                product = lax.dot(met.reshape(-1, x.shape[-1]), kernel[i, j], preferred_element_type=dtype)
                around = ((0, 0), (top, size[0] - bottom), (left, size[1] - right), (0, 0))
                products.append(jnp.pad(product.reshape(len(x), *counts, -1), around))
    total = sum(products[1:], products[0]) if products else jnp.zeros((len(x), *size, kernel.shape[-1]), dtype)
    return total.astype(x.dtype)


def _met(tap: int, size: int, stride: int, before: int, out: int) -> tuple[int, int, int]:
    """Along one axis: the first output that meets the image by this tap, the one after the last, the first's input."""
    first = max(0, -((tap - before) // stride))
    last = min(out - 1, (size - 1 + before - tap) // stride)
    return first, last + 1, first * stride + tap - before


def _pad_safely(x: Images, kernel: Kernel, padding: Pairs) -> tuple[Images, Pairs]:
    """`x`, and what is left of its padding: from 0 to one less than the kernel before each row and column.

    XLA's CPU backend reads beyond images that are cropped at their start and padded at their end (openxla/xla#48713);
    those of a gradient are where the padding is larger.
    """
    before = [low for low, _ in padding]
    kept = [min(max(low, 0), k - 1) for low, k in zip(before, kernel.shape[:2], strict=True)]
    if before != kept:
        x = x[:, max(-before[0], 0) :, max(-before[1], 0) :]
        more = [max(low, 0) - rest for low, rest in zip(before, kept, strict=True)]
        x = jnp.pad(x, [(0, 0), (more[0], 0), (more[1], 0), (0, 0)])
    return x, tuple((low, high) for low, (_, high) in zip(kept, padding, strict=True))


def _is_plain(lhs: Array, rhs: Array, options: dict[str, Any]) -> bool:
    """Whether the layout is `LAYOUT` and nothing but the number of groups is unusual."""
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, options.get("dimension_numbers"))
    usual = {"lhs_dilation": (1, 1), "rhs_dilation": (1, 1), "batch_group_count": 1}
    given = {k: v for k, v in options.items() if k not in ("dimension_numbers", "feature_group_count")}
    return (
        lhs.ndim == 4
        and numbers == lax.conv_dimension_numbers(lhs.shape, rhs.shape, LAYOUT)
        and all(
            v is None or (k in usual and (tuple(v) if isinstance(v, list) else v) == usual[k]) for k, v in given.items()
        )
    )


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(x: Images, kernel: Kernel, strides: tuple[int, ...], padding: Pairs) -> Images:
    return _apply(x, kernel, strides, padding, (1, 1))


def _apply(x: Images, kernel: Kernel, strides: tuple[int, ...], padding: Pairs, spread: tuple[int, ...]) -> Images:
    usual = kernel.shape[:2] == (3, 3) and tuple(strides) == tuple(spread) == (1, 1)
    pays = min(kernel.shape[2:]) >= WINOGRAD_CHANNELS and x.dtype in ("float32", "float64")
    if usual and pays and min(min(pair) for pair in padding) >= 0:
        return convolve_winograd(x, kernel, padding)
    return lax.conv_general_dilated(x, kernel, strides, padding, lhs_dilation=spread, dimension_numbers=LAYOUT)


def _forward(x: Images, kernel: Kernel, strides: tuple[int, ...], padding: Pairs) -> tuple[Images, tuple[Any, Any]]:
    return _convolve(x, kernel, strides, padding), (x, kernel)


def _backward(strides: tuple[int, ...], padding: Pairs, saved: tuple[Any, Any], g: Images) -> tuple[Images, Kernel]:
    """Gradients of the images and of the kernel, as convolutions of images by kernels in `LAYOUT`."""
    x, kernel = saved
    image_pads, kernel_pads = [], []
    for size, k, stride, (low, _), n in zip(
        x.shape[1:3], kernel.shape[:2], strides, padding, g.shape[1:3], strict=True
    ):
        before = k - 1 - low
        image_pads.append((before, size + k - 2 - (n - 1) * stride - before))
        kernel_pads.append((low, (n - 1) * stride + k - size - low))
    # The output's gradient, spread by the strides, with the kernel turned by 180 degrees.
    turned = jnp.swapaxes(kernel[::-1, ::-1], 2, 3)
    of_images = _apply(g, turned, (1, 1), tuple(image_pads), strides)
    # The images with the output's gradient, channels in the place of images and images in that of channels.
    swapped, window = jnp.transpose(x, (3, 1, 2, 0)), jnp.transpose(g, (1, 2, 0, 3))
    out = lax.conv_general_dilated(swapped, window, (1, 1), kernel_pads, rhs_dilation=strides, dimension_numbers=LAYOUT)
    return of_images, jnp.transpose(out, (1, 2, 0, 3))


_convolve.defvjp(_forward, _backward)
