"""Training batches read by Grain, in an order of `fsg_jax.data.batches`, and batches for evaluation."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from fsg_jax._checks import check_integer
from fsg_jax.data.batches import BatchOrder, Rows, in_order, shuffled
from fsg_jax.data.extras import import_extra
from fsg_jax.data.images import ImageDataset
from fsg_jax.data.workers import end_with_parent

_PREFETCH = 4
_FOREVER = 2**62

Read = Callable[[Rows], dict[str, np.ndarray]]
"""``read(rows)``: the batch of these rows; picklable if worker processes call it."""


@dataclasses.dataclass(frozen=True, eq=False)
class Loader:
    """Training batches: `read` reads each from the rows that `order` gives. Every ``iter()`` begins at `start`.

    The ``get_state`` and ``set_state`` of an iterator continue a stopped run with the same batches, on any number of
    workers, threads and processes.

    Args:
      order: rows of every global batch.
      read: rows to batch.
      workers: reading processes; 0 reads in threads of this one. With workers, a script needs the
        ``if __name__ == "__main__"`` guard.
      threads: number of threads that read batches side by side, in this process or in each worker.
      process_index: number of this process; it receives slice `process_index` of every global batch.
      process_count: number of processes that share a global batch.
      num_epochs: number of epochs; None never ends.
      start: the number of the first batch, 0 or more.

    Raises:
      ValueError: an argument out of range.
    """

    order: BatchOrder
    read: Read
    workers: int = 0
    threads: int = 1
    process_index: int = 0
    process_count: int = 1
    num_epochs: int | None = None
    start: int = 0

    def __post_init__(self) -> None:
        for name, low in (("workers", 0), ("threads", 1), ("process_count", 1), ("start", 0)):
            check_integer(name, getattr(self, name), low)
        check_integer("process_index", self.process_index, 0, self.process_count - 1)
        if self.num_epochs is not None:
            check_integer("num_epochs", self.num_epochs, 1)
        size, count = self.order.batch_size, self.process_count
        if size % count:
            raise ValueError(f"batch_size: expected a multiple of process_count {count}, found {size}")
        if not self.order.drop_remainder and count > 1:
            raise ValueError(f"process_count: expected 1 with drop_remainder=False, found {count}")

    @property
    def steps_per_epoch(self) -> int:
        """The number of batches in an epoch."""
        return self.order.steps_per_epoch

    @property
    def dropped_per_epoch(self) -> int:
        """The number of rows of an epoch that no batch contains."""
        return self.order.dropped_per_epoch

    def __iter__(self) -> "LoaderIterator":
        return LoaderIterator(self)

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Reads the part of batch number `step` that is for this process."""
        rows = self.order.rows(step)
        local = -(-len(rows) // self.process_count)
        return self.read(rows[self.process_index * local : (self.process_index + 1) * local])

    def _grain_iterator(self, step: int) -> Any:
        """Makes a Grain iterator whose first batch is number ``step``."""
        grain = import_extra("grain", "data")
        end = None if self.num_epochs is None else self.num_epochs * self.steps_per_epoch
        steps = grain.MapDataset.range(step, _FOREVER if end is None else max(end, step))
        options = grain.ReadOptions(num_threads=self.threads, prefetch_buffer_size=max(_PREFETCH, self.threads))
        iterable = steps.map(self.batch).to_iter_dataset(options)
        if self.workers:
            # Grain reads its absl flags when it starts a worker; a program without absl has not parsed them.
            flags = import_extra("absl.flags", "data").FLAGS
            if not flags.is_parsed():
                flags.mark_as_parsed()
            workers = grain.MultiprocessingOptions(num_workers=self.workers)
            iterable = iterable.mp_prefetch(workers, worker_init_fn=end_with_parent)
        return iter(iterable)


class LoaderIterator(Iterator[dict[str, np.ndarray]]):
    """An iterator over the batches of a `Loader`; its state is the number of the next batch."""

    def __init__(self, loader: Loader):
        self._loader = loader
        self._step = loader.start
        self._batches: Any = None

    def __next__(self) -> dict[str, np.ndarray]:
        if self._batches is None:
            self._batches = self._loader._grain_iterator(self._step)
        batch = next(self._batches)
        self._step += 1
        # Batches of worker processes lie in shared memory that Grain frees.
        return {name: np.array(value) for name, value in batch.items()} if self._loader.workers else batch

    def get_state(self) -> dict[str, Any]:
        """Returns the position, JSON-able; it is the same for any number of workers."""
        return {"step": self._step, **self._loader.order.describe()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continues from a state of `get_state`: the next batch is the one that was next then.

        Raises:
          ValueError: the state is of a loader with another order (seed, batch size, number of examples, ...).
        """
        expected = {"step": state.get("step"), **self._loader.order.describe()}
        differs = [name for name in expected if name not in state or state[name] != expected[name]]
        if differs:
            pairs = ", ".join(f"{name} {state.get(name)!r} (here {expected[name]!r})" for name in differs)
            raise ValueError(f"state: expected one of this data order, found {pairs}")
        check_integer("state['step']", expected["step"], 0)
        self.close()
        self._step = expected["step"]

    def close(self) -> None:
        """Stops the reading threads and the workers; iterating again starts them again at the same batch."""
        if self._batches is not None:
            self._batches.close()
        self._batches = None


def make_loader(
    dataset: ImageDataset,
    batch_size: int,
    *,
    seed: int,
    shuffle: bool = True,
    drop_remainder: bool = True,
    **options: Any,
) -> Loader:
    """Makes training batches, in an order that depends only on the arguments; needs the ``data`` extra.

    An iterator gives ``image`` uint8 (batch, height, width, channels), ``label`` int32 (batch,) and ``index``
    int64 (batch,), the row in ``dataset``.

    Args:
      dataset: the rows.
      batch_size: rows in a global batch; at most ``len(dataset)`` and a multiple of ``process_count``.
      seed: 0 to 2**32 - 1; each epoch has its own permutation.
      shuffle: False gives the stored order.
      drop_remainder: drop the rows of an epoch that fill no batch (`Loader.dropped_per_epoch`); False ends
        each epoch with a smaller batch, for one process only.
      **options: other arguments of `Loader`: workers (for arrays in memory, reading in a thread is faster), threads,
        process_index, process_count, num_epochs, start.

    Raises:
      ValueError: an argument out of range.
    """
    order = shuffled(len(dataset), batch_size, seed, drop_remainder=drop_remainder)
    if not shuffle:
        order = in_order(len(dataset), batch_size, drop_remainder=drop_remainder)
    return Loader(order, functools.partial(gather, dataset), **options)


def gather(dataset: ImageDataset, rows: Rows) -> dict[str, np.ndarray]:
    """Returns the batch of these rows, by one indexing operation per array."""
    index = np.asarray(rows, np.int64)
    return {"image": dataset.images[index], "label": dataset.labels[index], "index": index}


def eval_batches(dataset: ImageDataset, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """Gives all rows once, in order, in batches of one size.

    The last batch is padded with black images of label 0; ``valid``, bool (batch,), is False there. Other
    entries: ``image``, ``label`` and ``index`` (-1 in the padding), as in `make_loader`.

    Args:
      dataset: the rows.
      batch_size: 1 or more; may exceed the number of rows.

    Raises:
      ValueError: ``batch_size`` below 1.
    """
    check_integer("batch_size", batch_size, 1)
    steps = range(0, len(dataset), batch_size)
    rows = (np.arange(start, min(start + batch_size, len(dataset))) for start in steps)
    return (pad_batch(gather(dataset, r), batch_size) | {"index": _pad(r, batch_size, -1)} for r in rows)


def pad_batch(batch: Mapping[str, np.ndarray], batch_size: int) -> dict[str, np.ndarray]:
    """Pads `batch` with rows of zeros to `batch_size` and adds ``valid``, bool (batch,), False in the padding."""
    count = len(next(iter(batch.values())))
    padded = {name: _pad(value, batch_size, 0) for name, value in batch.items()}
    return padded | {"valid": np.arange(batch_size) < count}


def _pad(values: np.ndarray, size: int, value: int) -> np.ndarray:
    widths = [(0, size - len(values))] + [(0, 0)] * (values.ndim - 1)
    return np.pad(values, widths, constant_values=value)
