"""How the runs were made, and what a reader should be warned about."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from experiments.report.configs import ConfigDiff
from experiments.report.records import BASELINE, Arms, Record, Results, is_number
from experiments.report.tables import Table

_NOT_RECORDED = "not recorded"
_PER_ARM = ("minutes", "compile_seconds", "started")
_EXAMPLES = {
    "num_train": "training examples",
    "num_validation": "validation examples",
    "num_test": "test examples",
    "dropped_per_epoch": "training examples dropped per epoch",
}
_EXPECTED_EQUAL = ("commit", "python", "versions", "hardware", "device")


def run_facts(records: list[Record]) -> Table:
    """Commit, command, versions, hardware, start times, data sizes; run counts where values differ."""
    names: dict[str, None] = dict.fromkeys(["commit", "dirty", "command", *(k for r in records for k in r["facts"])])
    rows = [
        (name.replace("_", " "), _distinct(record["facts"].get(name) for record in records))
        for name in names
        if name not in _PER_ARM
    ]
    started = sorted(str(r["facts"]["started"]) for r in records if r["facts"].get("started"))
    rows.append(("first and last start", " .. ".join(dict.fromkeys(started[:1] + started[-1:])) or _NOT_RECORDED))
    rows += [
        (label, _distinct(r.get(name) for r in records))
        for name, label in _EXAMPLES.items()
        if any(name in r for r in records)
    ]
    return Table(("fact", "value"), rows, numeric=False)


def arm_facts(arms: Arms) -> Table:
    """Parameters, gates, minutes and compile time, one row per arm."""
    columns = ("arm", "parameters", "gates", "minutes, mean (min .. max)", "compile seconds, mean")
    rows = []
    for arm, seeds in arms.items():
        records = list(seeds.values())
        sizes = [_distinct(r["parameters"].get(name) for r in records) for name in ("params", "gates")]
        minutes = _numbers(records, "minutes")
        compile_seconds = _numbers(records, "compile_seconds")
        mean = f"{np.mean(compile_seconds):.1f}" if compile_seconds else _NOT_RECORDED
        rows.append((arm, *sizes, _mean_and_range(minutes), mean))
    return Table(columns, rows)


def warnings(results: Results, arms: Arms, diff: ConfigDiff) -> list[str]:
    """Everything that weakens the comparison, one sentence each; empty when there is nothing to say."""
    return [*_missing_seeds(arms), *common_warnings(results, arms, diff)]


def common_warnings(results: Results, arms: Arms, diff: ConfigDiff, between: str = "seeds") -> list[str]:
    """The warnings of any report; runs of one arm differ in what `between` says."""
    records = results.finished
    return [
        *_experiments(records),
        *_unfinished(results.unfinished),
        *_config_differences(diff, between),
        *_fact_differences(records),
        *_non_finite_gates(arms),
    ]


def _experiments(records: list[Record]) -> list[str]:
    counts = Counter(record["experiment"] for record in records)
    if len(counts) == 1:
        return []
    return [f"The records come from different experiments: {_counted(counts)}. They should not be compared."]


def _unfinished(records: list[Record]) -> list[str]:
    if not records:
        return []
    runs = (f"{_run(record)} ({record.get('status', 'no status')})" for record in records)
    return [f"{len(records)} of the records are not finished and left out: {', '.join(runs)}."]


def _run(record: Record) -> str:
    fold = f"fold {record['fold']} " if "fold" in record else ""
    return f"{record.get('arm', '?')} {fold}seed {record.get('seed', '?')}"


def _missing_seeds(arms: Arms) -> list[str]:
    found = []
    if BASELINE not in arms:
        found.append("No run of the baseline is finished, so there are no differences to it.")
    everything = {seed for seeds in arms.values() for seed in seeds}
    for arm, seeds in arms.items():
        missing = sorted(everything - seeds.keys())
        if missing:
            listed = ", ".join(map(str, missing))
            found.append(f"Arm {arm} has no finished run of seed {listed}; pairs use the seeds both arms have.")
    return found


def _config_differences(diff: ConfigDiff, between: str) -> list[str]:
    return [
        f"Arm {arm}: configuration key {key} differs between {between}: {' or '.join(values)}."
        for (arm, key), values in diff.between_seeds.items()
    ]


def _fact_differences(records: list[Record]) -> list[str]:
    found = []
    dirty = sum(bool(record["facts"].get("dirty")) for record in records)
    if dirty:
        found.append(f"{dirty} of {len(records)} runs were made with uncommitted changes (dirty).")
    for name in _EXPECTED_EQUAL:
        counts = Counter(_text(record["facts"].get(name)) for record in records)
        if len(counts) > 1:
            found.append(f"The runs differ in {name}: {_counted(counts)}.")
    for name, label in _EXAMPLES.items():
        counts = Counter(_text(record.get(name)) for record in records)
        if len(counts) > 1:
            found.append(f"The runs differ in the number of {label}: {_counted(counts)}.")
    return found


def _non_finite_gates(arms: Arms) -> list[str]:
    found = []
    for arm, seeds in arms.items():
        values = [v for record in seeds.values() for layer in record["gates"].values() for v in layer]
        count = sum(not is_number(value) for value in values)
        if count:
            found.append(f"Arm {arm}: {count} of {len(values)} final gate values are not finite and not drawn.")
    return found


def _numbers(records: list[Record], name: str) -> list[float]:
    return [float(r["facts"][name]) for r in records if is_number(r["facts"].get(name))]


def _mean_and_range(values: list[float]) -> str:
    if not values:
        return _NOT_RECORDED
    return f"{np.mean(values):.1f} ({min(values):.1f} .. {max(values):.1f})"


def _distinct(values: Iterable[Any]) -> str:
    counts = Counter(_text(value) for value in values)
    return next(iter(counts)) if len(counts) == 1 else _counted(counts)


def _counted(counts: Counter[str]) -> str:
    return "; ".join(f"{text} ({n} run{'s' * (n > 1)})" for text, n in counts.items())


def _text(value: object) -> str:
    if value is None:
        return _NOT_RECORDED
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{name} {version}" for name, version in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)
