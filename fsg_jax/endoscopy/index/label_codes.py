"""The labels of a polyp besides its size: what an index may say of histology and site, and their codes."""

from typing import Any

import numpy as np
from jaxtyping import Int32

from fsg_jax._checks import check_choice

HISTOLOGIES = ("AD", "HP", "SSL", "TSA", "OTHER", "NO POLYP")
"""Adenoma, hyperplastic polyp, sessile serrated lesion, traditional serrated adenoma, other, and tissue that turned out
to be no polyp, which is a finding and no missing value. These are the classes of REAL-Colon's ``histology_class``."""

SITES = (
    *("cecum", "ascending", "hepatic flexure", "transverse"),
    *("splenic flexure", "descending", "sigmoid", "rectum"),
)
"""The parts of the colon from its beginning to its end, so that neighbours have neighbouring codes."""

LABELS = {"histology": HISTOLOGIES, "site": SITES}
"""Columns of an index, and their values in the order of the codes."""

UNKNOWN = -1
"""The code where an index has no value."""


def label_codes(table: Any, name: str) -> Int32[np.ndarray, " rows"]:
    """The place of every row's value in ``LABELS[name]``, `UNKNOWN` where it is null.

    Args:
      table: an index.
      name: ``histology`` or ``site``.

    Raises:
      ValueError: another name, or a value that is none of ``LABELS[name]``.
    """
    check_choice("name", name, LABELS)
    codes: dict[str | None, int] = {None: UNKNOWN} | {value: i for i, value in enumerate(LABELS[name])}
    values = table.column(name).to_pylist()
    if others := sorted(set(values) - codes.keys()):
        raise ValueError(f"{name}: expected one of {', '.join(LABELS[name])}, or null, found {others[:3]}")
    return np.array([codes[value] for value in values], np.int32)
