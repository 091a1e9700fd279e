"""What a search found: a table of its trials, what to think of it, and the command that uses the best values."""

import math
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

from experiments.cli import overrides
from experiments.config import change
from experiments.report.tables import Table, percent, points
from fsg_jax._files import write_text

REPORT = "tune.md"
STATES = ("finished", "pruned", "diverged", "failed")
Record = dict[str, Any]

WHAT = """# Search of {name}, arm {arm}

{trials}, {seeds} of at most {epochs} epochs each: the validation {metric} after the last epoch{unit}, on
{validation}. The test split was not read. In brackets: trials that did not finish."""

BETTER = """Trial {number} is the best of {finished} that finished and {trials} tried: {score}, {difference} to trial 0,
the configuration as it is. It was picked for its figure on these very images, so that figure and the difference flatter
it, the more so the more trials there are{error}. Only the test split, which no trial has read, can tell whether it is
better, with several seeds of it and of the configuration as it is:"""

SAME = "None of {trials} trials was better on the validation images than trial 0, the configuration as it is:"
NONE = "No trial has finished."


def write_report(out: Path, experiment: Any, arm: str, seeds: int, records: list[Record], *, smallest: bool) -> None:
    """Writes ``out/tune.md``."""
    ranked = rank(records, smallest=smallest)
    parts = [_what(experiment, arm, seeds, ranked), table(ranked).markdown(), _reasons(ranked)]
    if ranked[0]["state"] == "finished":
        best = ranked[0] if ranked[0]["validation"] != _reference(ranked) else _first(ranked)
        parts += [_conclusion(experiment, best, ranked), f"```\n{command(experiment, arm, best['values'])}\n```"]
    else:
        parts.append(NONE)
    write_text(out / REPORT, "\n\n".join(part for part in parts if part) + "\n")


def rank(records: list[Record], *, smallest: bool) -> list[Record]:
    """The best first; those that did not finish after those that did."""
    sign = 1 if smallest else -1

    def order(record: Record) -> tuple[Any, ...]:
        score = _score(record)
        return STATES.index(record["state"]), sign * (math.inf * sign if score is None else score), record["trial"]

    return sorted(records, key=order)


def _score(record: Record) -> float | None:
    """The mean of the seeds where the trial finished, or else the last value that it has."""
    if record["state"] == "finished":
        return record["validation"]
    return record["seeds"][-1]["last"] if record["seeds"] else None


def _first(records: list[Record]) -> Record:
    return next(record for record in records if record["trial"] == 0)


def _reference(records: list[Record]) -> float | None:
    """Of trial 0, if it has finished."""
    return next((record["validation"] for record in records if record["trial"] == 0), None)


def table(ranked: list[Record]) -> Table:
    """A row a trial."""
    names, metric, reference = list(ranked[0]["values"]), ranked[0]["metric"], _reference(ranked)
    columns = ("trial", f"validation {metric}", "to trial 0", "by seed", "epochs", "state", *names, "seconds")
    return Table(columns, [_row(record, reference) for record in ranked])


def _row(record: Record, reference: float | None) -> tuple[str, ...]:
    score, metric = _score(record), record["metric"]
    text = "" if score is None else _number(score, metric)
    return (
        str(record["trial"]),
        text if record["state"] == "finished" or not text else f"({text})",
        _to_first(record, reference),
        ", ".join(_number(row["last"], metric) for row in record["seeds"]),
        ", ".join(str(row["epochs"]) for row in record["seeds"]),
        record["state"],
        *map(_value, record["values"].values()),
        f"{record['seconds']:.0f}",
    )


def _to_first(record: Record, reference: float | None) -> str:
    if record["trial"] == 0 or reference is None or record["validation"] is None:
        return ""
    difference = record["validation"] - reference
    return points(difference) if record["metric"] == "accuracy" else f"{difference:+.4f}"


def _number(value: float, metric: str) -> str:
    return percent(value) if metric == "accuracy" else f"{value:.4f}"


def _value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _what(experiment: Any, arm: str, seeds: int, ranked: list[Record]) -> str:
    states = Counter(record["state"] for record in ranked)
    counts = ", ".join(f"{states[state]} {state}" for state in STATES if states[state])
    metric, images = ranked[0]["metric"], getattr(experiment.data, "validation", None)
    return WHAT.format(
        name=experiment.name,
        arm=arm,
        trials=f"{len(ranked)} trial{'s' * (len(ranked) > 1)} ({counts})",
        seeds=f"{seeds} seed{'s' * (seeds > 1)}",
        epochs=experiment.train.epochs,
        metric=metric,
        unit=", in %" if metric == "accuracy" else "",
        validation=f"{images} images held out of the training split" if images else "the validation fold",
    )


def _reasons(ranked: list[Record]) -> str:
    return "\n".join(f"- Trial {record['trial']}: {record['reason']}" for record in ranked if record["reason"])


def _conclusion(experiment: Any, best: Record, ranked: list[Record]) -> str:
    if best["trial"] == 0:
        return SAME.format(trials=len(ranked))
    metric, error = best["metric"], ""
    if metric == "accuracy":
        share = best["validation"]
        error = f"; one standard error of it is {percent(math.sqrt(share * (1 - share) / experiment.data.validation))}"
    text = BETTER.format(
        number=best["trial"],
        finished=sum(record["state"] == "finished" for record in ranked),
        trials=len(ranked),
        score=_number(best["validation"], metric),
        difference=_to_first(best, _reference(ranked)) or "with no comparison",
        error=error,
    )
    return textwrap.fill(text, 120)


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
    parts = [f"trial {record['trial']} {record['state']}"]
    parts += [] if score is None else [f"validation {metric} {_number(score, metric)}"]
    parts += [record["reason"]] if record["reason"] else []
    values = ", ".join(f"{key} {_value(value)}" for key, value in record["values"].items())
    return f"{'; '.join(parts)}; {record['seconds']:.0f} s; {values}"
