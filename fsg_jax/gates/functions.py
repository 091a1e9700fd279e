"""Squashings: pure functions from gate logits to gate values, shared by every gate of the library.

A gate is a multiplier, ``y = x * s(logits)``. This file is the ``s``: one row of `SQUASHINGS` a kind.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

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
    open_logit: float | None = None
    """A logit at which the gate is near 1 and has a gradient; None: not known."""
    sample: Callable[[Array, Key], Array] | None = None


Kind: TypeAlias = str | Callable[[Array], Array] | Squashing
"""A key of `SQUASHINGS`, a function from logits to values, or a `Squashing` of one's own."""

SQUASHINGS: dict[str, Squashing] = {
    # s = 1 / (1 + exp(-g)), in (0, 1): the gate of Roffo et al. 2024.
    "sigmoid": Squashing(jax.nn.sigmoid, open_logit=4.0),
    # s = clip(g + 3, 0, 6) / 6: exact 0 and 1; no gradient outside (-3, 3).
    "hard_sigmoid": Squashing(jax.nn.hard_sigmoid, open_logit=2.9),
    # s = max(g, 0): exact zeros, no upper bound; a gate below 0 no longer moves.
    "relu": Squashing(jax.nn.relu, open_logit=1.0),
    "straight_through": Squashing(straight_through, open_logit=1.0),
    # Exactly 1, and without a gradient, from log(11) = 2.40 on; s(2.2) = 0.980.
    "hard_concrete": Squashing(hard_concrete, open_logit=2.2, sample=sample_hard_concrete),
}
"""The kinds of gates by name."""


def at_least_float32(values: Any) -> Array:
    """`values` in float32, or in a wider floating-point dtype that they have."""
    return jnp.asarray(values).astype(jnp.promote_types(jnp.asarray(values).dtype, jnp.float32))


def get_squashing(kind: Kind) -> Squashing:
    """The squashing of a kind; an unknown name is a ValueError that suggests the nearest."""
    if isinstance(kind, Squashing):
        return kind
    return Squashing(kind) if callable(kind) else look_up(SQUASHINGS, kind, "gate kind")


def squash(
    logits: Float[Array, "..."], kind: Kind = "sigmoid", *, key: Key | None = None, train: bool = False
) -> Float[Array, "..."]:
    """Gate values of `logits`, same shape, computed in at least float32.

    Args:
      logits: any shape.
      kind: see `Kind`.
      key: random key; needed only by a stochastic kind in training.
      train: draw a stochastic kind at random instead of taking its deterministic value.

    Raises:
      ValueError: unknown kind, or a stochastic kind in training without a key.
    """
    rule = get_squashing(kind)
    logits = at_least_float32(logits)
    if not train or rule.sample is None:
        return rule.values(logits)
    if key is None:
        raise ValueError(f"key: expected one, for gates of kind {kind!r} are drawn at random in training, found None")
    return rule.sample(logits, key)
