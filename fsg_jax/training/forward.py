"""How a Flax module is called in training and in evaluation: its flag, its random streams, its collections."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from flax.core import unfreeze

from fsg_jax.gates.functions import get_squashing
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
        self,
        variables: dict[str, PyTree],
        inputs: Sequence[Any],
        key: Key,
        tx: RoutedTransformation | None = None,
    ) -> tuple[Any, dict[str, PyTree]]:
        """Returns outputs and updated model state. BatchNorm in a frozen part of `tx` uses its running statistics."""
        model, arguments = self._mode(True)
        rngs = {name: jax.random.fold_in(key, i) for i, name in enumerate(self.rngs)}
        mutable = [name for name in variables if name not in self.trainable]

        def hold(next_fun: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
            module = context.module
            if isinstance(module, nn.BatchNorm) and is_frozen("/".join(("batch_stats", *module.path, "mean"))):
                object.__setattr__(module, "use_running_average", None)
                kwargs = {**kwargs, "use_running_average": True}
            return next_fun(*args, **kwargs)

        is_frozen = (lambda _: False) if tx is None else tx.is_frozen
        with nn.intercept_methods(hold):
            outputs, state = model.apply(variables, *inputs, rngs=rngs, mutable=mutable, **arguments)
        return outputs, unfreeze(dict(state))

    def evaluate(
        self, variables: dict[str, PyTree], inputs: Sequence[Any], capture: Sequence[str] = ()
    ) -> tuple[Any, dict[str, PyTree]]:
        """Returns outputs and the collections of `capture` that the model sows into."""
        model, arguments = self._mode(False)
        outputs, captured = model.apply(variables, *inputs, mutable=list(capture), **arguments)
        return outputs, unfreeze(dict(captured))

    def _mode(self, train: bool) -> tuple[nn.Module, Mapping[str, Any]]:
        if self.flag is None:
            return self.model, {}
        if not isinstance(self.flag, Flag):
            return self.model, self.flag(train)
        value = train == self.flag.in_training
        if self.flag.attribute:
            return self.model.clone(**{self.flag.name: value}), {}  # type: ignore[arg-type]
        return self.model, {self.flag.name: value}


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
        if given not in parameters and given not in attributes and not anything:
            raise ValueError(
                f"train_flag: expected an argument of {type(model).__name__}.__call__, one of "
                f"{[*parameters][1:]}, or an attribute, found {given!r}"
            )
        return Flag(given, FLAGS.get(given, True), given not in parameters and given in attributes)
    for names, attribute in ((parameters, False), (attributes, True)):
        known = [name for name in names if name in FLAGS]
        if len(known) > 1:
            raise ValueError(
                f"train_flag: expected one flag of {type(model).__name__}, found {known}; "
                f"name it, or give a function: train_flag=lambda train: {{{known[0]!r}: ..., {known[1]!r}: ...}}"
            )
        if known:
            return Flag(known[0], FLAGS[known[0]], attribute)
    return None


class Watch:
    """Notes which parts of a model act otherwise in training than in evaluation, while it is traced."""

    def __init__(self) -> None:
        self.parts: dict[str, str] = {}
        """Path to class of dropout, BatchNorm and stochastic gates."""
        self.not_drawn: list[str] = []
        """Stochastic gates that were called without ``train=True``."""

    def __call__(self, next_fun: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        """An interceptor for `flax.linen.intercept_methods`."""
        module = context.module
        if context.method_name == "__call__":
            path = "/".join(module.path) or "the model itself"
            rate = getattr(module, "rate" if isinstance(module, nn.Dropout) else "dropout_rate", 0)
            stochastic = _is_stochastic(module)
            dropout = isinstance(module, nn.Dropout | nn.MultiHeadDotProductAttention) and rate
            if isinstance(module, nn.BatchNorm) or dropout or stochastic:
                self.parts[path] = type(module).__name__
            if stochastic and not kwargs.get("train", False):
                self.not_drawn.append(path)
        return next_fun(*args, **kwargs)


def _is_stochastic(module: nn.Module) -> bool:
    if not type(module).__module__.startswith("fsg_jax.gates") and not hasattr(module, "logits_init"):
        return False
    return get_squashing(module.kind).sample is not None
