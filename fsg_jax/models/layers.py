"""Pieces that the models share: argument checks, the call of an injected gate, and small layers."""

from collections.abc import Callable
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn import initializers
from jaxtyping import Array, Float

from fsg_jax.typing import Images, Key

ModuleDef: TypeAlias = Callable[..., Any]
"""A factory of modules, such as a module class or a `functools.partial` of one; called with ``name=...``."""

FeatureMaps: TypeAlias = Float[Array, "batch _height _width _channels"]
"""Like `fsg_jax.typing.Images`, but sizes may differ between the maps of one call."""

Tokens: TypeAlias = Float[Array, "batch tokens dim"]


def check_factory(argument: str, factory: object) -> None:
    """Raise ValueError unless `factory` is None or makes modules; an instance of a module does not."""
    if isinstance(factory, nn.Module) or not (factory is None or callable(factory)):
        raise ValueError(
            f"{argument} must be None or a factory: a module class or a functools.partial of one. Found "
            f"{factory!r}. Pass the class, {argument}=Gate or {argument}=functools.partial(Gate, ...), "
            f"not an instance, {argument}=Gate(...)"
        )


def check_choice(argument: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{argument} must be one of {', '.join(map(repr, choices))}; found {value!r}")


def check_positive(**numbers: float) -> None:
    """Raise ValueError unless every number is above 0."""
    for argument, value in numbers.items():
        if value <= 0:
            raise ValueError(f"{argument} must be positive; found {value}")


def check_rates(**rates: float) -> None:
    """Raise ValueError unless every rate is in [0, 1)."""
    for argument, value in rates.items():
        if not 0 <= value < 1:
            raise ValueError(f"{argument} must be in [0, 1); found {value}")


def check_num_classes(num_classes: int) -> None:
    """Raise ValueError if `num_classes` is negative; 0 stands for a model without a head."""
    if num_classes < 0:
        raise ValueError(f"num_classes must be positive, or 0 for pooled features; found {num_classes}")


def check_images(x: Array) -> None:
    """Raise ValueError unless `x` is a non-empty floating-point array (batch, height, width, channels)."""
    if x.ndim != 4 or 0 in x.shape[1:]:
        raise ValueError(f"images must have shape (batch, height, width, channels); found {x.shape}")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"images must be floating point and already normalised; found dtype {x.dtype}")


def apply_gate(gate: ModuleDef | None, x: Array, *, name: str, train: bool) -> Array:
    """`x` through a new gate called `name`, or `x` itself if `gate` is None. Call it in a compact method."""
    return x if gate is None else gate(name=name)(x, train=train)


def symmetric_uniform(bound: float) -> Callable[..., Array]:
    """Initializer of ``U(-bound, bound)``."""

    def init(key: Key, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


fan_in_uniform = initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""``U(-1/sqrt(fan_in), 1/sqrt(fan_in))``, PyTorch's rule for the kernels of linear and convolution layers."""


def gelu(x: Array) -> Array:
    """``x Phi(x)`` with the normal distribution function ``Phi`` (Hendrycks and Gimpel 2016), not approximated.

    In float32 by ``erf``, as in PyTorch; JAX's own is by ``erfc``, which is more precise far below 0 and slower on a
    CPU. In other types it is JAX's.
    """
    if x.dtype != jnp.float32:
        return jax.nn.gelu(x, approximate=False)
    return 0.5 * x * (1 + jax.lax.erf(x * 2**-0.5))


class PatchEmbed(nn.Module):
    """Non-overlapping patches, each projected to `dim` channels (Dosovitskiy et al. 2021); row-major."""

    dim: int
    patch_size: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Images) -> Tokens:
        """(batch, height, width, channels) to (batch, height * width / patch_size**2, dim).

        Raises:
          ValueError: height or width is no multiple of `patch_size`.
        """
        p = self.patch_size
        batch, height, width, channels = x.shape
        if height % p or width % p:
            raise ValueError(f"image height and width must be multiples of patch_size {p}; found {height} x {width}")
        x = nn.Conv(
            self.dim,
            (p, p),
            strides=p,
            padding="VALID",
            dtype=self.dtype,
            kernel_init=fan_in_uniform,
            bias_init=symmetric_uniform((p * p * channels) ** -0.5),
            name="proj",
        )(x)
        return x.reshape(batch, -1, self.dim)


class Mlp(nn.Module):
    """``W2 gelu(W1 x + b1) + b2`` with exact GELU; dropout after each of the two layers."""

    hidden: int
    dropout: float = 0.0
    kernel_init: Callable[..., Array] = initializers.normal(0.02)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool = False) -> Tokens:
        """The same shape as `x`; random stream ``"dropout"`` in training."""
        dim = x.shape[-1]
        x = nn.Dense(self.hidden, dtype=self.dtype, kernel_init=self.kernel_init, name="fc1")(x)
        x = gelu(x)
        x = nn.Dropout(self.dropout, name="drop1")(x, deterministic=not train)
        x = nn.Dense(dim, dtype=self.dtype, kernel_init=self.kernel_init, name="fc2")(x)
        return nn.Dropout(self.dropout, name="drop2")(x, deterministic=not train)


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): in training, an example's branch is 0 with probability `rate`.

    The branches that remain are scaled by ``1 / (1 - rate)``. Random stream ``"dropout"``.
    """

    rate: float

    @nn.compact
    def __call__(self, x: Float[Array, "batch ..."], *, train: bool = False) -> Float[Array, "batch ..."]:
        """`x`, or in training `x` with the branches of some examples dropped."""
        dims = tuple(range(1, x.ndim))
        return nn.Dropout(self.rate, broadcast_dims=dims, name="dropout")(x, deterministic=not train)


class LayerScale(nn.Module):
    """``y = gamma * x``, one parameter a channel, ``gamma = value`` at the start (Touvron et al. 2021)."""

    value: float

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        """The same shape and dtype as `x`."""
        gamma = self.param("gamma", initializers.constant(self.value), (x.shape[-1],), jnp.float32)
        return x * gamma.reshape(1, 1, -1).astype(x.dtype)
