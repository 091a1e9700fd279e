"""What a head of experts gains over a shared bottom as two tasks become less related (after Ma et al. 2018).

    python examples/studies/task_relation.py --out runs/relation --related 0 0.5 0.9 1 --arms mmoe ple home

Runs one ablation of ``multitask_synthetic`` a cosine, or resumes it, and writes ``relation.md`` and ``relation.svg``:
the difference of the mean squared error to the shared bottom, paired by draw of the data, with 95 % intervals.
"""

import argparse
from pathlib import Path

from experiments.ablate import ablate, report
from experiments.cli import AblateArgs
from experiments.config import change
from experiments.configs import CONFIGS
from experiments.report.figures import WIDTH, colours, drawing
from experiments.report.statistics import Paired, paired
from experiments.report.text_table import Table


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--related", type=float, nargs="+", default=[0.0, 0.5, 0.9, 1.0], help="cosines of the two tasks"
    )
    parser.add_argument("--arms", nargs="+", default=["separate", "mmoe", "ple", "home"])
    parser.add_argument("--draws", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    args = parser.parse_args()
    rows, found = [], {arm: [] for arm in args.arms}
    for related in args.related:
        experiment = change(CONFIGS["multitask_synthetic"][0], {"data.related": related})
        out = args.out / f"related-{related:g}"
        records = ablate(AblateArgs(experiment, out, 1, ("baseline", *args.arms), folds=tuple(args.draws), resume=True))
        report(out)
        errors = {
            arm: {r["fold"]: r["test"]["mse"] for r in records if r["arm"] == arm} for arm in ("baseline", *args.arms)
        }
        mean = sum(errors["baseline"].values()) / len(errors["baseline"])
        pairs = {arm: paired(errors[arm], errors["baseline"]) for arm in args.arms}
        rows.append((f"{related:g}", f"{mean:.4f}", *(cell(pair) for pair in pairs.values())))
        for arm, pair in pairs.items():
            found[arm].append((related, pair))
    table = Table(("cosine", "mse of the shared bottom", *args.arms), rows).markdown()
    (args.out / "relation.md").write_text(table + "\n")
    draw(found, args.out / "relation.svg")
    print(table)


def cell(pair: Paired) -> str:
    """A difference and its interval."""
    interval = f" [{pair.interval[0]:+.4f}, {pair.interval[1]:+.4f}]" if pair.interval else ""
    return f"{pair.mean:+.4f}{interval}"


def draw(found: dict[str, list[tuple[float, Paired]]], path: Path) -> None:
    """A line an arm, with bars for the intervals."""
    palette = colours(["baseline", *found])
    with drawing(WIDTH, 3.4) as (figure, axes):
        axes.axhline(0, color=palette["baseline"], linewidth=1)
        for i, (arm, points) in enumerate(found.items()):
            x = [related + 0.008 * (i - (len(found) - 1) / 2) for related, _ in points]
            y = [pair.mean for _, pair in points]
            low, high = zip(*(pair.interval or (pair.mean, pair.mean) for _, pair in points), strict=True)
            axes.vlines(x, low, high, color=palette[arm])
            axes.plot(x, y, marker="o", markersize=4, color=palette[arm], label=arm)
        axes.set(xlabel="cosine of the two tasks", ylabel="mse, difference to the shared bottom")
        figure.legend(loc="outside upper center", ncols=len(found), frameon=False)
        figure.savefig(path)


if __name__ == "__main__":
    main()
