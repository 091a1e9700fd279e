"""The order of rows that does not depend on files, and ids that stand for the same thing."""

import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from fsg_jax.data.extras import import_extra
from fsg_jax.endoscopy.index.schema import Table, natural_key

Rows = Int64[np.ndarray, " rows"]

_SEPARATOR = "\0"
_NATURAL = ("dataset", "polyp_id", "frame_id", "image_path")
_NUMERIC = ("xmin", "ymin", "xmax", "ymax")


def key_codes(table: Table, columns: Sequence[str]) -> tuple[Rows, list[tuple[str, ...]]]:
    """The values of string columns as one number a row.

    Args:
      table: an index.
      columns: names of string columns without nulls.

    Returns:
      ``(codes, keys)``: row ``i`` holds the values ``keys[codes[i]]``; keys are in order of first appearance.
    """
    pa, pc = import_extra("pyarrow", "endoscopy"), import_extra("pyarrow.compute", "endoscopy")
    joined = pc.binary_join_element_wise(*(table.column(name) for name in columns), _SEPARATOR)
    encoded = pa.concat_arrays(joined.chunks or [pa.array([], pa.string())]).dictionary_encode()
    keys = [tuple(text.split(_SEPARATOR)) for text in encoded.dictionary.to_pylist()]
    return encoded.indices.to_numpy().astype(np.int64), keys


def natural_order(table: Table) -> Rows:
    """Row numbers by dataset, polyp and frame in natural order, then by box; the same frames for any order of rows."""
    ranks = [_ranks(table, name) for name in _NATURAL] + [table.column(name).to_numpy() for name in _NUMERIC]
    return np.lexsort(ranks[::-1])


def _ranks(table: Table, name: str) -> Rows:
    codes, keys = key_codes(table, [name])
    ranks = np.empty(len(keys), np.int64)
    ranks[sorted(range(len(keys)), key=lambda i: natural_key(keys[i][0]))] = np.arange(len(keys))
    return ranks[codes]


def reference_id(dataset: str, text: str) -> str:
    """A polyp or video id as published lists write it: SUN cases are integers there, ``case012`` is ``12``."""
    match = re.fullmatch(r"(?:case)?(\d+)", text) if dataset == "sun" else None
    return str(int(match[1])) if match else text
