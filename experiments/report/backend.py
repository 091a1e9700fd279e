"""Imports matplotlib whatever MPLBACKEND says: the figures need no backend, and a notebook names one for its commands.

Nothing before this module may import matplotlib; the variable is there again afterwards.
"""

import os

_NAME = "MPLBACKEND"
_named = os.environ.pop(_NAME, None)
try:
    import matplotlib  # noqa: F401
finally:
    if _named is not None:
        os.environ[_NAME] = _named
