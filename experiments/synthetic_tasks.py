"""Made-up regression tasks whose relation is known (Ma et al. 2018, section 3.2), with groups and missing labels.

``y_t = w_t . x + sum_i sin(a_i w_t . x + b_i) + noise``, ``x`` standard normal. The directions ``w_t`` have the length
`scale` and the cosines that the configuration asks for: two tasks have ``w_1 = c u_1`` and ``w_2 = c (p u_1 + sqrt(1 -
p^2) u_2)`` with orthonormal ``u``. The labels of a task are then standardised by its training examples.

The construction was recalled and compared with independent reproductions, of which one has 100 inputs, 4 sines, 8
experts of 16 units and towers of 8 units; the paper itself could not be read, and its ``a`` and ``b`` are not known.
"""

from dataclasses import dataclass
from functools import cache
from typing import Annotated, NamedTuple

import numpy as np

from experiments.config import Count, NotNegative, Positive, Width, within
from fsg_jax._checks import expect

TaskLabels = dict[str, np.ndarray]


def check_cosine(**values: float) -> None:
    """Raises ValueError unless every value is in [0, 1]."""
    for name, value in values.items():
        expect(0 <= value <= 1, name, "a number in [0, 1]", value)


Cosine = Annotated[float, check_cosine]


@dataclass(frozen=True)
class SyntheticTasks:
    """How many tasks, how they are related, and how many examples there are."""

    groups: tuple[Annotated[int, within(1, 64)], ...] = (2,)
    """Tasks of each group; one group is none."""
    related: Cosine = 0.5
    """Cosine of the directions of two tasks of a group."""
    correlation: Cosine = 0.0
    """Cosine of those of two tasks of different groups."""
    labelled: tuple[float, ...] = ()
    """Share of the training examples that have the label of each task; none given: all, as for validation and test."""
    inputs: Width = 100
    scale: Positive = 1.0
    sines: tuple[tuple[float, float], ...] = ((1.0, 0.0), (2.0, 0.5), (3.0, 1.0), (4.0, 1.5))
    """``a`` and ``b`` of each."""
    noise: NotNegative = 0.1
    """Standard deviation."""
    train: Count = 10_000
    validation: Count = 2_000
    test: Count = 10_000
    draw: Annotated[int, within(0, 10_000)] = 0
    """Which directions and examples; ``--folds`` of an ablation goes over several."""


class Tables(NamedTuple):
    """Examples of each split, ``x`` and a column a task, float32; and which tasks belong together."""

    train: TaskLabels
    validation: TaskLabels
    test: TaskLabels
    groups: dict[str, tuple[str, ...]]
    tasks: tuple[str, ...]


@cache
def make_tables(config: SyntheticTasks) -> Tables:
    """The examples of a configuration, the same for every arm and seed.

    Raises:
      ValueError: the cosines are those of no directions, there are more tasks than inputs, or shares that do not fit.
    """
    names = [[f"{chr(97 + g)}{i + 1}" for i in range(size)] for g, size in enumerate(config.groups)]
    tasks = [task for group in names for task in group]
    shares = config.labelled or (1.0,) * len(tasks)
    fits = len(shares) == len(tasks) and all(0 <= share <= 1 for share in shares)
    expect(fits, "data.labelled", f"none, or {len(tasks)} shares in [0, 1]", config.labelled)
    expect(len(tasks) <= config.inputs, "data.inputs", f"at least the number of tasks, {len(tasks)}", config.inputs)
    generator = np.random.default_rng([config.draw, 2018])
    directions = _cosines(config, names) @ np.linalg.qr(generator.normal(size=(config.inputs, len(tasks))))[0].T
    sizes = {"train": config.train, "validation": config.validation, "test": config.test}
    splits = {split: _examples(config, generator, config.scale * directions, size) for split, size in sizes.items()}
    mean, deviation = (getattr(splits["train"][1], part)(0) for part in ("mean", "std"))
    tables = {}
    for split, (x, y) in splits.items():
        y = (y - mean) / deviation
        if split == "train":
            y = np.where(generator.uniform(size=y.shape) < shares, y, np.nan)
        columns = {task: y[:, i].astype(np.float32) for i, task in enumerate(tasks)}
        tables[split] = {"x": x.astype(np.float32), **columns}
    groups = {f"group_{group[0][0]}": tuple(group) for group in names} if len(names) > 1 else {}
    return Tables(**tables, groups=groups, tasks=tuple(tasks))


def _cosines(config: SyntheticTasks, names: list[list[str]]) -> np.ndarray:
    """A matrix whose rows have these cosines: the Cholesky factor of their Gram matrix, lower triangular."""
    group = np.repeat(np.arange(len(names)), [len(group) for group in names])
    gram = np.where(group[:, None] == group, config.related, config.correlation)
    np.fill_diagonal(gram, 1.0)
    values, vectors = np.linalg.eigh(gram)
    expect(values[0] > -1e-9, "data.related, data.correlation", "cosines of directions", f"{gram.tolist()}")
    if values[0] > 1e-9:
        return np.linalg.cholesky(gram)
    return vectors * np.sqrt(np.maximum(values, 0))


def _examples(
    config: SyntheticTasks, generator: np.random.Generator, directions: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    x = generator.normal(size=(size, config.inputs))
    z = x @ directions.T
    y = z + sum(np.sin(a * z + b) for a, b in config.sines)
    return x, y + config.noise * generator.normal(size=y.shape)
