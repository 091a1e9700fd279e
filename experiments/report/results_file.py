"""Reading results.jsonl: one JSON object per run, checked, with the line number in every error."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from experiments.run_folder import check_record
from fsg_jax._files import parse_json, read_bytes
from fsg_jax.endoscopy.index.folds import MAX_FOLDS

RESULTS = "results.jsonl"
BASELINE = "baseline"
_LEVELS, _LONGEST = 40, 200
"""Of lists and objects in a record; and characters of a name, which a figure shows."""

Record = dict[str, Any]
Arms = dict[str, list[Record]]
"""Finished records by `label`, each by fold and seed."""

_Fields = dict[str, type]
_FIELDS: _Fields = {"experiment": str, "arm": str, "seed": int, "config": dict, "facts": dict, "parameters": dict}
_FIELDS |= {"history": list, "gates": dict}
_CLASSIFICATION: _Fields = {"validation": dict, "test": dict}
_TASKS: _Fields = {"validation": dict, "test": dict, "fold": int, "tasks": dict, "experts": list, "anomalies": dict}
_POLYPS: _Fields = {"streams": list, "fold": int, "synthetic": bool, "data": dict, "split": dict, "predictions": str}


class RecordsError(ValueError):
    """The results cannot be used: a corrupt line, a missing field, a duplicate run or no finished run."""


class Results(NamedTuple):
    """Records with status "finished", and all others, in file order; and of what they are, see `kind_of`."""

    finished: list[Record]
    unfinished: list[Record]
    kind: str

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
            run, they are of several kinds, or none is finished.
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
            raise RecordsError(
                f"{where}: expected one finished run of {' '.join(run.split())}, found another in {finished[run][0]}"
            )
        finished[run] = where, record
    if not finished:
        raise RecordsError(f"{source}: expected a finished run, found none ({len(unfinished)} unfinished)")
    kinds = {kind_of(record) for _, record in finished.values()}
    if len(kinds) > 1:
        raise RecordsError(f"{source}: expected runs of one kind, found {' and '.join(sorted(kinds))}")
    return Results([record for _, record in finished.values()], unfinished, kinds.pop())


def kind_of(record: Record) -> str:
    """Of what a record is: "classification", "polyp sizing" or "several tasks"."""
    if "tasks" in record:
        return "several tasks"
    return "polyp sizing" if "streams" in record or "predictions" in record else "classification"


def label(record: Record) -> str:
    """The arm, and the streams where there are some: "fsg_gr · rgb + mask"; "?" for an arm that is not recorded."""
    arm, streams = record.get("arm", "?"), record.get("streams")
    return f"{arm} · {' + '.join(map(str, streams))}" if isinstance(streams, list) else str(arm)


def baseline_of(name: str, arms: Arms) -> str | None:
    """The label of the baseline with the same streams, None where there is none or `name` is it."""
    baseline = label(arms[name][0] | {"arm": BASELINE})
    return baseline if baseline in arms and baseline != name else None


def run_name(record: Record) -> str:
    """The label, the fold if there is one, and the seed; "?" for what an unfinished record lacks."""
    fold = f" fold {record['fold']}" if "fold" in record else ""
    return f"{label(record)}{fold} seed {record.get('seed', '?')}"


def is_number(value: object) -> bool:
    """Whether `value` is an int or float (True and False are not), finite, and small enough to be squared."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e100


