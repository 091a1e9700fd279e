"""Models of NNX in the step of `fsg_jax.training`: a module as variables by collection, and back."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import optax
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from fsg_jax._checks import expect
from fsg_jax.gates.functions import Kind
from fsg_jax.gates.summary import by_name
from fsg_jax.linen.gate_kinds import kind_of
from fsg_jax.nnx.gate import Gate
from fsg_jax.routing.labels import RoutedTransformation, as_routed
from fsg_jax.training.new_state import new_state
from fsg_jax.training.state import TrainState
from fsg_jax.training.step import make_train_step
from fsg_jax.typing import GATES, Key, PyTree

__all__ = ["NnxForward", "init_state", "make_train_step", "merge"]

Path = tuple[Any, ...]


class NnxForward(NamedTuple):
    """Calls an NNX module of which the variables are given by collection.

    Attributes:
      model: the graph definition of the module.
      paths: collection and path of every variable.
      trainable: collections that optimizers move.
    """

    model: Any
    paths: tuple[tuple[str, Path], ...]
    trainable: tuple[str, ...]

    def merge(self, variables: Mapping[str, PyTree]) -> nnx.Module:
        """The module with these variables."""
        flat = {name: flatten_dict(tree) for name, tree in variables.items()}
        return nnx.merge(
            self.model, unflatten_dict({path: flat[name][tuple(map(str, path))] for name, path in self.paths})
        )

    def train(
        self, variables: dict[str, PyTree], inputs: Sequence[Any], key: Key, tx: RoutedTransformation
    ) -> tuple[Any, dict[str, PyTree]]:
        """Returns outputs and updated model state. Random draws are those of the module's own streams, not of `key`."""
        del key
        module = self.merge(variables)
        for path, part in nnx.iter_modules(module):
            stats = "/".join(("batch_stats", *map(str, path), "mean"))
            if isinstance(part, nnx.BatchNorm) and tx.is_frozen(stats):
                part.use_running_average = True
        outputs = module(*inputs)
        found = by_collection(nnx.state(module), self.paths)
        return outputs, {name: tree for name, tree in found.items() if name not in self.trainable}

    def evaluate(
        self, variables: dict[str, PyTree], inputs: Sequence[Any], capture: Sequence[str] = ()
    ) -> tuple[Any, dict[str, PyTree]]:
        """Returns outputs and the variables of the types of `capture` that the module sows."""
        module = self.merge(variables)
        module.eval()
        outputs = module(*inputs)
        sown = by_collection(nnx.state(module)) if capture else {}
        return outputs, {name: sown[name] for name in capture if name in sown}


def by_collection(state: Any, paths: Sequence[tuple[str, Path]] | None = None) -> dict[str, PyTree]:
    """The arrays of a state by the names of their Variable types, which are those of Flax's collections."""
    flat = {(name_of(variable), path): variable[...] for path, variable in nnx.to_flat_state(state)}
    wanted = flat if paths is None else paths
    return unflatten_dict({(name, *map(str, path)): flat[name, path] for name, path in wanted})


def name_of(variable: Any) -> str:
    """Name of a Variable's type."""
    return nnx.variablelib.variable_name_from_type(type(variable), allow_register=True)


def init_state(
    model: nnx.Module,
    tx: optax.GradientTransformation | RoutedTransformation,
    key: Key | None = None,
    *,
    ema_decay: float | None = None,
    trainable: Sequence[str] = ("params", GATES),
    gate_kinds: Mapping[str, Kind] | None = None,
) -> TrainState:
    """The state at step 0 of an NNX module, for `make_train_step`, `fsg_jax.make_eval_step` and all that takes a state.

    In training the module is called as it is given, so that parts of it can stay in evaluation mode; in evaluation it
    is called after ``model.eval()``. Its random streams are part of the state; all passes of a step draw the same.

    Args:
      model: an NNX module. It is copied.
      tx: as for `fsg_jax.init_state`.
      key: seeds augmentation (``transform``); the model's draws are those of its own streams. None: key 0.
      ema_decay: as for `fsg_jax.init_state`.
      trainable: collections that optimizers move: names of Variable types, e.g. ``"params"`` of ``nnx.Param``.
      gate_kinds: kinds of `GateLogits` outside of a `Gate`, by path.

    Raises:
      ValueError: as `fsg_jax.init_state`; gate logits without a kind.
    """
    graph, state = nnx.split(model)
    paths = tuple((name_of(variable), path) for path, variable in nnx.to_flat_state(state))
    values = by_collection(state)
    absent = sorted(set(trainable) - values.keys() - {"params", GATES})
    expect(not absent, "trainable", f"collections of the model, {sorted(values)}", absent)
    if still := [
        "/".join(map(str, path))
        for path, part in nnx.iter_modules(model)
        if getattr(part, "deterministic", False) or getattr(part, "use_running_average", False)
    ]:
        warnings.warn(f"model: {still} are in evaluation mode and stay in it in training", stacklevel=2)
    rules = {"/".join(map(str, p)): kind_of(part.rule) for p, part in nnx.iter_modules(model) if isinstance(part, Gate)}
    rules |= dict(gate_kinds or {})
    names = by_name(values.get(GATES, {})).keys()
    expect(names == rules.keys(), "gate_kinds", f"a kind for each of {sorted(names)}", sorted(rules))
    forward = NnxForward(graph, paths, tuple(trainable))
    key = jax.random.key(0) if key is None else key
    return new_state(forward, as_routed(tx), key, values, tuple(rules.items()), ema_decay)


def merge(state: TrainState) -> nnx.Module:
    """The module with the variables of a state."""
    return state.forward.merge(state.variables)
