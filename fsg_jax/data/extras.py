"""Lazy imports of the packages that come with an extra."""

import importlib
from typing import Any


def import_extra(module: str, extra: str) -> Any:
    """Imports ``module``, or raises an ImportError that names the ``extra`` it comes with."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        hint = f"pip install 'fsg-jax[{extra}]'"
        raise ImportError(f"{module}: expected to be installed ({hint}), found {error}") from error
