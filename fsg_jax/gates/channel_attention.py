"""Data-dependent channel gates, ``y = x * s(x)``: the comparators of the static gate of `fsg_jax.gates.gate`.

Their weights are ordinary parameters (collection ``"params"``). Like `fsg_jax.gates.gate.Gate`, each is a factory
of gates for the models: ``create_model("resnet18", num_classes=100, gate=SqueezeExcite)``.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from fsg_jax._checks import check_positive
from fsg_jax.gates.gate import check_floating, squash_in


class SqueezeExcite(nn.Module):
    """Squeeze-and-excitation: ``s = sigmoid(W2 relu(W1 mean(x) + b1) + b2)`` (Hu et al. 2018).

    The hidden width is ``channels / reduction`` rounded to a multiple of 8, at least 8, as in timm.

    Attributes:
      reduction: channels over hidden width, above 0.
      axis: the channel axis; the mean is over all others but the first, the batch.
      kind: how logits become values, a key of `fsg_jax.gates.functions.SQUASHINGS`.
    """

    reduction: float = 16
    axis: int = -1
    kind: str = "sigmoid"

    @nn.compact
    def __call__(self, x: Shaped[Array, "batch ..."], *, train: bool = False) -> Float[Array, "batch ..."]:
        """Gated `x`, same shape and dtype; `train` draws a stochastic kind at random from stream ``"gates"``.

        Raises:
          ValueError: `axis` is not a channel axis of `x`, or `reduction` is not positive.
        """
        check_positive(reduction=self.reduction)
        pooled = pool_channels(x, self.axis)
        channels = pooled.shape[-1]
        hidden = max(8, int(channels / self.reduction + 4) // 8 * 8)
        s = nn.relu(nn.Dense(hidden, name="fc1")(pooled))
        return scale_channels(x, squash_in(self, nn.Dense(channels, name="fc2")(s), train), self.axis)


class EfficientChannelAttention(nn.Module):
    """ECA: ``s = sigmoid(conv1d_k(mean(x)))``, the convolution over channels, no bias (Wang et al. 2020).

    The kernel size k is the integer part of ``|log2(channels) + beta| / gamma``, plus 1 if that is even, and
    at least 3, as in timm.

    Attributes:
      gamma: divides in the rule of the kernel size, above 0.
      beta: is added in the rule of the kernel size.
      axis: the channel axis; the mean is over all others but the first, the batch.
      kind: how logits become values, a key of `fsg_jax.gates.functions.SQUASHINGS`.
    """

    gamma: float = 2
    beta: float = 1
    axis: int = -1
    kind: str = "sigmoid"

    @nn.compact
    def __call__(self, x: Shaped[Array, "batch ..."], *, train: bool = False) -> Float[Array, "batch ..."]:
        """Gated `x`, same shape and dtype; `train` draws a stochastic kind at random from stream ``"gates"``.

        Raises:
          ValueError: `axis` is not a channel axis of `x`, or `gamma` is not positive.
        """
        check_positive(gamma=self.gamma)
        pooled = pool_channels(x, self.axis)
        t = int(abs(math.log2(pooled.shape[-1]) + self.beta) / self.gamma)
        size = max(t if t % 2 else t + 1, 3)
        s = nn.Conv(1, (size,), padding=size // 2, use_bias=False, name="conv")(pooled[..., None])
        return scale_channels(x, squash_in(self, s[..., 0], train), self.axis)


def pool_channels(x: Shaped[Array, "batch ..."], axis: int) -> Float[Array, "batch channels"]:
    """Mean of each channel of each example, in float32 or wider.

    Raises:
      ValueError: `axis` is out of range or is the batch; values that are not floating-point.
    """
    check_floating(x)
    if not -x.ndim < axis < x.ndim or axis == 0:
        raise ValueError(f"axis: expected a channel axis of the input, of shape {x.shape}, found {axis}")
    others = tuple(i for i in range(1, x.ndim) if i != axis % x.ndim)
    return before_reduction(x).astype(jnp.promote_types(x.dtype, jnp.float32)).mean(others)


def before_reduction(x: Array) -> Array:
    """`x`, to be summed or pooled: where its type is below 32 bits, what comes before is computed apart.

    The CPU compiler of jaxlib 0.11 and 0.12 joins a reduction with all convolutions that lead to it. From two of them
    on, in bfloat16, the program gives NaN or any value, unless XLA has the flag
    ``--xla_cpu_experimental_ynn_fusion_type=-reduce``.
    """
    return jax.lax.optimization_barrier(x) if x.dtype.itemsize < 4 else x


def scale_channels(
    x: Float[Array, "batch ..."], s: Float[Array, "batch channels"], axis: int
) -> Float[Array, "batch ..."]:
    """``x * s`` along `axis`, in the dtype of `x`."""
    shape = [size if i in (0, axis % x.ndim) else 1 for i, size in enumerate(x.shape)]
    return x * s.reshape(shape).astype(x.dtype)
