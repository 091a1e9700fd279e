"""What a search found: a table of its trials, what to think of it, and the command that uses the best values."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

from experiments.cli import overrides
from experiments.config import change
from experiments.report.pages import render
from experiments.report.text_table import Table, percent, points
from fsg_jax._files import write_text

REPORT = "tune.md"
STATES = ("finished", "pruned", "diverged", "failed")
Record = dict[str, Any]


def write_report(out: Path, experiment: Any, arm: str, seeds: int, records: list[Record], *, smallest: bool) -> None:
    """Writes ``out/tune.md``."""
    ranked = rank(records, smallest=smallest)
    first = next((record for record in ranked if record["trial"] == 0), None)
    best = ranked[0] if ranked[0]["state"] == "finished" else None
    if best and first and best["validation"] == first["validation"]:
        best = first
    metric = ranked[0]["metric"]
    columns = ("trial", f"validation {metric}", "to trial 0", "by seed", "epochs", "state")
    content = {
        "experiment": experiment,
        "arm": arm,
        "seeds": seeds,
        "metric": metric,
        "trials": ranked,
        "states": Counter(record["state"] for record in ranked),
        "table": Table((*columns, *ranked[0]["values"], "seconds"), [_row(record, first) for record in ranked]),
        "best": best,
        "images": getattr(experiment.data, "validation", None),
    }
    if best:
        share = best["validation"]
        error = percent(math.sqrt(share * (1 - share) / experiment.data.validation)) if metric == "accuracy" else ""
        content |= {"score": _number(share, metric), "standard_error": error, "difference": _to_first(best, first)}
        content["command"] = command(experiment, arm, best["values"])
    write_text(out / REPORT, render("tune.md.j2", content))


def rank(records: list[Record], *, smallest: bool) -> list[Record]:
    """The best first; those that did not finish after those that did."""

    def order(record: Record) -> tuple[Any, ...]:
        score = _score(record)
        value = math.inf if score is None else score if smallest else -score
        return STATES.index(record["state"]), value, record["trial"]

    return sorted(records, key=order)


def _score(record: Record) -> float | None:
    """The mean of the seeds where the trial finished, or else the last value that it has."""
    if record["state"] == "finished":
        return record["validation"]
    return record["seeds"][-1]["last"] if record["seeds"] else None


def _row(record: Record, first: Record | None) -> tuple[str, ...]:
    score, metric = _score(record), record["metric"]
    text = "" if score is None else _number(score, metric)
    return (
        str(record["trial"]),
        text if record["state"] == "finished" or not text else f"({text})",
        _to_first(record, first),
        ", ".join(_number(row["last"], metric) for row in record["seeds"]),
        ", ".join(str(row["epochs"]) for row in record["seeds"]),
        record["state"],
        *map(_value, record["values"].values()),
        f"{record['seconds']:.0f}",
    )


def _to_first(record: Record, first: Record | None) -> str:
    """The difference to trial 0; empty if either has no value, and for trial 0 itself."""
    if not first or record["trial"] == 0 or None in (first["validation"], record["validation"]):
        return ""
    difference = record["validation"] - first["validation"]
    return points(difference) if record["metric"] == "accuracy" else f"{difference:+.4f}"


def _number(value: float, metric: str) -> str:
    return percent(value) if metric == "accuracy" else f"{value:.4f}"


def _value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def command(experiment: Any, arm: str, values: dict[str, Any]) -> str:
    """The ablation that uses `values`."""
    test_on = "last" if experiment.train.test_on == "none" else experiment.train.test_on
    options = overrides(change(experiment, values | {"train.test_on": test_on}))
    arms = "baseline" if arm == "baseline" else f"baseline {arm}"
    out = f"runs/{experiment.name}_tuned"
    return f"python -m experiments.ablate {experiment.name} --seeds 3 --arms {arms} --out {out} {options}".rstrip()


def trial_line(record: Record) -> str:
    """One line on a trial that has ended."""
    score, metric = _score(record), record["metric"]
    values = ", ".join(f"{key} {_value(value)}" for key, value in record["values"].items())
    validation = "" if score is None else f"validation {metric} {_number(score, metric)}"
    parts = (f"trial {record['trial']} {record['state']}", validation, record["reason"], f"{record['seconds']:.0f} s")
    return "; ".join(part for part in (*parts, values) if part)