def _lines(path: Path) -> Iterator[tuple[str, Record]]:
    for number, line in enumerate(read_bytes(path).split(b"\n"), start=1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            record = parse_json(line, where)
        except ValueError as error:
            raise RecordsError(f"{where}: expected JSON, found {error.__cause__}") from error
        if not isinstance(record, dict):
            raise RecordsError(f"{where}: expected a JSON object, found {type(record).__name__}")
        if _deeper(record, _LEVELS):
            raise RecordsError(f"{where}: expected at most {_LEVELS} levels of lists and objects, found more")
        yield where, record


def _check(record: Record, where: str) -> None:
    own = {"classification": _CLASSIFICATION, "polyp sizing": _POLYPS, "several tasks": _TASKS}[kind_of(record)]
    for name, kind in (_FIELDS | own).items():
        value = record.get(name)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise RecordsError(f"{where}, {name}: expected {kind.__name__}, found {_shorten(value)}")
    for name, value, expected, holds in _rules(record):
        if not holds:
            raise RecordsError(f"{where}, {name}: expected {expected}, found {_shorten(value)}")
    try:
        check_record(record, where)
    except ValueError as error:
        raise RecordsError(str(error)) from error


def _rules(record: Record) -> Iterator[tuple[str, Any, str, bool]]:
    """Name, value, what is expected and whether it is so, of what the types of the fields leave open."""
    names = [record["experiment"], label(record), *record["gates"]]
    yield "names", max(names, key=len), f"at most {_LONGEST} characters", max(map(len, names)) <= _LONGEST
    yield "seed", record["seed"], "an integer from 0 to 2**63 - 1", 0 <= record["seed"] < 2**63
    for row in record["history"]:
        right = isinstance(row, dict) and is_number(row.get("epoch")) and 0 <= row["epoch"] < 2**53
        yield "history", row, "rows with an epoch number", right
        columns = {name: value for name, value in row.items() if name.startswith(("train_", "val_"))}
        yield "history", row, "numbers in a row", _numeric(columns)
        means = list((row.get("gates") or {}).values()) if isinstance(row.get("gates"), dict | None) else [None]
        right = all(isinstance(entry, dict) and _numeric({"mean": entry.get("mean")}) for entry in means)
        yield "history", row, "gates with a mean by layer", right
    for layer, values in record["gates"].items():
        name = f"gates of {' '.join(layer.split())}"
        yield name, values, "a list", isinstance(values, list)
        yield name, values, "numbers", _numeric(dict(enumerate(values)))
    for name in ("minutes", "compile_seconds"):
        yield f"facts.{name}", record["facts"].get(name), "a number", _numeric({name: record["facts"].get(name)})
    weights = record.get("initial_weights") or {}
    texts = isinstance(weights, dict) and all(isinstance(text, str) for text in weights.values())
    yield "initial_weights", weights, "texts by path", texts
    rules = {"classification": _accuracies, "polyp sizing": _polyp_rules, "several tasks": _task_rules}
    yield from rules[kind_of(record)](record)


def _accuracies(record: Record) -> Iterator[tuple[str, Any, str, bool]]:
    for split in _CLASSIFICATION:
        value = record[split].get("accuracy")
        yield f"{split}.accuracy", value, "a number in [0, 1]", is_number(value) and 0 <= value <= 1


def _task_rules(record: Record) -> Iterator[tuple[str, Any, str, bool]]:
    for name in ("test", "validation", "anomalies"):
        yield name, record[name], "numbers by name", _numeric(record[name])
    for task, row in record["tasks"].items():
        metric = row.get("metric") if isinstance(row, dict) else None
        right = isinstance(metric, str) and is_number(record["test"].get(metric))
        yield f"tasks.{task}", row, "a metric with a number in test", right
        classes = row.get("classes", []) if right else []
        texts = isinstance(classes, list) and all(isinstance(kind, str) for kind in classes)
        yield f"tasks.{task}.classes", classes, "a list of texts", texts
    yield "tasks", record["tasks"], "one or more", bool(record["tasks"])
    for level in record["experts"]:
        right = isinstance(level, dict) and all(isinstance(level.get(k), list) for k in ("gates", "experts", "weights"))
        right = right and len(level["weights"]) == len(level["gates"]) > 0
        right = right and all(
            isinstance(row, list) and len(row) == len(level["experts"]) and all(map(is_number, row))
            for row in level["weights"]
        )
        yield "experts", level, "gates, experts and their weights", right
        names = [*level["gates"], *level["experts"]] if right else []
        yield "experts", names, "names", all(isinstance(name, str) and name.isprintable() for name in names)


def _polyp_rules(record: Record) -> Iterator[tuple[str, Any, str, bool]]:
    def texts(value: object) -> bool:
        return isinstance(value, list) and all(isinstance(text, str) for text in value)

    def count(value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53

    yield "fold", record["fold"], f"an integer from 0 to {MAX_FOLDS - 1}", 0 <= record["fold"] < MAX_FOLDS
    yield "predictions", record["predictions"], "a path on one line", record["predictions"].isprintable()
    yield "streams", record["streams"], "a list of texts", texts(record["streams"])
    yield "panels", record.get("panels"), "a list of paths", texts(record.get("panels") or [])
    for name in ("test", "validation", "shared"):
        yield name, record.get(name), "numbers by name", _numeric(record.get(name) or {})
    dropped, split = record["data"].get("dropped") or {}, record["split"]
    yield "data.dropped", dropped, "counts by reason", isinstance(dropped, dict)
    unverified = record["data"].get("unverified") or []
    yield "data.unverified", unverified, "a list of paths", texts(unverified)
    number, counts = split.get("num_folds") or 0, split.get("counts") or []
    yield "split.num_folds", number, f"an integer up to {MAX_FOLDS}", count(number) and number <= MAX_FOLDS
    yield "split.counts", counts, "a list", isinstance(counts, list)
    for row in counts:
        right = isinstance(row, dict) and all(count(row.get(name)) for name in ("fold", "polyps", "frames"))
        yield "split.counts", row, "fold, size_group, polyps and frames", right and "size_group" in row
    loss = record["config"].get("loss") or {}
    clamp = loss.get("clamp_mm") if isinstance(loss, dict) else 0
    right = clamp is None or (isinstance(clamp, list) and len(clamp) == 2 and all(map(is_number, clamp)))
    yield "config.loss", loss, "clamp_mm with two numbers", right


def _numeric(values: object) -> bool:
    """Whether it is a mapping to numbers, finite or not, and None."""
    if not isinstance(values, dict):
        return False
    return all(v is None or (isinstance(v, int | float) and not isinstance(v, bool)) for v in values.values())


def _deeper(value: object, levels: int) -> bool:
    """Whether lists and mappings are nested in more levels than these."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(levels == 0 or _deeper(part, levels - 1) for part in parts)


def _shorten(value: object) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
