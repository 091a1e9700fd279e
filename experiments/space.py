"""The values that a search tries: ranges and choices of dotted keys, beside a configuration or in a command line."""

import ast
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from experiments.checks import check
from experiments.config import change, flatten
from experiments.errors import UserError
from experiments.run_folder import EXECUTION


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; integers where the setting is one."""

    low: float
    high: float
    log: bool = False

    @property
    def values(self) -> tuple[Any, ...]:
        """The ends."""
        return self.low, self.high

    def __contains__(self, value: Any) -> bool:
        return isinstance(value, int | float) and self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{self.low}:{self.high}" + ":log" * self.log

    def suggest(self, trial: Any, key: str) -> float:
        """The value of an optuna trial."""
        kind = trial.suggest_int if isinstance(self.low, int) else trial.suggest_float
        return kind(key, self.low, self.high, log=self.log)


@dataclass(frozen=True)
class Choice:
    """One of some values."""

    values: tuple[Any, ...]

    def __contains__(self, value: Any) -> bool:
        return value in self.values

    def __str__(self) -> str:
        return ",".join(map(str, self.values))

    def suggest(self, trial: Any, key: str) -> Any:
        """The value of an optuna trial."""
        return trial.suggest_categorical(key, self.values)


Space = dict[str, Range | Choice]

FIXED = EXECUTION | {
    *("name", "train.test_on", "data.name", "data.path", "data.source", "data.checksum", "data.download"),
    "data.validation",
}
"""What is judged, and settings without influence on it: not searched."""


def choose(space: Space, changes: Sequence[str], only: Sequence[str]) -> Space:
    """`space` with the ranges of `changes`, as in ``KEY=SPEC``, and of it the keys of `only`, if there are any.

    Raises:
      UserError: a text that is no range, or a key in `only` without one.
    """
    space = space | dict(map(parse, changes))
    wanted = [_key(name) for name in only] or list(space)
    for key in wanted:
        if key not in space:
            raise UserError(
                f"--only {key}: no range of it is known; give --space {key}=... or one of {', '.join(space)}"
            )
    return {key: space[key] for key in wanted}


def parse(text: str) -> tuple[str, Range | Choice]:
    """``KEY=LOW:HIGH``, ``KEY=LOW:HIGH:log`` or ``KEY=VALUE,VALUE,...``.

    Raises:
      UserError: anything else.
    """
    key, _, spec = text.partition("=")
    parts = spec.split(":")
    if not key or not all(parts) or len(parts) > 3 or parts[2:] not in ([], ["log"]):
        raise UserError(f"--space {text}: expected KEY=LOW:HIGH, KEY=LOW:HIGH:log or KEY=VALUE,VALUE,...")
    if len(parts) == 1:
        return _key(key), Choice(tuple(_value(part) for part in spec.split(",")))
    return _key(key), Range(_value(parts[0]), _value(parts[1]), log=len(parts) == 3)


def _key(name: str) -> str:
    return name.replace("-", "_")


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def resolve(space: Space, experiment: Any) -> Space:
    """`space` in the types of the settings, checked: every value, and that `experiment` itself is in it.

    Raises:
      UserError: the key, its range, and what is wrong.
    """
    if not space:
        raise UserError("there is nothing to search: give --space KEY=LOW:HIGH")
    resolved = {key: _typed(key, domain, field_type(key, experiment)) for key, domain in space.items()}
    for key, domain in resolved.items():
        own = flatten(asdict(experiment))[key]
        if own not in domain:
            flag = key.replace("_", "-")
            raise UserError(
                f"--space {key}={domain}: the configuration's own value, {own}, which is tried first, is not in it; "
                f"widen it or give --{flag}"
            )
        for value in domain.values:
            _check_value(key, domain, change(experiment, {key: value}))
    return resolved


def field_type(key: str, experiment: Any) -> Any:
    """The type of the setting `key`.

    Raises:
      UserError: there is none, or it cannot be searched.
    """
    keys = flatten(asdict(experiment))
    if key not in keys:
        alike = [k for k in keys if k.split(".")[0] == key.split(".")[0] and k not in FIXED] or sorted(keys)
        raise UserError(f"--space {key}: there is no such setting; there are {', '.join(alike)}")
    if key in FIXED:
        raise UserError(
            f"--space {key}: cannot be searched; it does not change what is learned, or changes how it is judged"
        )
    *parts, name = key.split(".")
    for part in parts:
        experiment = getattr(experiment, part)
    return get_type_hints(type(experiment))[name]


def _typed(key: str, domain: Range | Choice, hint: Any) -> Range | Choice:
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    values = tuple(_fitting(f"--space {key}={domain}", value, kinds) for value in domain.values)
    if isinstance(domain, Choice):
        if len(set(values)) < max(len(values), 2):
            raise UserError(f"--space {key}={domain}: expected two or more different values")
        return Choice(values)
    if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        raise UserError(f"--space {key}={domain}: a range needs numbers; expected KEY=VALUE,VALUE,...")
    if not (-math.inf < values[0] < values[1] < math.inf) or (domain.log and values[0] <= 0):
        raise UserError(f"--space {key}={domain}: expected LOW below HIGH, both finite" + ", above 0" * domain.log)
    return Range(values[0], values[1], log=domain.log)


def _fitting(where: str, value: Any, kinds: tuple[Any, ...]) -> Any:
    """`value`, as a float where one is meant."""
    for kind in kinds:
        if type(value) is kind or (get_origin(kind) is Literal and value in get_args(kind)):
            return value
        if kind is float and type(value) is int:
            return float(value)
    raise UserError(f"{where}: {value!r} does not fit; expected {' or '.join(map(_expected, kinds))}")


def _expected(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(repr, get_args(kind)))
    return "None" if kind is NoneType else getattr(kind, "__name__", str(kind))


def _check_value(key: str, domain: Range | Choice, experiment: Any) -> None:
    try:
        check(experiment)
    except ValueError as error:
        raise UserError(f"--space {key}={domain}: {error}") from error
