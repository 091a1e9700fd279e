"""The tables, the page and the picture of `experiments.fooling`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import experiments.report.backend  # noqa: F401  imports matplotlib
from experiments.networks import cell, mean_std, over_seeds
from experiments.report.differences import interval, p_value, shown
from experiments.report.figures import STYLE, Figure, colours, mpl
from experiments.report.statistics import Paired, paired
from experiments.report.text_table import NOT_AVAILABLE, Table, percent, points, text
from fsg_jax._files import replacing, write_text

ATTACKS = {
    "fgsm": "FGSM",
    "pgd": "PGD",
    "transfer_fgsm": "FGSM on the first run",
    "transfer_pgd": "PGD on the first run",
}
VALUES = {"fooled": "fooling rate, %", "accuracy": "accuracy, %"}
DIFFERENCES = ("arm", "attack", "epsilon", "pairs", "mean, points", "95 % interval", "p")

Row = Mapping[str, Any]


def compare(rows: Sequence[Row], control: str) -> dict[str, Any]:
    """``arms``: means and deviations over the seeds of each arm; ``differences`` of fooling rates to the control.

    The differences are those of equal seeds, with the interval and the p-value of a paired t test.
    """
    differences = []
    for arm, attack, epsilon in dict.fromkeys((row["arm"], row["attack"], row["epsilon"]) for row in rows):
        if arm != control and attack in ("fgsm", "pgd"):
            ours, theirs = (_by_seed(rows, name, attack, epsilon) for name in (arm, control))
            found = paired(ours, theirs)
            row = {"arm": arm, "attack": attack, "epsilon": epsilon, "pairs": len(found.differences)}
            differences.append(row | {"mean": found.mean, "interval": found.interval, "p": found.p_value})
    keys = ("arm", "attack", "epsilon")
    return {"arms": over_seeds(rows, keys, ("fooled", "accuracy", "loss")), "differences": differences}


def _by_seed(rows: Sequence[Row], arm: str, attack: str, epsilon: float) -> dict[int, float]:
    wanted = (arm, attack, epsilon)
    return {row["seed"]: row["fooled"] for row in rows if (row["arm"], row["attack"], row["epsilon"]) == wanted}


def tables(found: Row) -> dict[str, Table]:
    """By title: the networks without attack, fooling rates, accuracies, and differences to the control."""
    networks, rows = found["networks"], found["rows"]
    arms, epsilons = list(dict.fromkeys(one["arm"] for one in networks)), found["settings"]["epsilons"]
    cells: list[tuple[str, ...]] = []
    for arm in arms:
        members = [one for one in networks if one["arm"] == arm]
        means = [np.mean([one[name] for one in members]) for name in ("zero_gradient", "tiny_gradient")]
        median = f"{np.mean([one['median_gradient'] for one in members]):.2g}"
        cells.append((arm, str(len(members)), cell(members, "accuracy"), *map(percent, means), median))
    columns = ("arm", "seeds", "accuracy, %", "gradient 0, %", "below 1e-12, %", "median of largest")
    titled = {"Without attack": Table(columns, cells)}
    for value, words in VALUES.items():
        for attack, name in ATTACKS.items():
            of_attack = [row for row in rows if row["attack"] == attack]
            cells = [
                (arm, *(cell([row for row in members if row["epsilon"] == epsilon], value) for epsilon in epsilons))
                for arm in arms
                if (members := [row for row in of_attack if row["arm"] == arm])
            ]
            if cells:
                title = f"{name}: {words}, by epsilon on the scale from 0 to 255"
                titled[title] = Table(("arm", *(f"{epsilon:g}" for epsilon in epsilons)), cells)
    if found["differences"]:
        control = found["settings"]["control"]
        lines = [_difference(row) for row in found["differences"]]
        titled[f"Fooling rate less that of {control}, equal seeds in pairs"] = Table(DIFFERENCES, lines)
    return titled


def _difference(row: Row) -> tuple[str, ...]:
    pair = Paired({}, row["mean"], row["interval"], row["p"], "")
    numbers = (str(row["pairs"]), shown(pair.mean, points), interval(pair, points), p_value(pair))
    return row["arm"], ATTACKS[row["attack"]], f"{row['epsilon']:g}", *numbers


def write_page(file: Path, found: Row) -> None:
    """Writes the tables in Markdown, how they were made, and what casts doubt on them."""
    options, facts = found["settings"], found["facts"]
    parts = [
        "# Fooling rates",
        f"{options['images']} test images. FGSM, and PGD of {options['steps']} steps of {options['step']:g} epsilon "
        "from a random start, raise the cross-entropy of the true label. The fooling rate is the share of images whose "
        "class changes. Cells are mean ± standard deviation over seeds, of a single seed the share and its 95 % "
        f"interval over images (Wilson). The examples of {options['source']} are tried on the other networks too.",
        "![fooling rate and accuracy over epsilon](fooling.png)",
    ]
    parts += [f"## {title}\n\n{table.markdown()}" for title, table in tables(found).items()]
    doubts = "\n".join(f"- {doubt}" for doubt in found["warnings"])
    none = (
        "None: gradients do not vanish, PGD raises losses and is not weaker than FGSM, nor own examples than others'."
    )
    parts += [f"## Signs of masked gradients\n\n{doubts or none}"]
    parts += [f"## Origin\n\n{_origin(facts)}"]
    write_text(file, "\n\n".join(parts) + "\n")


def _origin(facts: Row) -> str:
    names = ("commit", "dirty", "command", "python", "versions", "hardware", "started")
    rows = [(name, text(facts.get(name, NOT_AVAILABLE))) for name in names]
    return Table(("fact", "value"), rows, numeric=False).markdown()


def draw(file: Path, rows: Sequence[Row]) -> None:
    """Writes a PNG: fooling rate and accuracy over epsilon, a colour an arm, a line an attack.

    Bands are one standard deviation over seeds, or of a single seed the 95 % interval over images.
    """
    palette, lines = colours(dict.fromkeys(row["arm"] for row in rows)), {"fgsm": "--", "pgd": "-"}
    epsilons = sorted({row["epsilon"] for row in rows})
    with mpl.rc_context(STYLE | {"axes.grid": True}):
        figure = Figure(figsize=(9.6, 4.2), layout="constrained")
        for axes, (value, label) in zip(figure.subplots(1, 2), VALUES.items(), strict=True):
            for arm, colour in palette.items():
                for attack, style in lines.items():
                    members = [row for row in rows if (row["arm"], row["attack"]) == (arm, attack)]
                    groups = [[row for row in members if row["epsilon"] == epsilon] for epsilon in epsilons]
                    middle = [100 * mean_std([row[value] for row in group])[0] for group in groups]
                    low, high = 100 * np.array([_band(group, value) for group in groups]).T
                    axes.plot(
                        epsilons,
                        middle,
                        style,
                        color=colour,
                        marker="o",
                        markersize=3,
                        label=f"{arm}, {ATTACKS[attack]}",
                    )
                    axes.fill_between(epsilons, low, high, color=colour, alpha=0.12, linewidth=0)
            axes.set_xscale("log", base=2)
            axes.set_xticks(epsilons, [f"{epsilon:g}" for epsilon in epsilons])
            axes.minorticks_off()
            axes.set(xlabel="epsilon, on the scale from 0 to 255", ylabel=label, ylim=(-2, 102))
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
        with replacing(file) as temporary:
            figure.savefig(temporary, format="png", dpi=150)


def _band(rows: Sequence[Row], value: str) -> tuple[float, float]:
    mean, std = mean_std([row[value] for row in rows])
    return (rows[0][f"{value}_low"], rows[0][f"{value}_high"]) if std is None else (mean - std, mean + std)
