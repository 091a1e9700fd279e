"""Folding: gates multiplied into the weights beside them, so that a network without gates computes the same."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from fsg_jax._checks import expect
from fsg_jax.gates.sites import Site, can_scale, factory_of, flat_variables, nested_variables, scale, sites_of
from fsg_jax.gates.summary import by_name, rule_of
from fsg_jax.linen.gate_kinds import kind_of
from fsg_jax.models.layers import FixedScale
from fsg_jax.typing import GATE_STEP, GATES, Variables


def fold_gates(model: nn.Module, variables: Variables) -> tuple[nn.Module, dict[str, Any]]:
    """The model without gates, and variables with which it computes what the gated model computes in evaluation.

    A gate goes into the weights that read its channels or, on a branch, into those that end it. On a map that an
    identity shortcut carries on, the values go on to the next gate and the branch that is added is divided by them.
    Where a value is 0, or so near it that the division would overflow, or negative before a ReLU, the channel keeps a
    fixed scale at that place; so do the values of gates that nothing reads, such as those on the features of a model
    without a head. The collection ``"scales"`` of the result lists these places, if there are any, and the model's
    ``gate`` is then a factory of `fsg_jax.models.layers.FixedScale`; otherwise it is None.

    Args:
      model: with a method ``gate_sites()`` (`fsg_jax.gates.sites`) and an attribute ``gate``, as all of the library.
      variables: by collection, those of a `fsg_jax.TrainState` for instance.

    Returns:
      The model, and its variables by collection, in the dtypes that they have. Stochastic gates take their
      deterministic values. Without gates both are what was given.

    Raises:
      ValueError: gates that depend on their input; a gate of which the model does not tell what reads it.
    """
    if factory_of(getattr(model, "gate", None)) in (None, FixedScale):
        expect(not variables.get(GATES), "variables", "no gates, as the model has none", sorted(variables))
        return model, dict(variables)
    flat, sites, values = flat_variables(variables), sites_of(model), values_of(model, variables)
    flat = {path: leaf for path, leaf in flat.items() if path.split("/")[0] not in (GATES, GATE_STEP)}
    smallest = float(jnp.finfo(getattr(model, "dtype", jnp.float32)).smallest_normal) ** (1 / 3)
    carried, at = dict[str, Array](), tuple[str, ...]()
    for name, site in sites.items():
        if name in values:
            factor = values.pop(name) * carried.pop(name, jnp.ones(()))
            channels = f"{site.channels} channels, as {type(model).__name__}.gate_sites() tells"
            expect(factor.shape == (site.channels,), f"gate {name!r}", channels, factor.shape)
            left = _absorb(flat, site, factor, carried, smallest)
            if jnp.any(left != 1):
                flat[f"scales/{name}/scale"], at = left, (*at, name)
    expect(not values, "gates", f"gates of which {type(model).__name__}.gate_sites() tells", sorted(values))
    return model.clone(gate=partial(FixedScale, at=at) if at else None), nested_variables(flat)


def values_of(model: Any, variables: Variables) -> dict[str, Float[Array, " channels"]]:
    """Deterministic values of the gates by name, by the rule of the model's own gate.

    Raises:
      ValueError: gates that depend on their input, or of which it is not known how logits become values.
    """
    gates, kind = by_name(variables.get(GATES, {})), kind_of(model.gate(name=None))
    expect(gates and kind is not None, "gate", "static gates, with logits in the collection 'gates'", model.gate)
    for name, logits in gates.items():
        expect(jnp.ndim(logits) == 1, f"gate {name!r}", "one logit a channel", f"logits of shape {jnp.shape(logits)}")
    steps = flat_variables({GATE_STEP: variables.get(GATE_STEP, {})})
    return {name: rule_of(kind, steps.get(f"{GATE_STEP}/{name}/step", 0))(logits) for name, logits in gates.items()}


def _absorb(
    flat: dict[str, Any], site: Site, factor: Float[Array, " channels"], carried: dict[str, Array], smallest: float
) -> Float[Array, " channels"]:
    """Multiplies `factor` into the weights of `flat`; returns what is left of it, 1 where nothing is."""
    on, one = site.shortcut, jnp.ones_like(factor)
    if not site.absorb or not can_scale(flat, site.absorb + (on.branch if on else ())):
        return factor
    if on is None:
        scale(flat, site.absorb, factor)
        return one
    passes = (factor if on.rectified else jnp.abs(factor)) > smallest
    through = jnp.where(passes, factor, one)
    scale(flat, site.absorb, through)
    scale(flat, on.branch, 1 / through)
    carried[on.to] = through
    return jnp.where(passes, one, factor)
