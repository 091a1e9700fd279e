"""The order of training batches, a function of the step alone: any step can be reached directly."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Int

from fsg_jax._checks import check_integer

Rows = Int[np.ndarray, " rows"]


def epoch_permutation(examples: int, seed: int, epoch: int) -> Rows:
    """Returns all rows in the random order of one epoch; neighbouring seeds share no epoch."""
    return np.random.default_rng(np.random.SeedSequence([seed, epoch])).permutation(examples)


@dataclass(frozen=True, eq=False)
class BatchOrder:
    """The row numbers of every global batch.

    Args:
      epoch_rows: the rows of an epoch by its number, `epoch_size` of them in every epoch.
      epoch_size: rows in an epoch.
      batch_size: rows in a global batch, at most `epoch_size`.
      drop_remainder: False ends each epoch with a smaller batch where rows are left.
      fingerprint: what else the order depends on, JSON-able; it is compared when a run is resumed.
    """

    epoch_rows: Callable[[int], Rows]
    epoch_size: int
    batch_size: int
    drop_remainder: bool = True
    fingerprint: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_integer("batch_size", self.batch_size, 1)
        if self.batch_size > self.epoch_size:
            raise ValueError(f"batch_size: expected at most {self.epoch_size}, all examples, found {self.batch_size}")

    @property
    def steps_per_epoch(self) -> int:
        """The number of batches in an epoch."""
        steps, rest = divmod(self.epoch_size, self.batch_size)
        return steps + (rest > 0 and not self.drop_remainder)

    @property
    def dropped_per_epoch(self) -> int:
        """The number of rows of an epoch that no batch contains; shuffled orders drop other rows in every epoch."""
        return self.epoch_size % self.batch_size if self.drop_remainder else 0

    def rows(self, step: int) -> Rows:
        """Returns the rows of batch number `step`, from 0."""
        epoch, at = divmod(step, self.steps_per_epoch)
        return _epoch(self, epoch)[at * self.batch_size : (at + 1) * self.batch_size]

    def describe(self) -> dict[str, Any]:
        """Returns what the rows of step n depend on, JSON-able."""
        sizes = {"examples": self.epoch_size, "batch_size": self.batch_size, "drop_remainder": self.drop_remainder}
        return sizes | dict(self.fingerprint)


@functools.lru_cache(maxsize=16)
def _epoch(order: BatchOrder, epoch: int) -> Rows:
    return order.epoch_rows(epoch)


def shuffled(examples: int, batch_size: int, seed: int, *, drop_remainder: bool = True) -> BatchOrder:
    """Takes every row once an epoch, each epoch in an order of its own.

    Args:
      examples: number of rows.
      batch_size: rows in a global batch.
      seed: 0 to 2**32 - 1.
      drop_remainder: as in `BatchOrder`.

    Raises:
      ValueError: `batch_size` above `examples`, or `seed` out of range.
    """
    check_integer("seed", seed, 0, 2**32 - 1)
    rows = functools.partial(epoch_permutation, examples, int(seed))
    return BatchOrder(rows, examples, batch_size, drop_remainder, {"seed": int(seed), "shuffle": True})


def in_order(examples: int, batch_size: int, *, drop_remainder: bool = True) -> BatchOrder:
    """Takes every row once an epoch, in the stored order."""
    rows = functools.partial(_stored_rows, examples)
    return BatchOrder(rows, examples, batch_size, drop_remainder, {"shuffle": False})


def _stored_rows(examples: int, epoch: int) -> Rows:
    return np.arange(examples)
