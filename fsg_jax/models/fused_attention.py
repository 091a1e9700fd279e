"""Attention by one kernel, which never has the weights in memory; for `fsg_jax.models.vit.SelfAttention`."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Heads = Float[Array, "batch tokens heads channels"]


def fused_attention(q: Heads, k: Heads, v: Heads, *, implementation: Literal["cudnn", "xla"] = "cudnn") -> Heads:
    """``softmax(q k^T / sqrt(channels)) v``, by `jax.nn.dot_product_attention`.

    cuDNN's kernel (NVIDIA GPUs from Ampere on) takes bfloat16 and float16, channels that are a multiple of 8, at most
    128, and in training an even number of tokens: an odd one is padded, and the padding masked.

    Args:
      q: queries, (batch, tokens, heads, channels).
      k: keys.
      v: values.
      implementation: ``"cudnn"``, or ``"xla"``, the same on any device.

    Raises:
      RuntimeError, NotImplementedError: cuDNN is not there, or has no kernel for these.
    """
    batch, tokens = q.shape[:2]
    lengths: Any = None
    if tokens % 2:
        q, k, v = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (q, k, v))
        lengths = jnp.full(batch, tokens, jnp.int32)
    y = jax.nn.dot_product_attention(
        q, k, v, query_seq_lengths=lengths, key_value_seq_lengths=lengths, implementation=implementation
    )
    return y[:, :tokens]
