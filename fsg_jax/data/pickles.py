"""Reading the Python 2 pickles of CIFAR without running anything in them."""

import io
import pickle
from typing import Any

import numpy as np

_ARRAY_GLOBALS = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}


class _ArrayUnpickler(pickle.Unpickler):
    """Resolves the names that a pickled NumPy array needs, and no other."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ARRAY_GLOBALS:
            raise pickle.UnpicklingError(
                f"it refers to {module}.{name}; expected only lists, strings, numbers and NumPy arrays"
            )
        if name == "_reconstruct":
            return np.ndarray.__reduce__(np.empty(0))[0]
        if name == "ndarray":
            return np.ndarray

        # Python 2 stored align and copy as 0 and 1, which NumPy deprecates. A new function for every file:
        # a pickle can set attributes on it.
        def dtype(name: str, align: int = 0, copy: int = 0) -> np.dtype:
            return np.dtype(name, align=bool(align), copy=bool(copy))

        return dtype


def load_pickle(data: bytes, name: str) -> Any:
    """Unpickle plain containers, strings, numbers and NumPy arrays; anything else is refused, not run.

    Python 2 strings are decoded as latin-1, which keeps every byte.

    Args:
      data: the pickle.
      name: the file it comes from, for errors.

    Raises:
      ValueError: the pickle is cut short, damaged, or refers to any other class or function.
    """
    try:
        return _ArrayUnpickler(io.BytesIO(data), encoding="latin1").load()
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise ValueError(f"{name}: not a readable pickle of arrays and labels: {error}") from error
