"""Sites: which weights make the channels that a gate multiplies, and which weights read them.

Each model of the library tells it by a method ``gate_sites() -> dict[str, Site]``, by the name of the gate, in the
order of the forward pass. `fsg_jax.fold_gates`, `fsg_jax.prune` and `fsg_jax.mask_gates` read that and know no model by
name, so a model of your own can have the method too::

    def gate_sites(self):  # y = Dense(gate(x))
        return {"gate": Site(self.features, absorb=(Use("dense", "in"),))}
"""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float

from fsg_jax._checks import expect
from fsg_jax.gates.gate import along_axis
from fsg_jax.typing import Variables

OUT = ("kernel", "bias", "scale", "gamma")
"""The leaves that a factor of the output channels multiplies, on their last axis."""


class Use(NamedTuple):
    """The weights of one module that belong to the channels of a site.

    Attributes:
      module: its path, e.g. ``"layer1_0/conv2"``.
      side: ``"out"``: its output channels, the last axis of all its leaves, BatchNorm's statistics included; ``"in"``:
        its input channels, the axis before the last of its kernel.
      offset: index of the first channel on that axis.
      repeat: entries of a channel, one after the other: the features of an attention head.
    """

    module: str
    side: str
    offset: int = 0
    repeat: int = 1

    def indices(self, channels: Any) -> np.ndarray:
        """Where `channels` (integers) lie on the axis."""
        return (self.offset + np.asarray(channels)[:, None] * self.repeat + np.arange(self.repeat)).reshape(-1)


class Shortcut(NamedTuple):
    """An identity shortcut: the gated map goes on to the gate `to`, and on the way `branch` is added to it.

    Attributes:
      to: name of the next gate.
      branch: the output channels of the modules that end the added branches.
      rectified: ReLU follows the sum, so that only a positive factor can pass.
    """

    to: str
    branch: tuple[Use, ...]
    rectified: bool


class Site(NamedTuple):
    """The channels that a gate multiplies.

    Attributes:
      channels: how many.
      absorb: weights that replace the gate when they are multiplied by its values; none: nothing can.
      shortcut: an identity shortcut that the gated map takes too.
      made: what makes the channels; given only where they can be removed, which `absorb` then must read.
      unit: features of a channel, of which the divisor and the least number of `fsg_jax.prune` count.
      grouped_by: name of the site whose channels are groups of these: as many are removed from each group, and all
        from a group that goes.
      exposed: the model returns the map, its mean over space at most.
    """

    channels: int
    absorb: tuple[Use, ...] = ()
    shortcut: Shortcut | None = None
    made: tuple[Use, ...] = ()
    unit: int = 1
    grouped_by: str | None = None
    exposed: bool = False

    def within(self, prefix: str) -> "Site":
        """The site in a model that has this one's model at the path `prefix`."""

        def move(uses: tuple[Use, ...]) -> tuple[Use, ...]:
            return tuple(use._replace(module=f"{prefix}/{use.module}") for use in uses)

        on, by = self.shortcut, self.grouped_by
        on = on and on._replace(to=f"{prefix}/{on.to}", branch=move(on.branch))
        by = by and f"{prefix}/{by}"
        return self._replace(absorb=move(self.absorb), made=move(self.made), shortcut=on, grouped_by=by)


def sites_of(model: nn.Module) -> dict[str, Site]:
    """The sites of a model.

    Raises:
      ValueError: the model does not tell them.
    """
    tell: Any = getattr(model, "gate_sites", None)
    expect(tell is not None, type(model).__name__, "a model with a method gate_sites()", "none (fsg_jax.gates.sites)")
    return tell()


def factory_of(make: Any) -> Any:
    """The class or function below partial applications."""
    while isinstance(make, partial):
        make = make.func
    return make


def check_linear(argument: str, factory: Any, *classes: type) -> None:
    """Raises ValueError unless `factory` makes modules of exactly one of `classes`, without groups of its own."""
    groups = getattr(factory, "keywords", {}).keys() & {"feature_group_count"}
    wanted = f"{' or '.join(c.__name__ for c in classes)} without groups, whose weights take a factor a channel"
    expect(factory_of(factory) in classes and not groups, argument, wanted, factory)


def widths_below(widths: Mapping[str, int] | None, name: str) -> dict[str, int]:
    """The entries of `widths` below the path `name`, by the rest of their path."""
    return {k.removeprefix(f"{name}/"): v for k, v in (widths or {}).items() if k.startswith(f"{name}/")}


def flat_variables(variables: Variables) -> dict[str, Any]:
    """Leaves by path, ``"params/layer1_0/conv1/kernel"``."""
    return flatten_dict(dict(variables), sep="/")


def nested_variables(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flat_variables`."""
    return unflatten_dict(dict(flat), sep="/")


def can_scale(flat: Mapping[str, Any], uses: Iterable[Use]) -> bool:
    """Whether every use has a leaf that takes a factor: a kernel, or for outputs a scale; a bias alone does not."""
    takes = {"in": ("kernel",), "out": ("kernel", "scale", "gamma")}
    return all(any(f"params/{use.module}/{leaf}" in flat for leaf in takes[use.side]) for use in uses)


def scale(flat: dict[str, Any], uses: Iterable[Use], factor: Float[Array, " channels"]) -> None:
    """Multiplies the weights of `uses` by the factors of their channels, in place of the old leaves in `flat`."""
    for use in uses:
        where = use.indices(np.arange(factor.shape[0]))
        for leaf in OUT if use.side == "out" else ("kernel",):
            path, axis = f"params/{use.module}/{leaf}", -1 if use.side == "out" else -2
            if path in flat:
                old = jnp.asarray(flat[path])
                if use.side == "in" and old.ndim > 2 and old.shape[-2] == 1 != factor.shape[0]:  # depthwise
                    axis = -1
                wanted = f"{where.max() + 1} entries or more on axis {axis}, of which {use} tells"
                expect(where.max() < old.shape[axis], path, wanted, old.shape)
                by = jnp.ones(old.shape[axis], jnp.float32).at[where].set(jnp.repeat(factor, use.repeat))
                product = old.astype(jnp.float32) * along_axis(by, axis % old.ndim, old.ndim)
                flat[path] = product.astype(old.dtype)


def remove(flat: dict[str, Any], uses: Iterable[tuple[Use, Any]]) -> None:
    """Removes the given channels (integers) of each use; arrays of NumPy take the place of the old leaves in `flat`.

    In JAX, every new shape would be a program to compile.
    """
    gone: dict[tuple[str, int], set[int]] = {}
    for use, channels in uses:
        below = [f"{kind}/{use.module}" for kind in ("params", "batch_stats")]
        for path in [path for path in flat if path.rpartition("/")[0] in below]:
            if use.side == "out" or path.endswith("/kernel"):
                key = (path, -1 if use.side == "out" else -2)
                gone.setdefault(key, set()).update(use.indices(channels).tolist())
    for (path, axis), where in gone.items():
        flat[path] = np.delete(np.asarray(flat[path]), np.asarray(sorted(where), int), axis=axis)
