"""Runs of polyp sizing from results.jsonl, by arm and streams."""

from collections.abc import Iterable
from pathlib import Path

from experiments.report.records import (
    BASELINE,
    Arms,
    Record,
    RecordsError,
    Results,
    check_fields,
    read_lines,
    results_path,
)

_REQUIRED: dict[str, tuple[type, ...]] = {
    "experiment": (str,),
    "arm": (str,),
    "streams": (list,),
    "fold": (int,),
    "seed": (int,),
    "config": (dict,),
    "facts": (dict,),
    "parameters": (dict,),
    "history": (list,),
    "gates": (dict,),
    "synthetic": (bool,),
    "data": (dict,),
    "split": (dict,),
    "predictions": (str,),
}


def load(directory: Path) -> Results:
    """Read `directory/results.jsonl`.

    Raises:
        FileNotFoundError: The directory or the file is missing.
        RecordsError: A line is no JSON object, a finished record lacks a field, two are of one arm, streams, fold and
            seed, or none is finished.
    """
    path = results_path(directory)
    results = Results([], [])
    lines: dict[tuple[str, int, int], int] = {}
    for number, record in read_lines(path):
        if record.get("status") != "finished":
            results.unfinished.append(record)
            continue
        check_fields(record, _REQUIRED, f"{path}, line {number}")
        run = (label(record), record["fold"], record["seed"])
        if run in lines:
            raise RecordsError(
                f"{path}: lines {lines[run]} and {number} both hold a finished run of {run[0]}, fold {run[1]}, "
                f"seed {run[2]}; expected one"
            )
        lines[run] = number
        results.finished.append(record)
    if not results.finished:
        raise RecordsError(f"{path}: found no finished run ({len(results.unfinished)} unfinished)")
    return results


def label(record: Record) -> str:
    """Arm and streams, as "fsg_gr · rgb + mask"."""
    return f"{record['arm']} · {' + '.join(record['streams'])}"


def group(records: Iterable[Record]) -> Arms:
    """Records by label, then numbered by fold and seed; streams in order of appearance, the baseline first in each."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(label(record), []).append(record)
    streams = list(dict.fromkeys(tuple(runs[0]["streams"]) for runs in found.values()))

    def key(name: str) -> tuple[int, bool]:
        record = found[name][0]
        return streams.index(tuple(record["streams"])), record["arm"] != BASELINE

    ordered = {name: sorted(found[name], key=lambda r: (r["fold"], r["seed"])) for name in sorted(found, key=key)}
    return {name: dict(enumerate(runs)) for name, runs in ordered.items()}


def baseline_of(name: str, arms: Arms) -> str | None:
    """The label of the baseline with the same streams, None where there is none or `name` is it."""
    record = arms[name][0]
    baseline = label(record | {"arm": BASELINE})
    return baseline if baseline in arms and baseline != name else None


def coverage(arms: Arms) -> list[str]:
    """Which folds are missing, one sentence per arm concerned; and arms whose folds are not known."""
    found = []
    for name, runs in arms.items():
        folds = {record["fold"] for record in runs.values()}
        expected = {record["split"].get("num_folds") for record in runs.values()} - {None}
        if not expected:
            found.append(f"{name}: how many folds there are is not recorded; found {_listed(folds)}.")
        elif missing := set(range(max(expected))) - folds:
            found.append(
                f"{name}: no finished run of fold {_listed(missing)} of {max(expected)}. Its numbers cover the polyps "
                f"of fold {_listed(folds)} only; differences use the polyps both sides have."
            )
    return found


def _listed(folds: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(folds)))
