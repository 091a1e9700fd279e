"""Squashings: pure functions from gate logits to gate values, shared by every gate of the library.

A gate is a multiplier, ``y = x * s(logits)``. This file is the ``s``: one row of `SQUASHINGS` a kind.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fsg_jax._checks import look_up
from fsg_jax.typing import Key

HARD_CONCRETE_BETA = 2 / 3
HARD_CONCRETE_LOW = -0.1
HARD_CONCRETE_HIGH = 1.1


def straight_through(logits: Float[Array, "..."]) -> Float[Array, "..."]:
    """``s = 1[g > 0]`` forward, the gradient of ``sigmoid(g)`` backward (Bengio et al. 2013)."""
    soft = jax.nn.sigmoid(logits)
    hard = (logits > 0).astype(logits.dtype)
    return jax.lax.stop_gradient(hard) + (soft - jax.lax.stop_gradient(soft))


def hard_concrete(logits: Float[Array, "..."]) -> Float[Array, "..."]:
    """``s = clip(1.2 sigmoid(g) - 0.1, 0, 1)``: the deterministic gate of Louizos et al. 2018, eq. 13."""
    return _stretch(jax.nn.sigmoid(logits))


def sample_hard_concrete(logits: Float[Array, "..."], key: Key) -> Float[Array, "..."]:
    """One draw of the hard-concrete gate (Louizos et al. 2018, eq. 10-12; beta 2/3, stretched to (-0.1, 1.1)).

    ``u ~ U(0, 1)``; ``s = clip(1.2 sigmoid((log u - log(1 - u) + g) / beta) - 0.1, 0, 1)``.
    """
    u = jax.random.uniform(key, logits.shape, logits.dtype, 1e-6, 1 - 1e-6)
    noise = jnp.log(u) - jnp.log1p(-u)
    return _stretch(jax.nn.sigmoid((noise + logits) / HARD_CONCRETE_BETA))


def _stretch(t: Float[Array, "..."]) -> Float[Array, "..."]:
    span = HARD_CONCRETE_HIGH - HARD_CONCRETE_LOW
    return jnp.clip(t * span + HARD_CONCRETE_LOW, 0.0, 1.0)


class Squashing(NamedTuple):
    """One kind of gate: its deterministic values, its training draw if it is stochastic, its open logit."""

    values: Callable[[Array], Array]
    open_logit: float
    """A logit at which the gate is near 1 and, where the kind allows it, still has a gradient."""
    sample: Callable[[Array, Key], Array] | None = None


SQUASHINGS: dict[str, Squashing] = {
    # s = 1 / (1 + exp(-g)), in (0, 1): the gate of Roffo et al. 2024.
    "sigmoid": Squashing(jax.nn.sigmoid, open_logit=4.0),
    # s = clip(g + 3, 0, 6) / 6: exact 0 and 1; no gradient outside (-3, 3).
    "hard_sigmoid": Squashing(jax.nn.hard_sigmoid, open_logit=2.9),
    # s = max(g, 0): exact zeros, no upper bound; a gate below 0 no longer moves.
    "relu": Squashing(jax.nn.relu, open_logit=1.0),
    "straight_through": Squashing(straight_through, open_logit=1.0),
    "hard_concrete": Squashing(hard_concrete, open_logit=3.0, sample=sample_hard_concrete),
}


def get_squashing(kind: str) -> Squashing:
    """The squashing of a kind; an unknown kind is a ValueError that suggests the nearest."""
    return look_up(SQUASHINGS, kind, "gate kind")


def squash(
    logits: Float[Array, "..."], kind: str = "sigmoid", *, key: Key | None = None, train: bool = False
) -> Float[Array, "..."]:
    """Gate values of `logits`, same shape.

    Args:
      logits: any shape.
      kind: a key of `SQUASHINGS`.
      key: random key; needed only by a stochastic kind in training.
      train: draw a stochastic kind at random instead of taking its deterministic value.

    Raises:
      ValueError: unknown kind, or a stochastic kind in training without a key.
    """
    rule = get_squashing(kind)
    if not train or rule.sample is None:
        return rule.values(logits)
    if key is None:
        raise ValueError(f"key: expected one, for gates of kind {kind!r} are drawn at random in training, found None")
    return rule.sample(logits, key)
