"""Which cases of a table are fast tests; the others are slow ones, and no table is without a fast case."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def fast(cases: Iterable[Any], which: int | Callable[[Any], bool] = 1) -> list[Any]:
    """Parameter sets for `pytest.mark.parametrize`: the first `which`, or those where it holds, are fast tests.

    A case of several arguments is a tuple. Names of cases go to `ids`, as without it.
    """
    cases = list(cases)
    kept = [i < which if isinstance(which, int) else which(case) for i, case in enumerate(cases)]
    assert any(kept), "the fast tests lack every case"
    values = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [pytest.param(*v, marks=() if keep else pytest.mark.slow) for v, keep in zip(values, kept, strict=True)]
