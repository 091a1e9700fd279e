"""Which gates a model has: the kind of every leaf of gate logits, found by tracing the model."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax

from fsg_jax._checks import expect
from fsg_jax.gates.functions import Kind
from fsg_jax.gates.gate import Gate
from fsg_jax.gates.summary import by_name, split_name
from fsg_jax.typing import GATES, GateKinds


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
                found[name], channels[name] = kind_of(module), logits.shape[-1:]
        return out

    with nn.intercept_methods(record):
        shapes = jax.eval_shape(init, *args)
    leaves = by_name(shapes.get(GATES, {}))
    for name, leaf in leaves.items():
        wanted = f"{channels.get(name)} channels and stacked layers before them (variable_axes={{'gates': 0}})"
        expect(leaf.shape[-1:] == channels.get(name, leaf.shape[-1:]), f"gate {name!r}", wanted, f"logits {leaf.shape}")
    found = {name: kind for name, kind in found.items() if name in leaves} | dict(known or {})
    differ = sorted(leaves.keys() ^ found.keys() | {name for name, kind in found.items() if kind is None})
    wanted = f"a kind for each of {sorted(leaves)}, from a method values(logits) or init_state(gate_kinds=...)"
    expect(not differ, "gates", wanted, f"none, or no such leaf, for {differ}")
    return tuple(found.items()), shapes


def kind_of(module: Any) -> Any:
    """The kind by which the values of a module's logits are found again; None if it does not tell."""
    if isinstance(module, Gate) and type(module).values is Gate.values and module.temperature == 1.0:
        return module.kind
    return module.clone(parent=None, name=None) if hasattr(module, "values") else None
