"""Tables of text cells, and how numbers are written in them."""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

NOT_AVAILABLE = "n/a"


class Table(NamedTuple):
    """Column names and rows of text; `numeric` right-aligns all columns but the first."""

    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    numeric: bool = True

    def markdown(self) -> str:
        """The table in GitHub Markdown."""
        lines = [[" ".join(markdown(cell).split()) for cell in cells] for cells in (self.columns, *self.rows)]
        lines.insert(1, ["---", *["---:" if self.numeric else "---"] * (len(self.columns) - 1)])
        return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def percent(fraction: float) -> str:
    """0.6012 to "60.12"."""
    return f"{100 * fraction:.2f}"


def points(fraction: float) -> str:
    """0.0052 to "+0.52" percentage points; what rounds to zero has no sign."""
    text = f"{100 * fraction:+.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else text


def mean_and_std(values: Sequence[float], form: Callable[[float], str] = percent) -> tuple[str, str]:
    """Mean and sample standard deviation (ddof=1) as text; what has too few values is not available."""
    mean = form(float(np.mean(values))) if values else NOT_AVAILABLE
    return mean, form(float(np.std(values, ddof=1))) if len(values) > 1 else NOT_AVAILABLE


def text(value: object) -> str:
    """A value of a record: yes and no, thousands separated, the parts of a list or mapping in a row."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{name} {part}" for name, part in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return f"{value:,}" if isinstance(value, int) else str(value)


def markdown(value: str) -> str:
    """Text that Markdown shows as it is, on one line: no HTML, heading, link, code or cell can begin in it."""
    value = re.sub(r"[\x00-\x1f\x7f\x85\u2028\u2029]+", " ", value)
    value = re.sub(r"[\\`*|~]|^\s*#|(?<=\])[(\[:]", lambda found: f"{found[0][:-1]}\\{found[0][-1]}", value)
    return re.sub(r"<(?=[A-Za-z/!?])|&(?=[#A-Za-z])", lambda found: {"<": "&lt;", "&": "&amp;"}[found[0]], value)
