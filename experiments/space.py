"""The values that a search tries: ranges and choices of dotted keys, beside a configuration or in a command line."""

import ast
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args, get_type_hints

from experiments.config import BaseExperiment, change, check, flatten
from experiments.errors import UserError
from experiments.run_folder import EXECUTION
from fsg_jax._checks import look_up


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
    *("data.validation", "data.index", "data.splits", "data.fold", "data.depth_root", "data.validation_frames"),
    *("data.test_frames", "target"),
}
"""Settings that are not searched: they do not change what is learned, or change how it is judged. So does ``loss``."""


def choose(space: Space, changes: Sequence[str], only: Sequence[str]) -> Space:
    """`space` with the ranges of `changes`, as in ``KEY=SPEC``, and of it the keys of `only`, if there are any.

    Raises:
      UserError: a text is no range, or a key in `only` has none.
    """
    space = space | dict(map(parse, changes))
    wanted = [name.replace("-", "_") for name in only] or list(space)
    for key in wanted:
        if key not in space:
            known = ", ".join(space)
            raise UserError(f"--only {key}: no range of it is known; give --space {key}=... or one of {known}")
    return {key: space[key] for key in wanted}


def parse(text: str) -> tuple[str, Range | Choice]:
    """Reads ``KEY=LOW:HIGH``, ``KEY=LOW:HIGH:log`` or ``KEY=VALUE,VALUE,...``.

    Raises:
      UserError: the text is something else.
    """
    name, _, spec = text.partition("=")
    key, parts = name.replace("-", "_"), spec.split(":")
    if not key or not all(parts) or len(parts) > 3 or parts[2:] not in ([], ["log"]):
        raise UserError(f"--space {text}: expected KEY=LOW:HIGH, KEY=LOW:HIGH:log or KEY=VALUE,VALUE,...")
    if len(parts) == 1:
        return key, Choice(tuple(map(_value, spec.split(","))))
    return key, Range(_value(parts[0]), _value(parts[1]), log=len(parts) == 3)


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def resolve(space: Space, experiment: BaseExperiment) -> Space:
    """`space` in the types of the settings, checked: every value, and that `experiment` itself is in it.

    Raises:
      UserError, ValueError: the key, its range, and what is wrong.
    """
    return {key: _resolve(key, domain, experiment) for key, domain in space.items()}


def _resolve(key: str, domain: Range | Choice, experiment: BaseExperiment) -> Range | Choice:
    where, own = f"--space {key}={domain}", look_up(flatten(asdict(experiment)), key, "setting")
    if key in FIXED or key.startswith("loss."):
        raise UserError(
            f"--space {key}: cannot be searched; it does not change what is learned, or changes how it is judged"
        )
    if takes_float(key, experiment):
        values = tuple(float(value) if type(value) is int else value for value in domain.values)
        domain = Choice(values) if isinstance(domain, Choice) else Range(values[0], values[1], domain.log)
    if isinstance(domain, Choice):
        if len(set(domain.values)) < max(len(domain.values), 2):
            raise UserError(f"{where}: expected two or more different values")
    else:
        numbers = all(type(value) in (int, float) for value in domain.values)
        if not numbers or not -math.inf < domain.low < domain.high < math.inf or (domain.log and domain.low <= 0):
            raise UserError(f"{where}: expected LOW below HIGH, both finite numbers" + ", above 0" * domain.log)
    for value in domain.values:
        try:
            check(change(experiment, {key: value}))
        except ValueError as error:
            raise UserError(f"{where}: {error}") from error
    if own not in domain:
        flag = key.replace("_", "-")
        raise UserError(
            f"{where}: the configuration's own value, {own}, which is tried first, is not in it; "
            f"widen it or give --{flag}"
        )
    return domain


def takes_float(key: str, experiment: Any) -> bool:
    """Whether the setting is a float."""
    *parts, name = key.split(".")
    for part in parts:
        experiment = getattr(experiment, part)
    hint = get_type_hints(type(experiment))[name]
    return float in (hint, *get_args(hint))
