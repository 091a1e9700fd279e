"""Gates on the outputs of attention before their projection: static ones, and one that depends on the input.

Qiu et al. 2025 (arXiv 2505.06708) compare places in language models and find this one best: ``Y * sigmoid(X W)``, with
``X`` the normalised input of the attention, a value a head (``"headwise"``) or a channel (``"elementwise"``), without a
bias. Its weights are ordinary parameters, the layer ``output_gate`` of the mixer.
"""

from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from fsg_jax.gates.sites import Use
from fsg_jax.models.layers import Tokens, apply_gate

OUTPUT_GATES = ("elementwise", "headwise")


def gate_output(
    mixer: Any, y: Float[Array, "batch tokens heads d"], x: Tokens, *, kernel_init: Any, train: bool
) -> Float[Array, "batch tokens joined"]:
    """The outputs of all heads, gated and joined; for use in a compact method.

    Args:
      mixer: has the attributes ``gate``, ``gates``, ``output_gate`` and ``dtype`` of `fsg_jax.models.SelfAttention`.
      y: the outputs.
      x: the input of the mixer.
      kernel_init: of the weights of the gate that depends on `x`.
      train: for the static gates, ``gate_heads``, one value a head, and ``gate``, one a channel.
    """
    *outer, heads, d = y.shape
    if mixer.output_gate is not None:
        values = heads * d if mixer.output_gate == "elementwise" else heads
        dense = nn.Dense(values, use_bias=False, dtype=mixer.dtype, kernel_init=kernel_init, name="output_gate")
        y = y * jax.nn.sigmoid(dense(x)).reshape(*outer, heads, -1)
    if "gate_heads" in mixer.gates and mixer.gate is not None:
        y = apply_gate(mixer.gate, y.swapaxes(2, 3), name="gate_heads", train=train).swapaxes(2, 3)
    y = y.reshape(*outer, heads * d)
    return apply_gate(mixer.gate, y, name="gate", train=train) if "gate" in mixer.gates else y


def output_gate_uses(output_gate: str | None, width: int) -> tuple[tuple[Use, ...], tuple[Use, ...]]:
    """The weights of the layer ``output_gate`` that belong to heads of `width` channels, and those of channels."""
    if output_gate == "elementwise":
        return (Use("output_gate", "out", 0, width),), (Use("output_gate", "out"),)
    return ((Use("output_gate", "out"),) if output_gate else ()), ()
