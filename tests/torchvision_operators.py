"""Lets torchvision be imported where its build does not fit torch's and it lacks compiled operators."""

import importlib
import re
import sys
import warnings


def declare_missing_operators():
    """Declares the compiled operators that the import of torchvision misses; none of them is used by the tests."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        while missing := _missing_operator():
            torch.library.define(missing, "(Tensor x) -> Tensor")


def _missing_operator():
    try:
        importlib.import_module("torchvision")
    except ImportError:
        return None
    except RuntimeError as error:
        for name in [m for m in sys.modules if m.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        found = re.search(r"operator (torchvision::\w+) does not exist", str(error))
        return found and found[1]
    return None
