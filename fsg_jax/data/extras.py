"""Lazy imports of the packages that come with an extra."""

import importlib
from typing import Any


def import_extra(module: str, extra: str) -> Any:
    """Import ``module``, or raise an ``ImportError`` that names the ``extra`` it comes with."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        message = f"{module} could not be imported ({error}); install it with: pip install 'fsg-jax[{extra}]'"
        raise ImportError(message) from error
