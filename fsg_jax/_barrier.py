"""A barrier against a fault of XLA's CPU compiler."""

import jax
from jax import Array


def before_reduction(x: Array) -> Array:
    """`x`, to be summed or pooled: where its type is below 32 bits, what comes before is computed apart.

    The CPU compiler of jaxlib 0.11 and 0.12 joins a reduction with all convolutions that lead to it. From two of them
    on, in bfloat16, the program gives NaN or any value, unless XLA has the flag
    ``--xla_cpu_experimental_ynn_fusion_type=-reduce``.
    """
    return jax.lax.optimization_barrier(x) if x.dtype.itemsize < 4 else x
