"""How the runs were made, and what a reader should be warned about."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from experiments.report.config_diff import ConfigDiff
from experiments.report.results_file import Arms, Record, Results, is_number, run_name
from experiments.report.text_table import Table, text

_NOT_RECORDED = "not recorded"
_TIMES = ("minutes", "compile_seconds")
_EXAMPLES = {
    "num_train": "training examples",
    "num_validation": "validation examples",
    "num_test": "test examples",
    "dropped_per_epoch": "training examples dropped per epoch",
}
_EXPECTED_EQUAL = ("commit", "python", "versions", "hardware", "device")


def run_table(records: list[Record]) -> Table:
    """Commit, command, versions, hardware, start times, data sizes; run counts where values differ."""
    facts = [record["facts"] for record in records]
    names = dict.fromkeys(["commit", "dirty", "command", *(name for found in facts for name in found)])
    rows = [
        (name.replace("_", " "), _distinct(facts, name)) for name in names if name not in (*_TIMES, "started", "sha256")
    ]
    started = sorted(str(found["started"]) for found in facts if found.get("started"))
    rows.append(("first and last start", " .. ".join(dict.fromkeys(started[:1] + started[-1:])) or _NOT_RECORDED))
    rows += [(title, _distinct(records, name)) for name, title in _EXAMPLES.items() if any(name in r for r in records)]
    return Table(("fact", "value"), rows, numeric=False)


def arm_table(arms: Arms) -> Table:
    """Parameters, gates, minutes and compile time, one row per arm."""
    rows = []
    for arm, records in arms.items():
        sizes = [_distinct([record["parameters"] for record in records], name) for name in ("params", "gates")]
        times = {name: [r["facts"][name] for r in records if is_number(r["facts"].get(name))] for name in _TIMES}
        minutes, compiling = (f"{np.mean(found):.1f}" if found else _NOT_RECORDED for found in times.values())
        if found := times["minutes"]:
            minutes += f" ({min(found):.1f} .. {max(found):.1f})"
        rows.append((arm, *sizes, minutes, compiling))
    return Table(("arm", "parameters", "gates", "minutes, mean (min .. max)", "compile seconds, mean"), rows)


def warnings(results: Results, diff: ConfigDiff) -> Iterator[str]:
    """Yields what weakens any comparison, one sentence each."""
    records = results.finished
    experiments = Counter(record["experiment"] for record in records)
    if len(experiments) > 1:
        yield f"The records come from different experiments: {_counted(experiments)}. They should not be compared."
    if unfinished := [f"{run_name(record)} ({record.get('status', 'no status')})" for record in results.unfinished]:
        yield f"{len(unfinished)} of the records are not finished and left out: {', '.join(unfinished)}."
    for (arm, key), values in diff.within_arms.items():
        yield f"Arm {arm}: configuration key {key} differs between runs: {' or '.join(values)}."
    facts = [record["facts"] for record in records]
    if dirty := sum(bool(found.get("dirty")) for found in facts):
        yield f"{dirty} of {len(records)} runs were made with uncommitted changes (dirty)."
    counts = {name: _count(facts, name) for name in _EXPECTED_EQUAL}
    counts |= {f"the number of {title}": _count(records, name) for name, title in _EXAMPLES.items()}
    for name, count in counts.items():
        if len(count) > 1:
            yield f"The runs differ in {name}: {_counted(count)}."
    for arm, runs in results.arms.items():
        gates = [value for record in runs for layer in record["gates"].values() for value in layer]
        if bad := sum(not is_number(value) for value in gates):
            yield f"Arm {arm}: {bad} of {len(gates)} final gate values are not finite and not drawn."


def _count(found: Iterable[dict[str, Any]], name: str) -> Counter[str]:
    values = (each.get(name) for each in found)
    return Counter(_NOT_RECORDED if value is None else text(value) for value in values)


def _distinct(found: Iterable[dict[str, Any]], name: str) -> str:
    """The value that all have, or every value with the number of runs."""
    counts = _count(found, name)
    return next(iter(counts)) if len(counts) == 1 else _counted(counts)


def _counted(counts: Counter[str]) -> str:
    return "; ".join(f"{value} ({n} run{'s' * (n > 1)})" for value, n in counts.items())
