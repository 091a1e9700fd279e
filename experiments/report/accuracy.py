"""The section of a classification: accuracies in %, paired differences to the baseline in percentage points."""

from collections.abc import Iterable, Iterator
from typing import Any

from experiments.report.differences import difference_plot, difference_table, interval, p_value, shown
from experiments.report.figures import colours
from experiments.report.results_file import BASELINE, Arms, Record, Results
from experiments.report.statistics import Paired, paired
from experiments.report.text_table import NOT_AVAILABLE, Table, mean_and_std, percent, points
from experiments.report.training_plots import learning_curves

SPLITS = ("test", "validation")
CURVES = {"val_accuracy": ("validation accuracy, %", 100.0), "train_loss": ("training loss", 1.0)}


def content(results: Results) -> dict[str, Any]:
    """Variables of the templates ``accuracy``; ``warnings`` are those of this section."""
    arms = results.arms
    pairs = {split: pair_with_baseline(arms, split) for split in SPLITS}
    return {
        "summary": summary(arms),
        "accuracy": {split: accuracy_table(arms, split) for split in SPLITS},
        "by_seed": by_seed(arms, pairs["test"]),
        "pairs": pairs,
        "differences": {split: difference_table(found, points, "mean, points") for split, found in pairs.items()},
        "difference_plot": difference_plot(
            pairs["test"], colours(arms), "difference to the baseline, percentage points", 100
        ),
        "curves": learning_curves(arms, CURVES),
        "warnings": list(_missing_seeds(arms)),
    }


def accuracies(records: Iterable[Record], split: str) -> dict[int, float]:
    """Accuracy in [0, 1] by seed; `split` is "test" or "validation"."""
    return {record["seed"]: float(record[split]["accuracy"]) for record in records}


def pair_with_baseline(arms: Arms, split: str) -> dict[str, Paired]:
    """Paired differences to the baseline for every other arm; empty when there is no baseline."""
    if BASELINE not in arms:
        return {}
    control = accuracies(arms[BASELINE], split)
    return {arm: paired(accuracies(records, split), control) for arm, records in arms.items() if arm != BASELINE}


def summary(arms: Arms) -> Table:
    """Test accuracy and paired difference to the baseline, one row per arm; FLOPs where the records have them."""
    pairs, costs = pair_with_baseline(arms, "test"), {arm: _flops(records) for arm, records in arms.items()}
    shows_costs, rows = any(costs.values()), []
    for arm, records in arms.items():
        values = list(accuracies(records, "test").values())
        difference, p = ("reference", "") if arm == BASELINE else (NOT_AVAILABLE, NOT_AVAILABLE)
        if arm in pairs and pairs[arm].mean is not None:
            found = interval(pairs[arm], points) if pairs[arm].interval else f"[{NOT_AVAILABLE}]"
            difference, p = f"{shown(pairs[arm].mean, points)} {found}", p_value(pairs[arm])
        cost = (costs[arm] or NOT_AVAILABLE,) if shows_costs else ()
        rows.append((arm, str(len(values)), *cost, " ± ".join(mean_and_std(values)), difference, p))
    columns = ("arm", "n", *("forward MFLOP",) * shows_costs, "test accuracy, %", "difference [95 % CI], points", "p")
    return Table(columns, rows)


def _flops(records: Iterable[Record]) -> str:
    """Millions of operations of the forward pass of one image, see `fsg_jax.linen.costs`; "" if not recorded."""
    return " or ".join(sorted({f"{record['flops'] / 1e6:,.1f}" for record in records if record.get("flops")}))


def accuracy_table(arms: Arms, split: str) -> Table:
    """Mean, standard deviation (ddof=1), n and range of the accuracy, one row per arm."""
    rows = []
    for arm, records in arms.items():
        values = list(accuracies(records, split).values())
        extent = f"{percent(min(values))} .. {percent(max(values))}"
        rows.append((arm, str(len(values)), *mean_and_std(values), extent))
    return Table(("arm", "n", "mean, %", "std", "min .. max"), rows)


def by_seed(arms: Arms, pairs: dict[str, Paired]) -> Table:
    """Test accuracy of every run with its difference to the baseline of the same seed, one row per seed."""
    values = {arm: accuracies(records, "test") for arm, records in arms.items()}
    rows = []
    for seed in sorted(_seeds(arms)):
        cells = [percent(found[seed]) if seed in found else "missing" for found in values.values()]
        for place, arm in enumerate(arms):
            if arm in pairs and seed in pairs[arm].differences:
                cells[place] += f" ({points(pairs[arm].differences[seed])})"
        rows.append((str(seed), *cells))
    return Table(("seed", *arms), rows)


def _missing_seeds(arms: Arms) -> Iterator[str]:
    if BASELINE not in arms:
        yield "No run of the baseline is finished, so there are no differences to it."
    for arm, records in arms.items():
        if missing := _seeds(arms) - accuracies(records, "test").keys():
            listed = ", ".join(map(str, sorted(missing)))
            yield f"Arm {arm} has no finished run of seed {listed}; pairs use the seeds both arms have."


def _seeds(arms: Arms) -> set[int]:
    return {record["seed"] for records in arms.values() for record in records}
