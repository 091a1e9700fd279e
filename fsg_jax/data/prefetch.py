"""Batches put on the device ahead of time, so that their transfer overlaps the steps before them."""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from fsg_jax._checks import check_integer
from fsg_jax.data.loader import LoaderIterator
from fsg_jax.typing import Batch


class Prefetch(Iterator[Any]):
    """The batches of `batches`, each passed through `put` while up to `size` batches before it are in use.

    The state is that of the batches given so far, not of those held ahead.

    Args:
      batches: an iterator over a `Loader`.
      put: e.g. `jax.device_put`, or `fsg_jax.training.sharding.shard_batch` on a mesh.
      size: number of batches held ahead.

    Raises:
      ValueError: `size` below 1.
    """

    def __init__(self, batches: LoaderIterator, put: Callable[[Batch], Any], size: int = 2) -> None:
        check_integer("size", size, 1)
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
        """Returns the position after the batch given last."""
        return self._state

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from a state of `get_state`; batches held ahead are dropped."""
        self._batches.set_state(state)
        self._held.clear()
        self._state = state

    def close(self) -> None:
        """Stops reading; the next batch is then the one that follows the batch given last."""
        self._batches.close()
        self.set_state(self._state)
