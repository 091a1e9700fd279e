"""Static gates: one learnable logit a channel, kept in the ``"gates"`` collection (Roffo et al. 2024).

Data-dependent gates (`fsg_jax.gates.channel_attention`) keep their weights in ``"params"``.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn import initializers
from jaxtyping import Array, Float, Shaped

from fsg_jax._checks import check_positive, expect, look_up
from fsg_jax.gates.functions import Kind, get_squashing, squash
from fsg_jax.typing import GATE_STEP, GATES, AnyArray, Key

Initializer = Callable[[Key, tuple[int, ...]], Array]
"""``(key, shape) -> logits``."""


def xavier(key: Key, shape: tuple[int, ...]) -> Array:
    """Draws ``g ~ N(0, 2 / (1 + C))``: Glorot for a (1, C) matrix, the reference's default; values start near 0.5."""
    return initializers.normal((2 / (1 + shape[0])) ** 0.5)(key, shape, jnp.float32)


def he(key: Key, shape: tuple[int, ...]) -> Array:
    """Draws ``g ~ N(0, 2 / C)``: He for a (1, C) matrix."""
    return initializers.normal((2 / shape[0]) ** 0.5)(key, shape, jnp.float32)


def get_init(init: str | Initializer | None, kind: Kind, value: float, temperature: float = 1.0) -> Initializer:
    """Returns the initializer of a name, or `init` itself if it is callable.

    Args:
      init: ``"xavier"``, ``"he"``, ``"constant"`` (logits of `value`), ``"open"`` (logits at which gates of this kind
        are near 1, so that a pretrained network keeps its function; not in the paper), or a function. None: what
        suits the kind, ``"xavier"`` for ``"sigmoid"`` and for functions, ``"open"`` for all others.
      kind: see `fsg_jax.gates.functions.SQUASHINGS`.
      value: for ``"constant"``.
      temperature: by which logits are divided.

    Raises:
      ValueError: unknown name or kind; a random init of a kind without a gradient below 0, where gates never move.
    """
    if callable(init):
        return init
    rule = get_squashing(kind)
    if init is None:
        init = "xavier" if kind == "sigmoid" or rule.open_logit is None else "open"
    expect(init != "open" or rule.open_logit is not None, "logits_init 'open'", "a kind with an open_logit", repr(kind))
    constants = {"constant": value, "open": (rule.open_logit or 0.0) * temperature}
    fill = {name: lambda _, shape, c=c: jnp.full(shape, c, jnp.float32) for name, c in constants.items()}
    if init not in fill and rule.sample is None:
        with jax.ensure_compile_time_eval():
            slopes = jax.grad(lambda g: jnp.sum(rule.values(g / temperature)))(jnp.float32([-0.5, 0.5]))
            dead = bool(jnp.any(slopes == 0))
        expect(not dead, "logits_init", f"logits at which all gates of kind {kind!r} move, e.g. 'open'", repr(init))
    return look_up({"xavier": xavier, "he": he, **fill}, init, "gate init")


