"""Paired differences to the baseline as a table and as a picture."""

from collections.abc import Callable, Mapping
from math import nan

from matplotlib.figure import Figure

from experiments.report.figures import Difference, forest
from experiments.report.statistics import Paired
from experiments.report.text_table import NOT_AVAILABLE, Table

Form = Callable[[float], str]
"""How a difference is written."""


def difference_table(pairs: Mapping[str, Paired], form: Form, title: str) -> Table:
    """Pairs, mean difference, 95 % interval and p-value, one row per arm; `title` is that of the mean."""
    rows = [
        (arm, str(len(p.differences)), shown(p.mean, form), interval(p, form), p_value(p)) for arm, p in pairs.items()
    ]
    return Table(("arm", "pairs", title, "95 % interval", "p"), rows)


def difference_plot(
    pairs: Mapping[str, Paired], palette: Mapping[str, str], label: str, factor: float
) -> Figure | None:
    """Differences times a factor, one row per arm that has a pair; None without any."""
    rows = {
        arm: Difference(pair.mean, *(pair.interval or (nan, nan)), palette[arm], list(pair.differences.values()))
        for arm, pair in pairs.items()
        if pair.mean is not None
    }
    return forest(rows, label, factor)


def shown(value: float | None, form: Form) -> str:
    """A value, if there is one."""
    return NOT_AVAILABLE if value is None else form(value)


def interval(pair: Paired, form: Form) -> str:
    """Both ends, if there are any."""
    return f"[{form(pair.interval[0])}, {form(pair.interval[1])}]" if pair.interval else NOT_AVAILABLE


def p_value(pair: Paired) -> str:
    """Three decimals, "<0.001" below."""
    return shown(pair.p_value, lambda p: "<0.001" if p < 0.001 else f"{p:.3f}")
