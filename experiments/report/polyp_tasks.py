"""Several tasks of polyps: metrics per polyp over all folds, with intervals from a bootstrap over polyps."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.report.polyp_predictions import numbers, read_table
from experiments.report.results_file import Arms, Record, RecordsError, baseline_of
from experiments.report.text_table import NOT_AVAILABLE, Table
from fsg_jax.endoscopy.sizing import Interval, balanced_accuracy, bootstrap

GUESS = "guess"
"""Name of what is guessed without a network: the median size or the commonest class of the training polyps."""


class Answers(NamedTuple):
    """One task over the polyps that have its label; rows are polyps, per seed.

    Attributes:
      key: seed and polyp of each row.
      polyp: of each row.
      truth, answer: mm, or classes.
      classes: whether they are classes.
    """

    key: list[tuple[int, str]]
    polyp: np.ndarray
    truth: np.ndarray
    answer: np.ndarray
    classes: bool

    @property
    def errors(self) -> np.ndarray:
        """The absolute error in mm, or 1 where the class is right."""
        return (self.truth == self.answer).astype(float) if self.classes else np.abs(self.truth - self.answer)


def tables(directory: Path, arms: Arms, resamples: int) -> tuple[Table, Table]:
    """Main metrics of all arms and of the guess; and their differences to the baseline, polyp by polyp.

    Raises:
        FileNotFoundError: A file of predictions is missing.
        RecordsError: A file of predictions cannot be used, or two folds test one polyp.
    """
    first = next(iter(arms.values()))
    tasks = {task: list(row.get("classes", ())) for task, row in first[0]["tasks"].items()}
    found = {arm: answers(directory, records, tasks) for arm, records in arms.items()}
    guesses = answers(directory, first, tasks, GUESS)
    columns = [title for task in tasks for title in _titles(task, guesses[task])]
    rows = [(arm, *_estimates(each.values(), resamples)) for arm, each in (found | {GUESS: guesses}).items()]
    differences = []
    for arm, each in found.items():
        if (control := baseline_of(arm, arms)) is not None:
            pairs = [_difference(each[task], found[control][task], resamples) for task in tasks]
            differences.append((arm, *pairs))
    for control in dict.fromkeys(baseline_of(arm, arms) for arm in arms):
        if control is not None:
            pairs = [_difference(guesses[task], found[control][task], resamples) for task in tasks]
            differences.append((f"{GUESS}, against {control}", *pairs))
    main = [_titles(task, guesses[task])[0] for task in tasks]
    return Table(("arm", *columns), rows), Table(("arm", *main), differences)


def answers(
    directory: Path, records: Iterable[Record], tasks: Mapping[str, Sequence[str]], prefix: str = "predicted"
) -> dict[str, Answers]:
    """The answers by task, of the network or, with the prefix ``guess``, without it; `tasks` has their classes."""
    rows: dict[tuple[int, str], dict[str, float]] = {}
    folds: dict[tuple[int, str], int] = {}
    for record in records:
        path = directory / record["predictions"]
        for polyp, row in _by_polyp(path, tasks, prefix).items():
            key = record["seed"], polyp
            if folds.setdefault(key, record["fold"]) != record["fold"]:
                raise RecordsError(f"{path}: expected {polyp!r} in one fold, found it in another too")
            rows[key] = row
    found = {}
    for task in tasks:
        keys = sorted(key for key, row in rows.items() if not np.isnan(row[f"true_{task}"]))
        truth, answer = (np.array([rows[key][f"{kind}_{task}"] for key in keys]) for kind in ("true", "answer"))
        found[task] = Answers(keys, np.array([polyp for _, polyp in keys]), truth, answer, bool(tasks[task]))
    return found


def _by_polyp(path: Path, tasks: Mapping[str, Sequence[str]], prefix: str) -> dict[str, dict[str, float]]:
    """The truth of each task, NaN where there is none, and the answer, by polyp."""
    try:
        table = read_table(path)
        texts = (map(str, table.column(name).to_pylist()) for name in ("dataset", "polyp_id"))
        names, rows = np.unique(["/".join(parts) for parts in zip(*texts, strict=True)], return_inverse=True)
        counts, first = np.bincount(rows), np.unique(rows, return_index=True)[1]

        def mean(column: str) -> np.ndarray:
            values = numbers(table, column)
            if not np.isfinite(values).all():
                raise ValueError(f"column {column}: expected finite values, found others")
            return np.bincount(rows, values) / counts

        columns = {}
        for task, classes in tasks.items():
            truth = numbers(table, f"true_{task}")[first]
            columns[f"true_{task}"] = np.where(truth < 0, np.nan, truth)
            if prefix == GUESS:
                columns[f"answer_{task}"] = mean(f"{GUESS}_{task}")
            elif not classes:
                columns[f"answer_{task}"] = mean("predicted_mm")
            else:
                shares = [mean(f"p_{task}_{kind}") for kind in classes]  # the classes in the order of their numbers
                columns[f"answer_{task}"] = np.stack(shares).argmax(0).astype(float)
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, FileNotFoundError | RecordsError):
            raise
        raise RecordsError(f"{path}: expected a table of predictions of {', '.join(tasks)}, found {error}") from error
    return {name: {k: float(values[i]) for k, values in columns.items()} for i, name in enumerate(names.tolist())}


def _titles(task: str, one: Answers) -> tuple[str, ...]:
    if not one.classes:
        return (f"{task}, MAE in mm",)
    return f"{task}, accuracy in %", f"{task}, balanced accuracy in %"


def _estimates(found: Iterable[Answers], resamples: int) -> list[str]:
    cells = []
    for one in found:
        factor = 100 if one.classes else 1
        cells.append(_cell(one, lambda errors: errors.mean(), (one.errors,), factor, resamples))
        if one.classes:
            cells.append(_cell(one, balanced_accuracy, (one.truth, one.answer), factor, resamples))
    return cells


def _difference(one: Answers, other: Answers, resamples: int) -> str:
    rows = {key: row for row, key in enumerate(other.key)}
    pairs = [(i, rows[key]) for i, key in enumerate(one.key) if key in rows]
    if not pairs:
        return NOT_AVAILABLE
    left, right = np.array(pairs).T
    both = one._replace(key=[one.key[i] for i in left], polyp=one.polyp[left])
    difference = one.errors[left] - other.errors[right]
    return _cell(both, lambda d: d.mean(), (difference,), 100 if one.classes else 1, resamples, "{:+.2f}")


def _cell(one: Answers, metric: Any, columns: Any, factor: float, resamples: int, form: str = "{:.2f}") -> str:
    if not len(one.polyp):
        return NOT_AVAILABLE
    found: Interval = bootstrap(metric, columns, one.polyp, n_resamples=resamples)
    value, low, high = (form.format(factor * float(end)) for end in found)
    return f"{value} [{low}, {high}]" if np.isfinite(found.low) else value


def label_table(labelled: Mapping[str, Mapping[str, int]]) -> Table:
    """Polyps with the label of each task in the first run's fold."""
    roles = list(dict.fromkeys(role for counts in labelled.values() for role in counts))
    return Table(
        ("task", *roles), [(task, *(str(counts.get(r, "")) for r in roles)) for task, counts in labelled.items()]
    )
