"""The tables of the report, as text cells; accuracies in %, differences in percentage points."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from experiments.report.configs import ConfigDiff
from experiments.report.records import BASELINE, Arms, Record, accuracies, group
from experiments.report.statistics import Paired, paired, summarise

NOT_AVAILABLE = "n/a"


class Table(NamedTuple):
    """Column names and rows of text; `numeric` right-aligns all columns but the first."""

    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    numeric: bool = True

    def markdown(self) -> str:
        """The table in GitHub Markdown."""
        rule = "---:" if self.numeric else "---"
        rules = ("---", *[rule] * (len(self.columns) - 1))
        return "\n".join(_line(row) for row in ([_escape(c) for c in self.columns], rules, *self._escaped()))

    def _escaped(self) -> list[list[str]]:
        return [[_escape(cell) for cell in row] for row in self.rows]


def summary_table(records: Iterable[Record]) -> str:
    """Markdown: arm, n, test accuracy mean ± std, paired difference to the baseline [95 % CI], p.

    Records that are not finished are left out.

    Raises:
        RecordsError: No record is finished, or two share (arm, seed).
    """
    return summary(group(records)).markdown()


def summary(arms: Arms) -> Table:
    """Test accuracy and paired difference to the baseline, one row per arm."""
    columns = ("arm", "n", "test accuracy, %", "difference [95 % CI], points", "p")
    differences = paired_by_arm(arms, "test")
    rows = []
    for arm, seeds in arms.items():
        row = summarise(list(accuracies(seeds, "test").values()))
        spread = NOT_AVAILABLE if row.std is None else percent(row.std)
        difference = _summary_difference(arm, differences.get(arm))
        rows.append((arm, str(row.n), f"{percent(row.mean)} ± {spread}", *difference))
    return Table(columns, rows)


def accuracy(arms: Arms, split: str) -> Table:
    """Mean, standard deviation (ddof=1), n and range of the accuracy, one row per arm."""
    rows = []
    for arm, seeds in arms.items():
        row = summarise(list(accuracies(seeds, split).values()))
        std = NOT_AVAILABLE if row.std is None else percent(row.std)
        extent = f"{percent(row.minimum)} .. {percent(row.maximum)}"
        rows.append((arm, str(row.n), percent(row.mean), std, extent))
    return Table(("arm", "n", "mean, %", "std", "min .. max"), rows)


def by_seed(arms: Arms, split: str) -> Table:
    """Accuracy of every run with its difference to the baseline of the same seed, one row per seed."""
    values = {arm: accuracies(seeds, split) for arm, seeds in arms.items()}
    differences = {arm: pair.differences for arm, pair in paired_by_arm(arms, split).items()}
    rows = []
    for seed in sorted({seed for found in values.values() for seed in found}):
        cells = []
        for arm, found in values.items():
            difference = differences.get(arm, {}).get(seed)
            cell = percent(found[seed]) if seed in found else "missing"
            cells.append(cell if difference is None else f"{cell} ({points(difference)})")
        rows.append((str(seed), *cells))
    return Table(("seed", *arms), rows)


def paired_by_arm(arms: Arms, split: str) -> dict[str, Paired]:
    """Paired differences to the baseline for every other arm; empty when there is no baseline."""
    if BASELINE not in arms:
        return {}
    control = accuracies(arms[BASELINE], split)
    return {arm: paired(accuracies(arms[arm], split), control) for arm in arms if arm != BASELINE}


def differences(pairs: dict[str, Paired]) -> Table:
    """Pairs, mean difference, 95 % interval and p-value, one row per arm."""
    rows = []
    for arm, pair in pairs.items():
        mean = NOT_AVAILABLE if pair.mean is None else points(pair.mean)
        rows.append((arm, str(len(pair.differences)), mean, _interval(pair), p_value(pair)))
    return Table(("arm", "pairs", "mean, points", "95 % interval", "p"), rows)


def remarks(pairs: dict[str, Paired]) -> list[str]:
    """Why an interval is not available, one text per arm concerned."""
    return [f"{arm}: {pair.note}" for arm, pair in pairs.items() if pair.note]


def shared_config(diff: ConfigDiff) -> Table:
    """Keys on which all runs agree."""
    seed = [(key, f"the {key.rpartition('.')[2]} of the run") for key in diff.seed_keys]
    return Table(("key", "value"), [*seed, *diff.shared.items()], numeric=False)


def arm_config(diff: ConfigDiff, arms: Arms) -> Table:
    """Keys that differ between arms, one column per arm."""
    rows = [(key, *(values[arm] for arm in arms)) for key, values in diff.between_arms.items()]
    return Table(("key", *arms), rows, numeric=False)


def percent(fraction: float) -> str:
    """0.6012 to "60.12"."""
    return f"{100 * fraction:.2f}"


def points(fraction: float) -> str:
    """0.0052 to "+0.52" percentage points; what rounds to zero has no sign."""
    text = f"{100 * fraction:+.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else text


def p_value(pair: Paired) -> str:
    """Three decimals, "<0.001" below."""
    if pair.p_value is None:
        return NOT_AVAILABLE
    return "<0.001" if pair.p_value < 0.001 else f"{pair.p_value:.3f}"


def _interval(pair: Paired) -> str:
    if pair.interval is None:
        return NOT_AVAILABLE
    return f"[{points(pair.interval[0])}, {points(pair.interval[1])}]"


def _summary_difference(arm: str, pair: Paired | None) -> tuple[str, str]:
    if arm == BASELINE:
        return ("reference", "")
    if pair is None or pair.mean is None:
        return (NOT_AVAILABLE, NOT_AVAILABLE)
    interval = "[n/a]" if pair.interval is None else _interval(pair)
    return (f"{points(pair.mean)} {interval}", p_value(pair))


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _escape(cell: str) -> str:
    return " ".join(cell.replace("|", "\\|").split())
