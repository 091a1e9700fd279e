"""The scale on which sizes are regressed: millimetres mapped linearly so that 0.5..20 mm becomes -1..1."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from fsg_jax.typing import AnyArray

RANGE_MM = (0.5, 20.0)
"""The sizes that become -1 and 1."""

CLAMP_MM = (0.5, 22.0)
"""The range of a prediction: from the smallest size to 10 % above the upper end of `RANGE_MM`."""


def mm_to_unit(size_mm: Float[AnyArray, "*shape"]) -> Float[AnyArray, "*shape"]:
    """Returns 2 (y - 0.5) / 19.5 - 1, not clamped: 25 mm becomes 1.51.

    Args:
        size_mm: sizes y in mm, NumPy or JAX; computed in at least float32.
    """
    low, high = RANGE_MM
    return 2 * (widen(size_mm) - low) / (high - low) - 1


def unit_to_mm(
    scaled: Float[AnyArray, "*shape"], clamp_mm: tuple[float, float] | None = CLAMP_MM
) -> Float[AnyArray, "*shape"]:
    """Returns 19.5 (z + 1) / 2 + 0.5, the inverse of `mm_to_unit`, limited to a range.

    Args:
        scaled: scaled sizes z, NumPy or JAX; computed in at least float32.
        clamp_mm: lowest and highest size in mm, or None for no limits. Widen it for polyps above 22 mm, which no
            clamped prediction can reach.

    Raises:
        ValueError: the limits are not in ascending order.
    """
    low, high = RANGE_MM
    size_mm = (widen(scaled) + 1) / 2 * (high - low) + low
    if clamp_mm is None:
        return size_mm
    if not clamp_mm[0] < clamp_mm[1]:
        raise ValueError(f"clamp_mm: expected two sizes in ascending order, found {clamp_mm}")
    return (jnp if isinstance(size_mm, jax.Array) else np).clip(size_mm, *clamp_mm)


def widen(values: AnyArray) -> AnyArray:
    """Returns the values in float32, or float64 if they are."""
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))


def check_sizes(name: str, size_mm: Float[np.ndarray, " rows"]) -> Float[np.ndarray, " rows"]:
    """Returns true sizes in mm as float64.

    Raises:
        ValueError: there are none, or one is not finite and above 0.
    """
    sizes = np.asarray(size_mm, np.float64)
    wrong = sizes[~(np.isfinite(sizes) & (sizes > 0))]
    if wrong.size or not sizes.size:
        raise ValueError(f"{name}: expected finite sizes above 0 mm, found {wrong[:3] if wrong.size else 'none'}")
    return sizes
