"""The questions that one network answers about a polyp: size, size class, histology, site."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fsg_jax as fsg
from experiments.endoscopy.polyp_config import SizeLoss
from experiments.endoscopy.size_task import make_target
from fsg_jax.endoscopy import sizing
from fsg_jax.endoscopy.index.label_codes import LABELS, UNKNOWN, label_codes
from fsg_jax.endoscopy.index.schema import Table
from fsg_jax.training.task_losses import of_task
from fsg_jax.typing import Loss

GROUPS = {"extent": ("size", "size_class"), "tissue": ("histology",), "place": ("site",)}
"""Which questions belong together."""


class Target(NamedTuple):
    """One question.

    Attributes:
      outputs: of the network.
      loss: of the outputs and the batch, with a weight of 0 where the label is missing.
      metric: its main metric.
      smallest: the smallest value of `metric` is the best.
      classes: their names; none for a regression.
    """

    outputs: int
    loss: Loss
    metric: str
    smallest: bool
    classes: tuple[str, ...] = ()


def make_targets(names: Sequence[str], loss: SizeLoss) -> dict[str, Target]:
    """The questions of these names, in the order of `GROUPS`.

    Raises:
      ValueError: there is no such question, or none is asked, or one twice.
    """
    classes = {"size_class": sizing.TRI_CLASS.classes, **LABELS}
    known = [name for members in GROUPS.values() for name in members]
    if not names or len(set(names)) < len(names) or not set(names) <= set(known):
        raise ValueError(f"tasks: expected some of {', '.join(known)}, each once, found {', '.join(names) or 'none'}")
    found = {}
    for name in (name for name in known if name in names):
        if name == "size":
            size = make_target("regression", loss)
            found[name] = Target(1, fsg.where_present(size.loss, "size_mm"), "size_mae", smallest=True)
        else:
            own: Loss = sizing.size_cross_entropy(sizing.TRI_CLASS)
            if name in LABELS:
                own = fsg.losses.make_cross_entropy(key=name)
            masked = fsg.where_present(own, name if name in LABELS else "size_mm")
            found[name] = Target(len(classes[name]), masked, f"{name}_accuracy", False, tuple(classes[name]))
    return found


def groups_of(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """`GROUPS` of these questions alone."""
    groups = {group: tuple(name for name in members if name in names) for group, members in GROUPS.items()}
    return {group: members for group, members in groups.items() if members}


def decode(targets: Mapping[str, Target], outputs: Mapping[str, jax.Array], clamp: Any) -> dict[str, jax.Array]:
    """Columns of predictions, a value a frame: ``predicted_mm``, and ``p_TASK_CLASS``, which sum to 1 for a task."""
    columns: dict[str, jax.Array] = {}
    for name, target in targets.items():
        if target.classes:
            shares = jax.nn.softmax(outputs[name].astype(jnp.float32))
            columns |= {f"p_{name}_{kind}": shares[:, i] for i, kind in enumerate(target.classes)}
        else:
            columns["predicted_mm"] = jnp.asarray(sizing.unit_to_mm(outputs[name][:, 0], clamp))
    return columns


def truths(table: Table, name: str) -> np.ndarray:
    """The label of every row: mm with NaN, or a class with `UNKNOWN`, where there is none."""
    if name in LABELS:
        return label_codes(table, name)
    size = table.column("size_mm").to_numpy().astype(np.float64)
    if name == "size":
        return size
    return np.where(np.isnan(size), UNKNOWN, sizing.class_of(np.nan_to_num(size, nan=1.0), sizing.TRI_CLASS))


def is_unknown(labels: np.ndarray, target: Target) -> np.ndarray:
    """Whether a label of `truths` is missing."""
    return labels == UNKNOWN if target.classes else np.isnan(labels)


def polyp_metrics(targets: Mapping[str, Target], columns: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Metrics over the polyps that have the label of a task; a task of which none has one is left out.

    Args:
      targets: the questions.
      columns: one row a polyp: a column a task of its truth, and those of `decode`.
    """
    found: dict[str, float] = {}
    for name, target in targets.items():
        truth = columns[name]
        there = ~is_unknown(truth, target)
        if not there.any():
            continue
        if target.classes:
            chosen = np.stack([columns[f"p_{name}_{kind}"] for kind in target.classes], -1)[there].argmax(-1)
            found[f"{name}_accuracy"] = float(np.mean(chosen == truth[there]))
            found[f"{name}_balanced_accuracy"] = sizing.balanced_accuracy(truth[there], chosen)
        else:
            found["size_mae"] = float(np.abs(columns["predicted_mm"] - truth)[there].mean())
    return found


def step_losses(targets: Mapping[str, Target]) -> dict[str, Loss]:
    """The loss of each task, as metrics of a step."""
    return {f"{name}_loss": of_task(name, target.loss) for name, target in targets.items()}
