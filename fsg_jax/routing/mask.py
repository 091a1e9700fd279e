"""`route`: a gradient multiplied by a mask on its way back, the primitive of Cloud et al. 2024 (arXiv 2410.04332)."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num


@jax.custom_jvp
def route(x: Float[Array, "..."], mask: Num[Array, "..."] | Bool[Array, "..."] | float) -> Float[Array, "..."]:
    """Returns `x`; on the way back, multiplies the gradient by `mask`, which broadcasts to the shape of `x`.

    ``route(x, 0)`` is `jax.lax.stop_gradient`, ``route(x, 1)`` is the identity, and a constant in between scales the
    gradient. Value and gradient are those of ``m x + (1 - m) stop_gradient(x)`` (Cloud et al. 2024), the value bit
    for bit ``x``. The method that they call gradient routing masks gradients by data; that of Roffo et al. 2024 is in
    `fsg_jax.routing.modes`.
    """
    del mask
    return x


@route.defjvp
def _route_jvp(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[Array, Array]:
    (x, mask), (dx, _) = primals, tangents
    return x, jnp.broadcast_to(jnp.asarray(mask), dx.shape).astype(dx.dtype) * dx