class Gate(nn.Module):
    """Feature-Selection Gate: ``y = x * s(g / T)``, one logit ``g`` a channel (Roffo et al. 2024, where T is 1).

    Works on inputs of any rank. Logits and squashing are float32 whatever the input's dtype; the product has the
    input's dtype. Initialisation draws from the ``"gates"`` random stream, or from ``"params"`` where that is
    the only one; a gate never shifts the draws of other modules. Under ``nn.scan`` and ``nn.vmap`` give the axes
    ``variable_axes={"params": 0, "gates": 0}, split_rngs={"params": True, "gates": True}``.

    Attributes:
      axis: the channel axis, negative or not.
      kind: how logits become values, a key of `fsg_jax.gates.functions.SQUASHINGS`, a function from logits to values,
        or a `fsg_jax.gates.functions.Squashing`; the paper's is ``"sigmoid"``.
      logits_init: ``"xavier"`` (the reference's rule), ``"he"``, ``"constant"``, ``"open"``, a function
        ``(key, shape) -> logits``, or None: ``"xavier"`` for sigmoid, for others what suits the kind (`get_init`).
      init_value: the logit for ``logits_init="constant"``.
      temperature: T > 0, or a schedule ``step -> T``. Such a gate keeps the step in the collection ``"gate_step"``,
        which `fsg_jax.make_train_step` sets; it needs its axis under ``nn.scan`` and ``nn.vmap`` too.
    """

    axis: int = -1
    kind: Kind = "sigmoid"
    logits_init: str | Initializer | None = None
    init_value: float = 0.0
    temperature: float | Callable[[Any], Any] = 1.0

    @nn.compact
    def __call__(self, x: Shaped[AnyArray, "..."], *, train: bool = False) -> Float[Array, "..."]:
        """Gated `x`, same shape and dtype; `train` draws a stochastic kind at random from stream ``"gates"``.

        Raises:
          ValueError: unknown kind or init, `axis` out of range, values that are not floating-point, or stored logits
            that do not fit the channels.
        """
        expect(-x.ndim <= self.axis < x.ndim, "axis", f"an axis of the input, of shape {x.shape}", self.axis)
        check_floating(x)
        axis = self.axis % x.ndim
        init = get_init(self.logits_init, self.kind, self.init_value, float(self.temperature_at(0)))
        shape = (x.shape[axis],)
        logits = self.variable(GATES, "logits", lambda: init(self.make_rng(GATES), shape)).value
        channels = f"{shape[0]} logits, one for each channel on axis {self.axis} of the input of shape {x.shape}"
        expect(logits.shape == shape, f"gate {'/'.join(self.path) or 'at the top'}", channels, logits.shape)
        step: Any = 0
        if callable(self.temperature):
            step = self.variable(GATE_STEP, "step", lambda: jnp.zeros((), jnp.int32)).value
        values = self.values(logits / self.temperature_at(step), draw_key(self, train))
        return jnp.asarray(x) * along_axis(values, axis, x.ndim).astype(x.dtype)

    def values(self, logits: Float[Array, "..."], key: Key | None = None) -> Float[Array, "..."]:
        """Gate values of logits that are divided by the temperature; a subclass may have a rule of its own.

        Everything uses it: the forward pass, summaries, penalties, selection. Unless the kind is stochastic and the
        model trains, `key` is None.
        """
        return squash(logits, self.kind, key=key, train=key is not None)

    @nn.nowrap
    def temperature_at(self, step: Any) -> Any:
        """T at a step. Raises ValueError unless a constant one is positive."""
        if callable(self.temperature):
            return self.temperature(step)
        check_positive(temperature=self.temperature)
        return self.temperature


def check_floating(x: AnyArray) -> None:
    """Raises ValueError unless `x` is of a floating-point dtype: a gate times integers would be rounded to 0."""
    expect(jnp.issubdtype(x.dtype, jnp.floating), "input of a gate", "floating-point values", x.dtype)


def squash_in(module: nn.Module, logits: Float[Array, "..."], train: bool) -> Float[Array, "..."]:
    """`logits` squashed by ``module.kind``, a stochastic kind in training with a draw of stream ``"gates"``."""
    return squash(logits, module.kind, key=draw_key(module, train), train=train)


def draw_key(module: nn.Module, train: bool) -> Key | None:
    """A key of stream ``"gates"`` if ``module.kind`` is drawn at random in training, and it trains."""
    return module.make_rng(GATES) if train and get_squashing(module.kind).sample is not None else None


def along_axis(values: Float[Array, " channels"], axis: int, ndim: int) -> Float[Array, "..."]:
    """`values` reshaped to rank `ndim` with its entries along `axis`, ready to multiply."""
    return values.reshape([-1 if i == axis else 1 for i in range(ndim)])
