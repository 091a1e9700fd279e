"""Batches for training (a Grain pipeline) and for evaluation (in order, each row once)."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Int

from fsg_jax.data.dataset import ImageDataset
from fsg_jax.data.extras import import_extra

_PREFETCH = 4


def _gather(dataset: ImageDataset, rows: slice, indices: np.ndarray) -> dict[str, np.ndarray]:
    """One process's part of a global batch, in one indexing operation per array."""
    index = np.asarray(indices, np.int64)[rows]
    return {"image": dataset.images[index], "label": dataset.labels[index], "index": index}


def _stack_indices(indices: Any) -> Int[np.ndarray, " batch"]:
    return np.asarray(indices, np.int64)


@dataclasses.dataclass(frozen=True, eq=False)
class Loader:
    """Training batches of an `ImageDataset`; made by `make_loader`. Every ``iter()`` begins at ``start``."""

    dataset: ImageDataset
    batch_size: int
    seed: int
    shuffle: bool
    workers: int
    process_index: int
    process_count: int
    drop_remainder: bool
    num_epochs: int | None
    start: int

    @property
    def steps_per_epoch(self) -> int:
        """Batches in one pass over the rows."""
        steps, rest = divmod(len(self.dataset), self.batch_size)
        return steps + (rest > 0 and not self.drop_remainder)

    @property
    def dropped_per_epoch(self) -> int:
        """Rows that no batch of a pass contains; others in every epoch when shuffled."""
        return len(self.dataset) % self.batch_size if self.drop_remainder else 0

    def __iter__(self) -> "LoaderIterator":
        return LoaderIterator(self)

    def order(self) -> dict[str, Any]:
        """What the content of step n depends on, besides the rows themselves."""
        names = ("batch_size", "seed", "shuffle", "process_count", "drop_remainder", "num_epochs")
        return {"examples": len(self.dataset), **{name: getattr(self, name) for name in names}}

    def _pipeline(self) -> Any:
        """A Grain MapDataset whose element n is batch n: any step can be reached directly."""
        grain = import_extra("grain", "data")
        pipeline = grain.MapDataset.range(len(self.dataset))
        if self.shuffle:
            # Grain adds the epoch to the seed. Hashing first keeps neighbouring seeds from sharing epochs.
            seed = np.random.SeedSequence(self.seed).generate_state(1, np.uint32)[0]
            pipeline = pipeline.shuffle(seed=int(seed))
        pipeline = pipeline.batch(self.batch_size, drop_remainder=self.drop_remainder, batch_fn=_stack_indices).repeat(
            self.num_epochs
        )
        local = self.batch_size // self.process_count
        rows = slice(self.process_index * local, (self.process_index + 1) * local)
        if self.process_count == 1:
            rows = slice(None)
        return pipeline.map(functools.partial(_gather, self.dataset, rows))

    def _grain_iterator(self, step: int) -> Any:
        """A Grain iterator whose first batch is number ``step``."""
        grain = import_extra("grain", "data")
        batches = self._pipeline().slice(slice(step, None))
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=_PREFETCH)
        iterable = batches.to_iter_dataset(options)
        if self.workers:
            _parse_absl_flags()
            iterable = iterable.mp_prefetch(grain.MultiprocessingOptions(num_workers=self.workers))
        return iter(iterable)


def _parse_absl_flags() -> None:
    """Grain reads its absl flags when it starts a worker; a program without absl has not parsed them."""
    flags = import_extra("absl.flags", "data").FLAGS
    if not flags.is_parsed():
        flags.mark_as_parsed()


