"""Several folders of one experiment as one: the runs of an ablation that was made in parts, on one kind of hardware."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments.config import ARMS
from experiments.report.results_file import RESULTS, Record, RecordsError, Results, label, load, run_name
from experiments.run_folder import differences, seal
from fsg_jax._files import read_json, write_text

ABLATION = "ablation.json"
"""The configuration of an ablation, without arm and seed."""
PLACES = {
    *("data.path", "data.source", "data.checksum", "data.download"),
    *("data.index", "data.splits", "data.depth_root"),
}
"""Settings that say where the data lie, and not which they are."""
AXES = {"seed", "fold", "draw", "streams"}
"""Last parts of the settings in which the runs of an ablation differ beside their arm."""
FACTS = ("hardware", "versions.jax", "versions.jaxlib")
DATA = ("num_train", "num_validation", "num_test", "dropped_per_epoch", "synthetic", "data", "split", "labelled")
"""Parts of a record that tell which data there were, the same for all runs of an arm and a fold."""


def join(directories: Sequence[Path], out: Path) -> None:
    """Writes the records of all `directories` into ``out/results.jsonl``; each is as it was but for paths in it.

    Raises:
      FileNotFoundError: a folder or its results.jsonl is missing.
      RecordsError: the folders differ in what decides the result, in hardware or in the version of JAX, the key is
        named; or have different runs of one arm, fold and seed; or `out` has runs of its own.
    """
    if (out / ABLATION).exists() or out.resolve() in [directory.resolve() for directory in directories]:
        raise RecordsError(f"--out: expected a folder for what is joined, found one with runs of its own, {out}")
    folders = {directory: load(directory) for directory in directories}
    if len({directory.resolve() for directory in directories}) < len(directories):
        raise RecordsError(f"expected distinct folders, found {', '.join(map(str, directories))}")
    (first, one), *others = folders.items()
    for directory, other in others:
        _compare(first, one, directory, other)
    records: dict[str, tuple[Path, Record]] = {}
    for directory, results in folders.items():
        for record in results.finished:
            _compare_arm(records.values(), directory, record)
            where, known = records.setdefault(run_name(record), (directory, record))
            if known != record:
                raise RecordsError(f"{directory}: expected no other run of {run_name(record)}, which {where} has too")
    unfinished = [record for results in folders.values() for record in results.unfinished]
    lines = [_moved(record, directory, out) for directory, record in records.values()] + unfinished
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / RESULTS, "".join(json.dumps(record) + "\n" for record in lines))


def _compare(first: Path, one: Results, directory: Path, other: Results) -> None:
    """Raises RecordsError unless the folders are of one experiment, on equal hardware with equal versions."""
    kinds = [(f"of {results.kind}", {record["experiment"] for record in results.finished}) for results in (one, other)]
    if kinds[0] != kinds[1]:
        raise RecordsError(f"{directory}: expected runs {_spell(kinds[0])} as in {first}, found {_spell(kinds[1])}")
    for name in FACTS:
        found = [{_fact(record, name) for record in results.finished} for results in (one, other)]
        if len(found[0] | found[1]) > 1:
            there, here = (" and ".join(sorted(map(str, values))) for values in found)
            raise RecordsError(f"{directory}: facts.{name}: expected that of {first}, {there}, found {here}")
    _check_equal(_base(first, one), _base(directory, other), first, directory)


def _spell(kind: tuple[str, set[str]]) -> str:
    return f"{kind[0]}, {' and '.join(sorted(kind[1]))}"


def _fact(record: Record, name: str) -> Any:
    value: Any = record["facts"]
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _base(directory: Path, results: Results) -> dict[str, Any]:
    """The configuration that all arms of a folder share; see `AXES` and `PLACES`."""
    if (directory / ABLATION).exists():
        return read_json(directory / ABLATION)
    for record in results.finished:
        if record["arm"] in ARMS:  # the others override any keys
            return record["config"]
    arms = ", ".join(sorted({record["arm"] for record in results.finished}))
    raise RecordsError(f"{directory}: expected {ABLATION}, for it has added arms only ({arms}), found none")


def _compare_arm(known: Any, directory: Path, record: Record) -> None:
    """Raises RecordsError if a run of the same arm has another configuration, or in its fold other data."""
    for where, other in known:
        if label(other) == label(record) and where != directory:
            _check_equal(other["config"], record["config"], where, directory, f"arm {record['arm']}: ", arm=True)
            if other.get("fold") == record.get("fold"):
                for name in DATA:
                    if other.get(name) != record.get(name):
                        pair = f"expected that of {where}, {other.get(name)}, found {record.get(name)}"
                        raise RecordsError(f"{directory}: arm {record['arm']}: {name}: {pair}")


def _check_equal(
    one: dict[str, Any], other: dict[str, Any], first: Path, directory: Path, what: str = "", *, arm: bool = False
) -> None:
    differ = dict(_deciding(differences(one, other), arm))
    if differ:
        listed = "; ".join(f"{key}: {there!r} there, {here!r} here" for key, (there, here) in differ.items())
        raise RecordsError(f"{directory}: {what}expected the configuration of {first}, found another: {listed}")


def _deciding(differ: dict[str, tuple[Any, Any]], arm: bool) -> Iterator[tuple[str, tuple[Any, Any]]]:
    for key, pair in differ.items():
        if key not in PLACES and key.rpartition(".")[2] not in AXES and (arm or not key.startswith("arm.")):
            yield key, pair


def _moved(record: Record, directory: Path, out: Path) -> Record:
    """The record with the paths in it relative to `out`."""
    if "predictions" not in record:
        return record

    def move(path: str) -> str:
        return Path(os.path.relpath(directory / path, out)).as_posix()

    moved = {"predictions": move(record["predictions"]), "panels": [move(path) for path in record.get("panels") or []]}
    return seal(record | moved)
