# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
# ---

# %% [markdown]
# # An ablation on digits
#
# Do gates help? Three arms, three seeds, on the handwritten digits that scikit-learn brings: a ResNet-18 without
# gates (`baseline`), with gates that the optimizer of the weights moves (`fsg`), and with gates that gradient routing
# moves (`fsg_gr`). One seed gives all arms the same initial weights and the same batches, so arms are compared seed
# by seed. It takes about a minute, so the networks are narrow and the training is short.

# %%
from pathlib import Path
from tempfile import mkdtemp

import matplotlib.pyplot as plt
import numpy as np

from experiments.ablate import ablate
from experiments.cli import AblateArgs
from experiments.config import change
from experiments.configs import CONFIGS
from experiments.report import write_report
from experiments.report.statistics import paired

arms, seeds = ("baseline", "fsg", "fsg_gr"), 3
experiment = change(CONFIGS["digits"][0], {"model.width": 8, "data.num_train": 640, "train.epochs": 6})
folder = Path(mkdtemp())
records = ablate(AblateArgs(experiment, folder, seeds, arms))
print(f"{len(records)} runs, {records[0]['num_train']} training images, {records[0]['num_test']} test images")

# %% [markdown]
# That is `python -m experiments.ablate digits --model.width 8 --data.num-train 640 --train.epochs 6` with a folder to
# `--out`. The folder now has a record of every run, and what a report is made of.
#
# ## Accuracy, and differences in pairs
#
# The test images were read once, at the end of each run.

# %%
accuracy = {arm: {r["seed"]: 100 * r["test"]["accuracy"] for r in records if r["arm"] == arm} for arm in arms}
for arm in arms:
    values = list(accuracy[arm].values())
    print(
        f"{arm:10}",
        *(f"{v:6.1f}" for v in values),
        f"   mean {np.mean(values):.1f}, deviation {np.std(values, ddof=1):.1f}",
    )
pairs = {arm: paired(accuracy[arm], accuracy["baseline"]) for arm in arms[1:]}
for arm, pair in pairs.items():
    interval = "[{:+.1f}, {:+.1f}]".format(*pair.interval)
    print(f"{arm} minus baseline: {pair.mean:+.1f} points, 95 % interval {interval}, p = {pair.p_value:.2f}")

# %% [markdown]
# With three seeds the interval reaches 4.3 standard errors to each side. One that contains 0 shows no difference, and
# does not show that there is none.

# %%
colours = dict(zip(arms, ("0.45", "tab:blue", "tab:orange"), strict=True))
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), width_ratios=(3, 2), layout="constrained")
for r in records:
    curve = [(h["epoch"], 100 * h["val_accuracy"]) for h in r["history"]]
    left.plot(*zip(*curve, strict=True), color=colours[r["arm"]], label=r["arm"] if r["seed"] == 0 else None)
left.set(xlabel="epoch", ylabel="validation accuracy, %", title="A line a run")
left.legend()
for place, (arm, pair) in enumerate(pairs.items()):
    right.plot([place] * seeds, list(pair.differences.values()), "o", color=colours[arm], alpha=0.5)
    right.errorbar(
        place + 0.15,
        pair.mean,
        np.abs(np.subtract(pair.interval, pair.mean))[:, None],
        fmt="D",
        color=colours[arm],
        capsize=4,
    )
right.axhline(0, color=colours["baseline"], linewidth=1)
right.set(
    xticks=range(len(pairs)), xticklabels=pairs, xlim=(-0.5, 1.6), ylabel="points", title="Test accuracy minus baseline"
)
plt.show()

# %% [markdown]
# ## What the gates did
#
# Gates start near 0.5. Those of `fsg` share the optimizer of the weights, those of `fsg_gr` have their own.

# %%
figure, axes = plt.subplots(1, 4, figsize=(9, 2.6), sharey=True, layout="constrained")
for i, axis in enumerate(axes):
    for r in records:
        if r["arm"] != "baseline":
            values = np.sort(r["gates"][f"gate{i + 1}"])
            axis.plot(
                np.linspace(0, 1, len(values)),
                values,
                color=colours[r["arm"]],
                label=r["arm"] if r["seed"] == 0 else None,
            )
    axis.axhline(0.5, color="0.7", linewidth=0.8, zorder=0)
    axis.set(title=f"gate {i + 1}", xlabel="channels, sorted")
axes[0].set(ylabel="gate value", ylim=(0, 1))
axes[-1].legend()
plt.show()

# %% [markdown]
# ## The report
#
# `python -m experiments.report FOLDER` writes all of this, and more, as Markdown and as one HTML page.

# %%
paths = write_report(folder)
print(*(path.name for path in paths))
print("\n".join((folder / "report.md").read_text().splitlines()[4:10]))

# %% [markdown]
# What such a table may be used for, and what not, is told in [Ablations](../ablations.md). Recorded ablations, on
# CIFAR-100 too, are in [Results](../results/index.md).
