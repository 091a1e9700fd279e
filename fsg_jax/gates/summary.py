"""What gates do: their values by name, and a summary of each."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float

from fsg_jax.gates.functions import Kind, squash
from fsg_jax.gates.gate import GATES, Gate
from fsg_jax.typing import GateKinds


def find_gate_kinds(
    init: Callable[..., Any], *args: Any, known: Mapping[str, Kind] | None = None
) -> tuple[GateKinds, dict[str, Any]]:
    """``(name, kind)`` of every leaf of the ``"gates"`` collection, in the order of the forward pass; and all shapes.

    The model is traced without computing (`jax.eval_shape`). A gate's name is its module path, joined with ``/``; that
    of other logits is their path in the collection. Its kind is that of the `Gate`, or the module that has them, if
    that has a temperature or a method ``values(logits)`` of its own.

    Args:
      init: gives a model's variables by collection, e.g. ``model.init``.
      *args: of `init`.
      known: kinds by name, which go before what is found.

    Raises:
      ValueError: logits in the collection for which there is no kind; logits stacked along another axis than the first.
    """
    found, channels = {}, {}

    def record(next_fun: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        out, module = next_fun(*args, **kwargs), context.module
        own = {} if module.scope is None else module.variables.get(GATES, {})
        for leaf, logits in own.items():
            if not isinstance(logits, Mapping):
                name = split_name("/".join((*module.path, leaf)))
                found[name], channels[name] = _kind(module), logits.shape[-1:]
        return out

    with nn.intercept_methods(record):
        shapes = jax.eval_shape(init, *args)
    leaves = _flatten(shapes.get(GATES, {}))
    for name, leaf in leaves.items():
        if leaf.shape[-1:] != channels.get(name, leaf.shape[-1:]):
            raise ValueError(
                f"gate {name!r}: expected layers stacked along axis 0, found logits of shape {leaf.shape} for "
                f"{channels[name]} channels; give nn.scan or nn.vmap variable_axes={{'gates': 0}}"
            )
    found = {name: kind for name, kind in found.items() if name in leaves} | dict(known or {})
    if differ := sorted(leaves.keys() ^ found.keys() | {name for name, kind in found.items() if kind is None}):
        raise ValueError(
            f"gates: expected a kind for each of {sorted(leaves)}, found none, or no such leaf, for {differ}; "
            "a module may have a method values(logits), or init_state is given gate_kinds={name: kind}"
        )
    return tuple(found.items()), shapes


def _kind(module: nn.Module) -> Any:
    plain = isinstance(module, Gate) and type(module).values is Gate.values and module.temperature == 1.0
    if plain:
        return module.kind
    return module.clone(parent=None, name=None) if hasattr(module, "values") else None


def split_name(path: str) -> str:
    """The gate's name, from the path of its logits in the collection."""
    return path.removesuffix("logits").rstrip("/")


def _flatten(gates: Mapping[str, Any]) -> dict[str, Any]:
    return {split_name(path): leaf for path, leaf in flatten_dict(gates, sep="/").items()}


def rule_of(kind: Any, step: Any = 0) -> Callable[[Array], Array]:
    """The deterministic values of logits of a recorded kind, at a step of training."""
    if isinstance(kind, Gate):
        return lambda logits: kind.values(_float32(logits) / kind.temperature_at(step))
    if isinstance(kind, nn.Module):
        return kind.values
    return lambda logits: squash(logits, kind)


def _float32(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def flat_gates(gates: Mapping[str, Any], kinds: GateKinds) -> list[tuple[str, Array, Any]]:
    """``(name, logits, kind)`` of every gate, in the order of `kinds`.

    Of a stack of layers (``nn.scan``, ``nn.vmap``) each layer is a gate, ``name[i]``.

    Raises:
      ValueError: a leaf of the collection that `kinds` does not know, or the reverse.
    """
    flat, found = _flatten(gates), []
    if unknown := sorted(set(flat) ^ {name for name, _ in kinds}):
        raise ValueError(f"gates: expected the gates whose kinds are recorded, found differences at {unknown}")
    for name, kind in kinds:
        leaf = flat[name]
        for index in np.ndindex(leaf.shape[:-1]):
            stacked = f"[{','.join(map(str, index))}]" if index else ""
            found.append((name + stacked, jnp.atleast_1d(leaf[index]), kind))
    return found


def gates_and_kinds(state: Any, kinds: Any = None) -> tuple[Mapping[str, Any], GateKinds]:
    """The ``"gates"`` collection of a `TrainState` or of plain variables, and the kinds of its leaves."""
    gates = state.get(GATES, {}) if isinstance(state, Mapping) else state.gates
    if kinds is None:
        kinds = "sigmoid" if isinstance(state, Mapping) else state.gate_kinds
    if isinstance(kinds, Mapping):
        kinds = tuple(kinds.items())
    return gates, kinds if type(kinds) is tuple else tuple((name, kinds) for name in _flatten(gates))


def gate_values(state: Any, kinds: Any = None) -> dict[str, Float[Array, " channels"]]:
    """Deterministic gate values by gate name, in the order of the forward pass.

    Args:
      state: a `TrainState`, or variables by collection.
      kinds: of the gates, where they are not those of the state: one for all or a mapping by name. Plain variables do
        not know theirs; unless given they are taken for ``"sigmoid"``, the default of `Gate`.

    Raises:
      ValueError: a gate without a kind, or a kind without a gate.
    """
    leaves, step = flat_gates(*gates_and_kinds(state, kinds)), getattr(state, "step", 0)
    return {name: rule_of(kind, step)(logits) for name, logits, kind in leaves}


def gate_summary(
    state: Any, *, open_above: float = 0.95, closed_below: float = 0.05, kinds: Any = None
) -> dict[str, dict[str, Float[Array, ""]]]:
    """Per gate: mean value, share open, share closed, and mean binary entropy.

    Args:
      state: as for `gate_values`, like `kinds`.
      open_above: a gate value of at least this counts as open.
      closed_below: a gate value of at most this counts as closed.
      kinds: of the gates.

    Returns:
      ``{gate: {"mean", "open", "closed", "entropy"}}``, scalars; entropy in nats, of values clipped to [0, 1].
      Empty for a model without static gates.
    """
    return {name: summarise(s, open_above, closed_below) for name, s in gate_values(state, kinds).items()}


def summarise(
    values: Float[Array, " channels"], open_above: float = 0.95, closed_below: float = 0.05
) -> dict[str, Float[Array, ""]]:
    """The summary of one vector of gate values; see `gate_summary`."""
    return {
        "mean": jnp.mean(values),
        "open": jnp.mean(values >= open_above, dtype=jnp.float32),
        "closed": jnp.mean(values <= closed_below, dtype=jnp.float32),
        "entropy": jnp.mean(binary_entropy(values)),
    }


def binary_entropy(values: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """``-s log s - (1 - s) log(1 - s)`` in nats, of values clipped to just inside (0, 1): its gradient is finite."""
    eps = jnp.finfo(values.dtype).eps
    s = jnp.clip(values, eps, 1 - eps)
    return -s * jnp.log(s) - (1 - s) * jnp.log1p(-s)


def count_parameters(variables: Mapping[str, Any]) -> dict[str, int]:
    """Number of scalars by collection."""
    return {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in variables.items()}
