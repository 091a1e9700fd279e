"""What the models share: the call of an injected gate, initial values, and small layers."""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn import initializers
from jaxtyping import Array, Float

from fsg_jax.gates.sites import Site, Use
from fsg_jax.typing import Images

ModuleDef: TypeAlias = Callable[..., Any]
"""A factory of modules, such as a module class or a `functools.partial` of one; called with ``name=...``."""

FeatureMaps: TypeAlias = Float[Array, "batch _height _width _channels"]
"""Like `fsg_jax.typing.Images`, but sizes may differ between the maps of one call."""

Tokens: TypeAlias = Float[Array, "batch tokens dim"]
Patches: TypeAlias = Float[Array, "batch rows columns dim"]


def apply_gate(gate: ModuleDef | None, x: Array, *, name: str, train: bool) -> Array:
    """Passes `x` through a new gate called `name`, if there is a gate; for use in a compact method."""
    return x if gate is None else gate(name=name)(x, train=train)


class FixedScale(nn.Module):
    """``y = x * scale`` over the last axis: what is left of a gate that no weight can absorb (`fsg_jax.fold_gates`).

    A factory of it takes the place of the gate in a folded model. The scales are in the collection ``"scales"``, which
    no optimizer moves.

    Attributes:
      at: paths of the gates that are left; every other place passes its input on.
    """

    at: Sequence[str] = ()

    @nn.compact
    def __call__(self, x: Float[Array, "..."], *, train: bool = False) -> Float[Array, "..."]:
        """The same shape and dtype as `x`."""
        path = "/".join(self.path)
        if not any(path == name or path.endswith(f"/{name}") for name in self.at):
            return x
        values = self.variable("scales", "scale", jnp.ones, x.shape[-1]).value
        return x * values.reshape([1] * (x.ndim - 1) + [-1]).astype(x.dtype)


fan_in_uniform = initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""``U(-1/sqrt(fan_in), 1/sqrt(fan_in))``, PyTorch's rule for the kernels of linear and convolution layers."""


def bias_uniform(fan_in: int) -> Callable[..., Array]:
    """The same rule for their biases, whose fan-in is that of the kernel."""
    bound = fan_in**-0.5
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


@jax.custom_jvp
def gelu(x: Array) -> Array:
    """Computes ``x Phi(x)``, where ``Phi`` is the normal distribution function (Hendrycks and Gimpel 2016).

    Computed with ``erf``, and in float32 at least whatever the type of `x`, as in PyTorch. JAX's own function uses
    ``erfc``, which is more precise far below 0 and slower, rounds every step to the type of `x`, and keeps two arrays
    for the backward pass; this one keeps `x`.
    """
    wide = _at_least_float32(x)
    return (wide * _normal_distribution(wide)).astype(x.dtype)


@gelu.defjvp
def _gelu_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (tangent,) = primals, tangents
    return gelu(x), _times_slope(x, tangent)


@jax.checkpoint
def _times_slope(x: Array, tangent: Array) -> Array:
    wide = _at_least_float32(x)
    density = jnp.exp(-0.5 * jnp.square(wide)) * (2 * math.pi) ** -0.5
    return tangent * (_normal_distribution(wide) + wide * density).astype(x.dtype)


def _at_least_float32(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _normal_distribution(x: Array) -> Array:
    return 0.5 * (1 + jax.lax.erf(x * 2**-0.5))


class PatchEmbed(nn.Module):
    """Non-overlapping patches, each projected to `dim` channels (Dosovitskiy et al. 2021); row-major."""

    dim: int
    patch_size: int
    dtype: Any = jnp.float32
    conv: ModuleDef = nn.Conv

    @nn.compact
    def __call__(self, x: Images) -> Patches:
        """Maps (batch, height, width, channels) to (batch, height / patch_size, width / patch_size, dim).

        Raises:
          ValueError: height or width is no multiple of `patch_size`.
        """
        p = self.patch_size
        _, height, width, channels = x.shape
        if height % p or width % p:
            raise ValueError(f"patch_size: expected a divisor of height and width, found {p} for {height} x {width}")
        return self.conv(
            self.dim,
            (p, p),
            strides=p,
            padding="VALID",
            dtype=self.dtype,
            kernel_init=fan_in_uniform,
            bias_init=bias_uniform(p * p * channels),
            name="proj",
        )(x)


class Mlp(nn.Module):
    """``W2 g(gelu(W1 x + b1)) + b2``, ``g`` the gate if any; GELU is exact or by tanh; dropout after both layers."""

    hidden: int
    dropout: float = 0.0
    kernel_init: Callable[..., Array] = initializers.normal(0.02)
    dtype: Any = jnp.float32
    approximate: bool = False
    gate: ModuleDef | None = None

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool = False) -> Tokens:
        """The same shape as `x`; random stream ``"dropout"`` in training."""
        dim = x.shape[-1]
        x = nn.Dense(self.hidden, dtype=self.dtype, kernel_init=self.kernel_init, name="fc1")(x)
        x = jax.nn.gelu(x, approximate=True) if self.approximate else gelu(x)
        x = nn.Dropout(self.dropout, name="drop1")(x, deterministic=not train)
        x = apply_gate(self.gate, x, name="gate", train=train)
        x = nn.Dense(dim, dtype=self.dtype, kernel_init=self.kernel_init, name="fc2")(x)
        return nn.Dropout(self.dropout, name="drop2")(x, deterministic=not train)

    @staticmethod
    def hidden_site(hidden: int) -> Site:
        """The site of the gate on `hidden` units, paths within the module."""
        return Site(hidden, (Use("fc2", "in"),), made=(Use("fc1", "out"),))


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
