"""How a Flax module is called in training and in evaluation: its flag, its random streams, its collections."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from flax.core import unfreeze

from fsg_jax._checks import expect
from fsg_jax.gates.channel_attention import EfficientChannelAttention, SqueezeExcite
from fsg_jax.gates.functions import get_squashing
from fsg_jax.gates.gate import Gate
from fsg_jax.routing.labels import RoutedTransformation
from fsg_jax.typing import Key, PyTree

FLAGS = {"train": True, "training": True, "is_training": True, "is_train": True}
FLAGS |= dict.fromkeys(("deterministic", "use_running_average", "inference", "is_eval"), False)
"""Names of the argument that tells a module whether it trains, and what it is in training."""

ModeArguments = Callable[[bool], Mapping[str, Any]]
"""Whether the model trains -> keyword arguments of its call."""


class Flag(NamedTuple):
    """The flag of a module: a name, its value in training, and whether it is an attribute instead of an argument."""

    name: str
    in_training: bool = True
    attribute: bool = False


class Forward(NamedTuple):
    """Calls a Flax module.

    Attributes:
      model: the module.
      flag: tells it whether it trains.
      rngs: names of the random streams that it is given in training.
      trainable: collections that optimizers move; all others are model state, which the forward pass updates.
    """

    model: nn.Module
    flag: Flag | ModeArguments | None
    rngs: tuple[str, ...]
    trainable: tuple[str, ...]

    def init(self, key: Key, *inputs: Any) -> dict[str, PyTree]:
        """Initial variables, by collection."""
        model, arguments = self._mode(False)
        return unfreeze(dict(model.init(key, *inputs, **arguments)))

    def train(
        self, variables: dict[str, PyTree], inputs: Sequence[Any], key: Key, tx: RoutedTransformation
    ) -> tuple[Any, dict[str, PyTree]]:
        """Returns outputs and updated model state. BatchNorm in a frozen part of `tx` uses its running statistics."""
        model, arguments = self._mode(True)
        rngs = {name: jax.random.fold_in(key, i) for i, name in enumerate(self.rngs)}
        mutable = [name for name in variables if name not in self.trainable]

        def hold(next_fun: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
            module = context.module
            if isinstance(module, nn.BatchNorm) and tx.is_frozen("/".join(("batch_stats", *module.path, "mean"))):
                object.__setattr__(module, "use_running_average", None)
                kwargs = {**kwargs, "use_running_average": True}
            return next_fun(*args, **kwargs)

        with nn.intercept_methods(hold):
            outputs, state = model.apply(variables, *inputs, rngs=rngs, mutable=mutable, **arguments)
        return outputs, unfreeze(dict(state))

    def evaluate(
        self, variables: dict[str, PyTree], inputs: Sequence[Any], capture: Sequence[str] = (), **named: Any
    ) -> tuple[Any, dict[str, PyTree]]:
        """Returns outputs and the collections of `capture` that the model sows into; `named`: further arguments."""
        model, arguments = self._mode(False)
        outputs, captured = model.apply(variables, *inputs, mutable=list(capture), **arguments, **named)
        return outputs, unfreeze(dict(captured))

    def _mode(self, train: bool) -> tuple[nn.Module, Mapping[str, Any]]:
        if not isinstance(self.flag, Flag):
            return self.model, {} if self.flag is None else self.flag(train)
        arguments: Any = {self.flag.name: train == self.flag.in_training}
        return (self.model.clone(**arguments), {}) if self.flag.attribute else (self.model, arguments)


def find_flag(model: nn.Module, given: str | ModeArguments | None) -> Flag | ModeArguments | None:
    """The flag of `model`: the one that is given, or with ``"auto"`` the argument or attribute with a name of `FLAGS`.

    Raises:
      ValueError: the model has no such argument or attribute, or several with names of `FLAGS`.
    """
    if not isinstance(given, str):
        return given
    parameters = inspect.signature(type(model).__call__).parameters
    attributes = [field.name for field in dataclasses.fields(model)]
    if given != "auto":
        anything = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
        where = f"an argument or attribute of {type(model).__name__}, which takes {[*parameters][1:]}"
        expect(given in parameters or given in attributes or anything, "train_flag", where, repr(given))
        return Flag(given, FLAGS.get(given, True), given not in parameters and given in attributes)
    for names in (parameters, attributes):
        known = [name for name in names if name in FLAGS]
        expect(len(known) < 2, "train_flag", f"one flag of {type(model).__name__}, or a function", known)
        if known:
            return Flag(known[0], FLAGS[known[0]], names is attributes)
    return None


class Watch:
    """Notes which parts of a model act otherwise in training than in evaluation, while it is traced.

    Attributes:
      parts: path to class of dropout, BatchNorm and stochastic gates.
      not_drawn: paths of stochastic gates that were called without ``train=True``.
    """

    def __init__(self) -> None:
        self.parts: dict[str, str] = {}
        self.not_drawn: list[str] = []

    def __call__(self, next_fun: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        """An interceptor for `flax.linen.intercept_methods`."""
        module = context.module
        if context.method_name == "__call__" and module.scope is not None:
            path = "/".join(module.path)
            kind = getattr(module, "kind", None) if type(module).__call__ in _GATED else None
            drawn = kind is not None and get_squashing(kind).sample is not None
            rate = isinstance(module, nn.Dropout) and module.rate
            rate = rate or (isinstance(module, nn.MultiHeadDotProductAttention) and module.dropout_rate)
            if isinstance(module, nn.BatchNorm) or rate or drawn:
                self.parts[path] = type(module).__name__
            if drawn and not kwargs.get("train", False):
                self.not_drawn.append(path)
        return next_fun(*args, **kwargs)


_GATED = tuple(gate.__call__ for gate in (Gate, SqueezeExcite, EfficientChannelAttention))
