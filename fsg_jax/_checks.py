"""Look-up of a user's word in a table, with an error that helps."""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


def look_up(table: Mapping[str, T], name: str, what: str) -> T:
    """``table[name]``; an unknown name is a ValueError that says what there is and suggests the nearest."""
    if isinstance(name, str) and name in table:
        return table[name]
    raise ValueError(f"unknown {what} {name!r}{did_you_mean(name, table)}; there are {', '.join(sorted(table))}")


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """A suggestion in brackets, or nothing if no word is near."""
    near = difflib.get_close_matches(str(word), list(words), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
