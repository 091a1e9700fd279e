"""Static gates: one learnable logit a channel, kept in the ``"gates"`` collection (Roffo et al. 2024).

`Gate` is the only creator of that collection. Data-dependent gates (`fsg_jax.gates.channel_attention`) keep their
weights in ``"params"``.
"""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jax.nn import initializers
from jaxtyping import Array, Float

from fsg_jax._checks import look_up
from fsg_jax.gates.functions import get_squashing, squash
from fsg_jax.typing import AnyArray, Key

GATES = "gates"
"""Name of the variable collection of gate logits, and of the random stream that initialises and draws gates."""

Initializer = Callable[[Key, tuple[int, ...]], Array]


def xavier(key: Key, shape: tuple[int, ...]) -> Array:
    """Draws ``g ~ N(0, 2 / (1 + C))``: Glorot for a (1, C) matrix, the reference's default; values start near 0.5."""
    return initializers.normal((2 / (1 + shape[0])) ** 0.5)(key, shape, jnp.float32)


def he(key: Key, shape: tuple[int, ...]) -> Array:
    """Draws ``g ~ N(0, 2 / C)``: He for a (1, C) matrix."""
    return initializers.normal((2 / shape[0]) ** 0.5)(key, shape, jnp.float32)


def get_init(init: str | Initializer, kind: str, value: float) -> Initializer:
    """Returns the initializer of a name, or `init` itself if it is callable.

    Args:
      init: ``"xavier"``, ``"he"``, ``"constant"`` (logits of `value`), ``"open"`` (logits at which gates of this kind
        are near 1, so that a pretrained network keeps its function; not in the paper), or a function.
      kind: see `fsg_jax.gates.functions.SQUASHINGS`.
      value: for ``"constant"``.

    Raises:
      ValueError: unknown name or kind.
    """
    if callable(init):
        return init
    constants = {"constant": value, "open": get_squashing(kind).open_logit}
    fill = {name: lambda _, shape, c=c: jnp.full(shape, c, jnp.float32) for name, c in constants.items()}
    return look_up({"xavier": xavier, "he": he, **fill}, init, "gate init")


class Gate(nn.Module):
    """Feature-Selection Gate: ``y = x * s(g)``, one logit ``g`` a channel (Roffo et al. 2024).

    Works on inputs of any rank. Logits and squashing are float32 whatever the input's dtype; the product has the
    input's dtype. Initialisation draws from the ``"gates"`` random stream, or from ``"params"`` where that is
    the only one; a gate never shifts the draws of other modules.

    Attributes:
      axis: the channel axis, negative or not.
      kind: how logits become values, a key of `fsg_jax.gates.functions.SQUASHINGS`; the paper's is ``"sigmoid"``.
      logits_init: ``"xavier"`` (the reference's rule), ``"he"``, ``"constant"``, ``"open"``, or a function
        ``(key, shape) -> logits``.
      init_value: the logit for ``logits_init="constant"``.
    """

    axis: int = -1
    kind: str = "sigmoid"
    logits_init: str | Initializer = "xavier"
    init_value: float = 0.0

    @nn.compact
    def __call__(self, x: Float[AnyArray, "..."], *, train: bool = False) -> Float[Array, "..."]:
        """Gated `x`, same shape and dtype; `train` draws a stochastic kind at random from stream ``"gates"``.

        Raises:
          ValueError: unknown kind or init, `axis` out of range, or stored logits that do not fit the channels.
        """
        if not -x.ndim <= self.axis < x.ndim:
            raise ValueError(f"axis: expected an axis of the input, of shape {x.shape}, found {self.axis}")
        axis = self.axis % x.ndim
        init = get_init(self.logits_init, self.kind, self.init_value)
        shape = (x.shape[axis],)
        logits = self.variable(GATES, "logits", lambda: init(self.make_rng(GATES), shape)).value
        if logits.shape != shape:
            raise ValueError(
                f"gate {'/'.join(self.path) or 'at the top'}: logits have shape {logits.shape}, but axis {self.axis} "
                f"of the input of shape {x.shape} has {shape[0]} channels"
            )
        values = squash_in(self, logits, train)
        return jnp.asarray(x) * along_axis(values, axis, x.ndim).astype(x.dtype)


def squash_in(module: nn.Module, logits: Float[Array, "..."], train: bool) -> Float[Array, "..."]:
    """`logits` squashed by ``module.kind``, a stochastic kind in training with a draw of stream ``"gates"``."""
    key = module.make_rng(GATES) if train and get_squashing(module.kind).sample is not None else None
    return squash(logits, module.kind, key=key, train=train)


def along_axis(values: Float[Array, " channels"], axis: int, ndim: int) -> Float[Array, "..."]:
    """`values` reshaped to rank `ndim` with its entries along `axis`, ready to multiply."""
    return values.reshape([-1 if i == axis else 1 for i in range(ndim)])
