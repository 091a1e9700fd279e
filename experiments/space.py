"""The values that a search tries: ranges and choices of dotted keys, beside a configuration or in a command line.

They are texts: ``LOW:HIGH``, ``LOW:HIGH:log`` (both ends included) or ``VALUE,VALUE,...``.
"""

import math
from collections.abc import Sequence
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from experiments.arms import FIXED, plain_type, read
from experiments.config import BaseExperiment, change, check, settings
from experiments.errors import UserError
from fsg_jax._checks import look_up


def choose(ranges: dict[str, str], changes: Sequence[str], only: Sequence[str]) -> dict[str, str]:
    """`ranges` with those of `changes`, as in ``KEY=RANGE``, and of them the keys of `only`, if there are any.

    Raises:
      UserError: a text is no range, or a key in `only` has none.
    """
    for text in changes:
        key, _, spec = text.partition("=")
        parts = spec.split(":")
        if not key or not all(parts) or len(parts) > 3 or parts[2:] not in ([], ["log"]):
            raise UserError(f"--space {text}: expected KEY=LOW:HIGH, KEY=LOW:HIGH:log or KEY=VALUE,VALUE,...")
        ranges = ranges | {key.replace("-", "_"): spec}
    wanted = [name.replace("-", "_") for name in only] or list(ranges)
    if unknown := [key for key in wanted if key not in ranges]:
        known = ", ".join(ranges)
        raise UserError(f"--only {unknown[0]}: expected --space {unknown[0]}=... too, or one of {known}, found neither")
    return {key: ranges[key] for key in wanted}


def resolve(key: str, text: str, experiment: BaseExperiment) -> BaseDistribution:
    """The range of a setting, checked: every value in `text`, and that the value of `experiment` is in it.

    Raises:
      UserError, ValueError: the key, its range, and what is wrong.
    """
    where, own = f"--space {key}={text}", look_up(settings(experiment), key, "setting")
    if key in FIXED or key.startswith("loss."):
        raise UserError(
            f"--space {key}: cannot be searched; it does not change what is learned, or changes how it is judged"
        )
    is_range, log = ":" in text, text.endswith(":log")
    words = text.removesuffix(":log").split(":" if is_range else ",")
    values = tuple(read(word, plain_type(experiment, key)) for word in words)
    for value in values:
        try:
            check(change(experiment, {key: value}))
        except ValueError as error:
            raise UserError(f"{where}: {error}") from error
    if not is_range:
        if len(set(values)) < max(len(values), 2):
            raise UserError(f"{where}: expected two or more different values")
        found: BaseDistribution = CategoricalDistribution(values)
        inside = own in values
    else:
        low, high = values
        if not all(type(value) in (int, float) for value in values):
            raise UserError(f"{where}: expected numbers; give KEY=VALUE,VALUE,...")
        if not -math.inf < low < high < math.inf or (log and low <= 0):
            raise UserError(f"{where}: expected LOW below HIGH, both finite" + ", above 0" * log)
        found = (IntDistribution if isinstance(low, int) else FloatDistribution)(low, high, log=log)
        inside = isinstance(own, int | float) and low <= own <= high
    if not inside:
        raise UserError(
            f"{where}: the configuration's own value, {own}, which is tried first, is not in it; "
            f"widen it or give --{key.replace('_', '-')}"
        )
    return found


def spell(found: Any) -> str:
    """The text of a range."""
    if isinstance(found, CategoricalDistribution):
        return ",".join(map(str, found.choices))
    return f"{found.low}:{found.high}" + ":log" * found.log
