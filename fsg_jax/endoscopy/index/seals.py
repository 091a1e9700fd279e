"""Seals: SHA-256 digests of what files hold, by which damage and edits are noticed; a file without one is unverified.

An index carries its seal in itself, so that it cannot be lost; a CSV of folds has it beside it, in ``FILE.sha256``.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fsg_jax._files import read_text, write_text
from fsg_jax.data.extras import import_extra

COMMAND = "python -m experiments.seal"


def table_digest(table: Any, roots: Mapping[str, str]) -> str:
    """The digest of an index: of the values of every column, however they lie in memory, and of the roots."""
    pa, pc = import_extra("pyarrow", "endoscopy"), import_extra("pyarrow.compute", "endoscopy")
    digest = hashlib.sha256(json.dumps([roots, table.column_names], sort_keys=True).encode())
    for column in table.columns:
        values = column
        if column.null_count:
            digest.update(column.is_valid().to_numpy())
            values = pc.fill_null(column, "" if pa.types.is_string(column.type) else 0)
        if pa.types.is_string(column.type):
            digest.update(pc.binary_length(values).to_numpy())
            for chunk in values.chunks:
                digest.update(pc.binary_join(pa.ListArray.from_arrays([0, len(chunk)], chunk), "")[0].as_buffer())
        else:
            digest.update(values.to_numpy())
    return digest.hexdigest()


def check_seal(path: Path, sealed: object, found: str) -> None:
    """Raises ValueError unless the digests agree; the message names the command that seals the file anew."""
    if sealed != found:
        digests = f"expected what was sealed, {str(sealed)[:12]}..., found {found[:12]}..."
        remedy = f"restore it, or if the edit is wanted seal it anew: {COMMAND} {path}"
        raise ValueError(f"{path} is damaged or was edited: {digests}; {remedy}")


def seal_file(path: Path) -> Path:
    """``FILE.sha256``, in the format of sha256sum."""
    return path.with_name(f"{path.name}.sha256")


def read_seal(path: Path) -> str | None:
    """The digest in the seal beside a file; None without one.

    Raises:
      ValueError: the seal is damaged.
    """
    file = seal_file(path)
    if not file.exists():
        return None
    text = read_text(file, 2**12)
    if not re.match(r"[0-9a-f]{64}\s", text):
        expected = f"expected the SHA-256 of {path.name}, found {text[:70]!r}"
        raise ValueError(f"{file} is damaged: {expected}; seal the file anew: {COMMAND} {path}")
    return text[:64]


def write_seal(path: Path, digest: str) -> None:
    """Writes the seal beside a file, whole or not at all."""
    write_text(seal_file(path), f"{digest}  {path.name}\n")
