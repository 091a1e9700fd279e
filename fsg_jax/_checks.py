"""Checks of arguments: every message says ``NAME: expected ..., found ...``."""

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")


def expect(holds: Any, name: str, expected: str, found: Any) -> None:
    """Raises ValueError ``NAME: expected ..., found ...`` unless `holds`."""
    if not holds:
        raise ValueError(f"{name}: expected {expected}, found {found}")


def look_up(table: Mapping[str, T], name: str, what: str) -> T:
    """``table[name]``; an unknown name is a ValueError that lists the known ones and suggests the nearest."""
    if isinstance(name, str) and name in table:
        return table[name]
    raise ValueError(f"unknown {what} {name!r}{did_you_mean(name, table)}; there are {', '.join(sorted(table))}")


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """A suggestion in brackets, or nothing if no word is near."""
    near = difflib.get_close_matches(str(word), list(words), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def check_choice(name: str, value: Any, choices: Iterable[Any]) -> None:
    """Raises ValueError unless `value` is one of `choices`."""
    choices = list(choices)
    if value not in choices:
        hint = did_you_mean(value, map(str, choices))
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, found {value!r}{hint}")


def check_shapes(found: Mapping[str, Any], wanted: Mapping[str, Any], name: str, expected: str) -> None:
    """Raises ValueError that lists every path that is missing, extra, or of another shape."""
    lines = [
        f"{path}: expected {wanted.get(path, 'none (extra)')}, found {found.get(path, 'none (missing)')}"
        for path in sorted(wanted.keys() | found.keys())
        if wanted.get(path) != found.get(path)
    ]
    expect(not lines, name, expected, f"{len(lines)} others: {'; '.join(lines)}")


def check_integer(name: str, value: Any, low: int, high: int | None = None) -> None:
    """Raises ValueError unless `value` is an integer from `low` to `high`; a bool is none."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < low or (high is not None and value > high):
        wanted = f">= {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"{name}: expected an integer {wanted}, found {value!r}")


def check_positive(**values: float) -> None:
    """Raises ValueError unless every value is finite and above 0."""
    _check_all(values, "a finite number > 0", lambda v: 0 < v < math.inf)


def check_nonnegative(**values: float) -> None:
    """Raises ValueError unless every value is finite and at least 0."""
    _check_all(values, "a finite number >= 0", lambda v: 0 <= v < math.inf)


def check_rates(**values: float) -> None:
    """Raises ValueError unless every value is in [0, 1)."""
    _check_all(values, "a number in [0, 1)", lambda v: 0 <= v < 1)


def check_probabilities(**values: float) -> None:
    """Raises ValueError unless every value is in [0, 1]."""
    _check_all(values, "a probability in [0, 1]", lambda v: 0 <= v <= 1)


def _check_all(values: Mapping[str, Any], expected: str, holds: Any) -> None:
    for name, value in values.items():
        if not holds(value):
            raise ValueError(f"{name}: expected {expected}, found {value!r}")
