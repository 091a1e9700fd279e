"""Checks of what models are given: their arguments, the factories among these, and images."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array

from fsg_jax._checks import check_integer, did_you_mean, expect, look_up


def check_arguments(
    constructors: Mapping[str, Callable[..., nn.Module]], name: str, kind: str, arguments: Mapping[str, Any]
) -> None:
    """Raises ValueError unless `name` is in `constructors` and its module takes all of `arguments`."""
    options = inspect.signature(look_up(constructors, name, kind)).parameters.keys() - {"parent"}
    for argument in sorted(arguments.keys() - options):
        raise ValueError(
            f"{kind} {name!r}: expected arguments of {', '.join(sorted(options))}, found {argument!r}"
            f"{did_you_mean(argument, options)}"
        )


def check_factory(argument: str, factory: object) -> None:
    """Raises ValueError unless `factory` is None or makes modules; an instance of a module does not."""
    if isinstance(factory, nn.Module) or not (factory is None or callable(factory)):
        raise ValueError(
            f"{argument}: expected None or a factory (a module class or a functools.partial of one), found "
            f"{factory!r}. Pass {argument}=Gate or {argument}=functools.partial(Gate, ...), not {argument}=Gate(...)"
        )


def bound_arguments(factory: Any) -> set[str]:
    """Names of the arguments that a `functools.partial` of a module class sets; none of the class itself."""
    names, count = set[str](), 0
    while isinstance(factory, partial):
        names, count, factory = names | factory.keywords.keys(), count + len(factory.args), factory.func
    return names | set(list(inspect.signature(factory).parameters)[:count])


def takes(module: nn.Module, argument: str) -> bool:
    """Whether a module can be called with an argument of this name."""
    return argument in inspect.signature(type(module).__call__).parameters


def check_widths(widths: Mapping[str, int], sites: Iterable[str]) -> None:
    """Raises ValueError unless `widths` are positive integers by names of `sites`."""
    known = set(sites)
    for name, width in widths.items():
        expect(name in known, "widths", f"names of sites such as {min(known, default='none')!r}", repr(name))
        check_integer(f"widths[{name!r}]", width, 1)


def check_images(x: Array) -> None:
    """Raises ValueError unless `x` is a non-empty floating-point array (batch, height, width, channels)."""
    if x.ndim != 4 or 0 in x.shape[1:]:
        raise ValueError(f"images: expected shape (batch, height, width, channels), found {x.shape}")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"images: expected floating point, already normalised, found {x.dtype}")
