"""The static gate of `fsg_jax.gates.gate` as a layer of NNX, its logits a Variable type of their own."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Shaped

from fsg_jax.gates.functions import Kind, get_squashing
from fsg_jax.gates.gate import Gate as Rule
from fsg_jax.gates.gate import Initializer, along_axis, check_floating, get_init
from fsg_jax.typing import GATE_STEP, GATES, AnyArray


@nnx.register_variable_name(GATES, overwrite=True)  # a bridged gate may have made a type of that name
class GateLogits(nnx.Variable):
    """Gate logits: the Variable type that corresponds to the collection ``"gates"``."""


@nnx.register_variable_name(GATE_STEP, overwrite=True)
class GateStep(nnx.Variable):
    """The step, for a temperature that has a schedule."""


class Gate(nnx.Module):
    """Feature-Selection Gate: ``y = x * s(g / T)``, one logit ``g`` a channel (Roffo et al. 2024, where T is 1).

    Attributes:
      logits: `GateLogits` of shape (features,), float32.
      rule: the `fsg_jax.Gate` that gives the values; one of a subclass may have a rule of its own.
      deterministic: whether a stochastic kind takes its deterministic values, as in evaluation.
    """

    def __init__(
        self,
        features: int,
        *,
        axis: int = -1,
        kind: Kind = "sigmoid",
        logits_init: str | Initializer | None = None,
        init_value: float = 0.0,
        temperature: float | Callable[[Any], Any] = 1.0,
        rule: Rule | None = None,
        deterministic: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        """Draws the logits from stream ``"gates"`` of `rngs`, or ``"params"`` where it has none.

        Args:
          features: number of channels.
          axis, kind, logits_init, init_value, temperature: as of `fsg_jax.Gate`.
          rule: in place of them.
          deterministic: see above; ``model.train()`` and ``model.eval()`` set it.
          rngs: random streams; a stochastic kind keeps one.

        Raises:
          ValueError: as of `fsg_jax.Gate`.
        """
        self.rule = rule or Rule(
            axis=axis, kind=kind, logits_init=logits_init, init_value=init_value, temperature=temperature
        )
        rule, start = self.rule, float(self.rule.temperature_at(0))
        stream = rngs[GATES if GATES in rngs else "params"]
        init = get_init(rule.logits_init, rule.kind, rule.init_value, start)
        self.logits = GateLogits(init(stream(), (features,)))
        self.step = GateStep(jnp.zeros((), jnp.int32)) if callable(rule.temperature) else None
        self.stream = stream.fork() if get_squashing(rule.kind).sample is not None else None
        self.deterministic = deterministic

    def __call__(self, x: Shaped[AnyArray, "..."]) -> Float[Array, "..."]:
        """Gated `x`, same shape and dtype.

        Raises:
          ValueError: the axis is out of range or has another number of channels; values that are not floating-point.
        """
        check_floating(x)
        logits, axis = self.logits[...], self.rule.axis
        if not -x.ndim <= axis < x.ndim or x.shape[axis] != logits.shape[0]:
            raise ValueError(f"input of a gate: expected {logits.shape[0]} channels on axis {axis}, found {x.shape}")
        key = None if self.deterministic or self.stream is None else self.stream()
        temperature = self.rule.temperature_at(0 if self.step is None else self.step[...])
        values = self.rule.values(logits / temperature, key)
        return jnp.asarray(x) * along_axis(values, axis % x.ndim, x.ndim).astype(x.dtype)
