"""Reading results.jsonl: one JSON object per run, checked, with the line number in every error."""

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = "results.jsonl"
BASELINE = "baseline"

Record = dict[str, Any]
Arms = dict[str, list[Record]]
"""Finished records by `label`, each by fold and seed."""

_Fields = dict[str, type]
_FIELDS: _Fields = {"experiment": str, "arm": str, "seed": int, "config": dict, "facts": dict, "parameters": dict}
_FIELDS |= {"history": list, "gates": dict}
_CLASSIFICATION: _Fields = {"validation": dict, "test": dict}
_POLYPS: _Fields = {"streams": list, "fold": int, "synthetic": bool, "data": dict, "split": dict, "predictions": str}


class RecordsError(ValueError):
    """The results cannot be used: a corrupt line, a missing field, a duplicate run or no finished run."""


class Results(NamedTuple):
    """Records with status "finished", and all others, in file order; and whether they are of polyp sizing."""

    finished: list[Record]
    unfinished: list[Record]
    polyps: bool

    @property
    def arms(self) -> Arms:
        """The finished records; streams in order of appearance, and for each the baseline first."""
        labels = list(dict.fromkeys(map(label, self.finished)))
        streams = [record.get("streams") for record in self.finished]

        def order(record: Record) -> tuple[int, bool, int, int, int]:
            place = streams.index(record.get("streams")), record["arm"] != BASELINE, labels.index(label(record))
            return *place, record.get("fold", 0), record["seed"]

        arms: Arms = {}
        for record in sorted(self.finished, key=order):
            arms.setdefault(label(record), []).append(record)
        return arms


def load(directory: Path) -> Results:
    """Reads `directory/results.jsonl`; blank lines are skipped.

    Raises:
        FileNotFoundError: The directory or the file is missing.
        RecordsError: A line is no JSON object, or the records are such as `collect` refuses.
    """
    path = directory / RESULTS
    if not path.is_file():
        missing = path if directory.is_dir() else directory
        raise FileNotFoundError(f"{missing}: expected {RESULTS} with one JSON record a run, found no such file")
    return collect(_lines(path), str(path))


def collect(records: Iterable[tuple[str, Record]], source: str) -> Results:
    """Sorts records out, given where each stands.

    Raises:
        RecordsError: A finished record lacks a field or has an accuracy outside [0, 1], two finished records are of one
            run, some are of classification and others of polyp sizing, or none is finished.
    """
    finished: dict[str, tuple[str, Record]] = {}
    unfinished = []
    for where, record in records:
        if record.get("status") != "finished":
            unfinished.append(record)
            continue
        _check(record, where)
        run = run_name(record)
        if run in finished:
            raise RecordsError(f"{where}: expected one finished run of {run}, found another in {finished[run][0]}")
        finished[run] = where, record
    if not finished:
        raise RecordsError(f"{source}: expected a finished run, found none ({len(unfinished)} unfinished)")
    kinds = {is_polyps(record) for _, record in finished.values()}
    if len(kinds) > 1:
        raise RecordsError(f"{source}: expected runs of one kind, found classification and polyp sizing")
    return Results([record for _, record in finished.values()], unfinished, kinds.pop())


def is_polyps(record: Record) -> bool:
    """Whether the record is of polyp sizing."""
    return "streams" in record or "predictions" in record


def label(record: Record) -> str:
    """The arm, and the streams where there are some: "fsg_gr · rgb + mask"; "?" for an arm that is not recorded."""
    arm, streams = record.get("arm", "?"), record.get("streams")
    return f"{arm} · {' + '.join(map(str, streams))}" if isinstance(streams, list) else str(arm)


def run_name(record: Record) -> str:
    """The label, the fold if there is one, and the seed; "?" for what an unfinished record lacks."""
    fold = f" fold {record['fold']}" if "fold" in record else ""
    return f"{label(record)}{fold} seed {record.get('seed', '?')}"


def is_number(value: object) -> bool:
    """Whether `value` is a finite int or float (True and False are not)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _lines(path: Path) -> Iterator[tuple[str, Record]]:
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise RecordsError(f"{where}: expected JSON, found {error}") from error
        if not isinstance(record, dict):
            raise RecordsError(f"{where}: expected a JSON object, found {type(record).__name__}")
        yield where, record


def _check(record: Record, where: str) -> None:
    for name, kind in (_FIELDS | (_POLYPS if is_polyps(record) else _CLASSIFICATION)).items():
        value = record.get(name)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise RecordsError(f"{where}, {name}: expected {kind.__name__}, found {_shorten(value)}")
    for row in record["history"]:
        if not (isinstance(row, dict) and is_number(row.get("epoch"))):
            raise RecordsError(f"{where}, history: expected rows with an epoch number, found {_shorten(row)}")
    for layer, values in record["gates"].items():
        if not isinstance(values, list):
            raise RecordsError(f"{where}, gates of {layer}: expected a list, found {_shorten(values)}")
    for split in () if is_polyps(record) else _CLASSIFICATION:
        value = record[split].get("accuracy")
        if not (is_number(value) and 0 <= value <= 1):
            raise RecordsError(f"{where}, {split}.accuracy: expected a number in [0, 1], found {_shorten(value)}")


def _shorten(value: object) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