class LoaderIterator(Iterator[dict[str, np.ndarray]]):
    """Iterates over the batches of a `Loader`; its state is the number of the next one."""

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
        """The position, as a dict that JSON can hold; the same for any number of workers."""
        return {"step": self._step, **self._loader.order()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from a state of `get_state`; the next batch is the one that was next then.

        Raises:
          ValueError: the state is of a loader with another order (seed, batch size, number of examples, ...).
        """
        expected = {"step": state.get("step"), **self._loader.order()}
        differs = [name for name in expected if name not in state or state[name] != expected[name]]
        if differs:
            pairs = ", ".join(f"{name} {state.get(name)!r} (here {expected[name]!r})" for name in differs)
            raise ValueError(f"state is of another data order: {pairs}")
        _check_range("state['step']", expected["step"], 0)
        self.close()
        self._step = expected["step"]

    def close(self) -> None:
        """Stop the reading thread and the workers. Iterating again starts them again at the same batch."""
        if self._batches is not None:
            self._batches.close()
        self._batches = None


def _check_range(name: str, value: Any, low: int, high: int | None = None) -> None:
    if not isinstance(value, int | np.integer) or value < low or (high is not None and value > high):
        wanted = f"{low} or more" if high is None else f"{low} to {high}"
        raise ValueError(f"{name} is {value!r}; expected an integer, {wanted}")


def make_loader(
    dataset: ImageDataset,
    batch_size: int,
    *,
    seed: int,
    shuffle: bool = True,
    workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    drop_remainder: bool = True,
    num_epochs: int | None = None,
    start: int = 0,
) -> Loader:
    """Training batches, in an order that depends on nothing but the arguments; needs the ``data`` extra.

    An iterator gives ``image`` uint8 (batch, height, width, channels), ``label`` int32 (batch,) and ``index``
    int64 (batch,), the row in ``dataset``. Its ``get_state`` and ``set_state`` continue a stopped run with
    the same batches.

    Args:
      dataset: the rows.
      batch_size: of the global batch; at most ``len(dataset)`` and a multiple of ``process_count``.
      seed: 0 to 2**32 - 1; each epoch has its own permutation.
      shuffle: False gives the stored order.
      workers: reading processes; 0 reads in a thread of this one, which is faster for arrays in memory. The
        batches are the same. With workers, a script needs the ``if __name__ == "__main__"`` guard.
      process_index: of this process; it receives slice ``process_index`` of every global batch.
      process_count: of processes that share a global batch.
      drop_remainder: drop the rows of an epoch that fill no batch (`Loader.dropped_per_epoch`); False ends
        each epoch with a smaller batch, for one process only.
      num_epochs: None never ends.
      start: the number of the first batch, 0 or more.

    Raises:
      ValueError: an argument out of range.
    """
    _check_range("batch_size", batch_size, 1)
    if batch_size > len(dataset):
        raise ValueError(f"batch_size is {batch_size}; expected at most {len(dataset)}, the number of examples")
    _check_range("seed", seed, 0, 2**32 - 1)
    _check_range("workers", workers, 0)
    _check_range("process_count", process_count, 1)
    _check_range("process_index", process_index, 0, process_count - 1)
    _check_range("start", start, 0)
    if num_epochs is not None:
        _check_range("num_epochs", num_epochs, 1)
    if batch_size % process_count:
        raise ValueError(f"batch_size is {batch_size}; expected a multiple of process_count = {process_count}")
    if not drop_remainder and process_count > 1:
        raise ValueError(f"drop_remainder=False needs process_count = 1; found {process_count}")
    return Loader(
        dataset,
        batch_size=int(batch_size),
        seed=int(seed),
        shuffle=shuffle,
        workers=int(workers),
        process_index=process_index,
        process_count=process_count,
        drop_remainder=drop_remainder,
        num_epochs=num_epochs,
        start=int(start),
    )


def eval_batches(dataset: ImageDataset, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """All rows once, in order, in batches of one size.

    The last batch is padded with black images of label 0; ``valid``, bool (batch,), is False there. Other
    entries: ``image``, ``label`` and ``index`` (-1 in the padding), as in `make_loader`.

    Args:
      dataset: the rows.
      batch_size: 1 or more; may exceed the number of rows.

    Raises:
      ValueError: ``batch_size`` below 1.
    """
    _check_range("batch_size", batch_size, 1)
    return (_padded(dataset, start, batch_size) for start in range(0, len(dataset), batch_size))


def _padded(dataset: ImageDataset, start: int, batch_size: int) -> dict[str, np.ndarray]:
    index = np.arange(start, min(start + batch_size, len(dataset)), dtype=np.int64)
    padding = batch_size - len(index)
    image = np.pad(dataset.images[index], ((0, padding), (0, 0), (0, 0), (0, 0)))
    return {
        "image": image,
        "label": np.pad(dataset.labels[index], (0, padding)),
        "index": np.pad(index, (0, padding), constant_values=-1),
        "valid": np.arange(batch_size) < len(index),
    }
