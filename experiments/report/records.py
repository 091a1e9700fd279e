"""Reading results.jsonl: one JSON object per run, checked, with the line number in every error."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = "results.jsonl"
BASELINE = "baseline"

Record = dict[str, Any]
Arms = dict[str, dict[int, Record]]
"""Finished records by arm, then by seed; the baseline first, then in order of first appearance."""

_REQUIRED: dict[str, tuple[type, ...]] = {
    "experiment": (str,),
    "arm": (str,),
    "seed": (int,),
    "config": (dict,),
    "facts": (dict,),
    "parameters": (dict,),
    "validation": (dict,),
    "test": (dict,),
    "history": (list,),
    "gates": (dict,),
}


class RecordsError(ValueError):
    """results.jsonl cannot be used: a corrupt line, a missing field, a duplicate run or no finished run."""


class Results(NamedTuple):
    """Records with status "finished", and all others, in file order."""

    finished: list[Record]
    unfinished: list[Record]


def load(directory: Path) -> Results:
    """Read `directory/results.jsonl`; blank lines are skipped.

    Raises:
        FileNotFoundError: The directory or the file is missing.
        RecordsError: A line is no JSON object, a finished record lacks a field or has an accuracy outside
            [0, 1], two finished records share (arm, seed), or no record is finished.
    """
    path = results_path(Path(directory))
    results = Results([], [])
    lines: dict[tuple[str, int], int] = {}
    for number, record in read_lines(path):
        if record.get("status") != "finished":
            results.unfinished.append(record)
            continue
        _check(record, f"{path}, line {number}")
        run = (record["arm"], record["seed"])
        if run in lines:
            raise RecordsError(
                f"{path}: lines {lines[run]} and {number} both hold a finished run of arm {run[0]!r}, "
                f"seed {run[1]}; expected one"
            )
        lines[run] = number
        results.finished.append(record)
    if not results.finished:
        raise RecordsError(f"{path}: found no finished run ({len(results.unfinished)} unfinished)")
    return results


def group(records: Iterable[Record]) -> Arms:
    """Finished records by arm and seed, the baseline first; others are left out.

    Raises:
        RecordsError: Two finished records share (arm, seed), or none is finished.
    """
    arms: Arms = {}
    for record in records:
        if record.get("status") != "finished":
            continue
        seeds = arms.setdefault(record["arm"], {})
        if record["seed"] in seeds:
            raise RecordsError(f"two finished records of arm {record['arm']!r}, seed {record['seed']}")
        seeds[record["seed"]] = record
    if not arms:
        raise RecordsError("found no finished record")
    names = sorted(arms, key=lambda arm: arm != BASELINE)
    return {arm: dict(sorted(arms[arm].items())) for arm in names}


def accuracies(seeds: Mapping[int, Record], split: str) -> dict[int, float]:
    """Accuracy in [0, 1] by seed; `split` is "test" or "validation"."""
    return {seed: float(record[split]["accuracy"]) for seed, record in seeds.items()}


def results_path(directory: Path) -> Path:
    """`directory/results.jsonl`; FileNotFoundError where it or the directory is missing."""
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory}: no such directory; expected one that holds {RESULTS}")
    path = directory / RESULTS
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected one JSON record per run")
    return path


def read_lines(path: Path) -> Iterator[tuple[int, Record]]:
    """Line numbers, from 1, and records; blank lines are skipped, RecordsError for what is no JSON object."""
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if line.strip():
            yield number, _parse(line, f"{path}, line {number}")


def _parse(line: bytes, where: str) -> Record:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise RecordsError(f"{where}: not valid JSON ({error})") from error
    if not isinstance(record, dict):
        raise RecordsError(f"{where}: found {type(record).__name__}, expected a JSON object")
    return record


def _check(record: Record, where: str) -> None:
    check_fields(record, _REQUIRED, where)
    for split in ("test", "validation"):
        value = record[split].get("accuracy")
        if not (is_number(value) and 0 <= value <= 1):
            raise RecordsError(f"{where}: {split}.accuracy is {_shorten(value)}, expected a number in [0, 1]")


def check_fields(record: Record, required: Mapping[str, tuple[type, ...]], where: str) -> None:
    """Raise RecordsError unless the fields are there with their types, history rows have epochs and gates are lists."""
    for name, types in required.items():
        value = record.get(name)
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise RecordsError(f"{where}: {name} is {_shorten(value)}, expected {types[0].__name__}")
    for row in record["history"]:
        if not (isinstance(row, dict) and is_number(row.get("epoch"))):
            raise RecordsError(f"{where}: history row {_shorten(row)} has no epoch number")
    for layer, values in record["gates"].items():
        if not isinstance(values, list):
            raise RecordsError(f"{where}: gates of {layer} are {_shorten(values)}, expected a list")


def is_number(value: object) -> bool:
    """Whether `value` is a finite int or float (True and False are not)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _shorten(value: object) -> str:
    text = "missing" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
