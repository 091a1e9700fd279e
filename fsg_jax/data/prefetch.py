"""Batches put on the device ahead of time, so that the transfer of one overlaps the step before it."""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

from fsg_jax.typing import Batch


@runtime_checkable
class Batches(Protocol):
    """An iterator over batches with a position, such as `fsg_jax.data.LoaderIterator`."""

    def __next__(self) -> Any: ...

    def get_state(self) -> dict[str, Any]:
        """The position, JSON-able."""

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from a position."""

    def close(self) -> None:
        """Stop reading."""


class Prefetch(Iterator[Any]):
    """The batches of `batches`, each passed through `put` while up to `size` batches before it are in use.

    Its state is that of the batches it has given, not of those it holds.

    Args:
      batches: what is read from.
      put: e.g. `jax.device_put`, or `fsg_jax.training.sharding.shard_batch` on a mesh.
      size: how many batches are held.

    Raises:
      ValueError: `size` below 1.
    """

    def __init__(self, batches: Batches, put: Callable[[Batch], Any], size: int = 2) -> None:
        if size < 1:
            raise ValueError(f"size is {size}; expected 1 or more")
        self._batches, self._put, self._size = batches, put, size
        self._held: deque[tuple[Any, dict[str, Any]]] = deque()
        self._state = batches.get_state()

    def __next__(self) -> Any:
        while len(self._held) < self._size:
            try:
                batch = next(self._batches)
            except StopIteration:
                break
            self._held.append((self._put(batch), self._batches.get_state()))
        if not self._held:
            raise StopIteration
        batch, self._state = self._held.popleft()
        return batch

    def get_state(self) -> dict[str, Any]:
        """The position after the batch given last."""
        return self._state

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from a state of `get_state`; what is held is let go."""
        self._batches.set_state(state)
        self._held.clear()
        self._state = state

    def close(self) -> None:
        """Stop reading; the next batch is then the one that follows the batch given last."""
        self._batches.close()
        self.set_state(self._state)
