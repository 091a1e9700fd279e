"""Gates: multipliers ``y = x * s(g)`` on channels, their penalties and their summaries."""

from fsg_jax.gates.channel_attention import EfficientChannelAttention, SqueezeExcite
from fsg_jax.gates.functions import squash
from fsg_jax.gates.gate import Gate
from fsg_jax.gates.penalties import gate_penalty
from fsg_jax.gates.summary import count_parameters, gate_summary, gate_values
from fsg_jax.typing import GATES

__all__ = [
    "GATES",
    "EfficientChannelAttention",
    "Gate",
    "SqueezeExcite",
    "count_parameters",
    "gate_penalty",
    "gate_summary",
    "gate_values",
    "squash",
]
