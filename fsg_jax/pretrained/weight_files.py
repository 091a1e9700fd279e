"""Weights of a file as NumPy arrays by name: safetensors, PyTorch, NumPy. No file is trusted."""

import io
import math
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from fsg_jax._checks import expect
from fsg_jax._files import read_bytes
from fsg_jax.data.extras import import_extra
from fsg_jax.pretrained.torch_files import LARGEST_TOTAL, MEMBERS, read_torch

LARGEST_FILE = 2**32
"""Bytes of a file of weights, 4 GiB."""

DTYPES = {
    **{f"F{8 * size}": np.dtype(f"<f{size}") for size in (2, 4, 8)},
    **{f"{kind}{8 * size}": np.dtype(f"<{kind.lower()}{size}") for kind in "IU" for size in (1, 2, 4, 8)},
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "BOOL": np.dtype(np.bool_),
}
"""NumPy's dtype by the name that safetensors has for it."""


def read_safetensors(data: bytes, name: str) -> dict[str, np.ndarray]:
    """Arrays of a ``.safetensors`` file, sorted by name; needs the ``pretrained`` extra.

    Raises:
      ValueError: the header is cut short, or says what the file is not.
    """
    library = import_extra("safetensors", "pretrained")
    try:
        tensors = dict(sorted(library.deserialize(data), key=lambda item: item[0]))
    except Exception as error:
        raise ValueError(f"{name}: expected a whole safetensors file, found {str(error).splitlines()[0]}") from error
    other = [f"{key}: {tensor['dtype']}" for key, tensor in tensors.items() if tensor["dtype"] not in DTYPES]
    expect(not other, name, f"arrays of {', '.join(DTYPES)}", ", ".join(other))
    return {k: np.frombuffer(t["data"], DTYPES[t["dtype"]]).reshape(t["shape"]) for k, t in tensors.items()}


def read_npz(data: bytes, name: str) -> dict[str, np.ndarray]:
    """Arrays of an ``.npz`` file; bfloat16, which NumPy stores as two bytes without a type, is known.

    Raises:
      ValueError: the archive is cut short or damaged, an array is not of the size that it claims, or holds objects.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            if len(members) > MEMBERS or len({m.filename for m in members}) < len(members):
                raise zipfile.BadZipFile(f"more than {MEMBERS} arrays, or one twice")
            if (total := sum(m.file_size for m in members)) > LARGEST_TOTAL:
                raise zipfile.BadZipFile(f"{total} bytes of arrays, more than {LARGEST_TOTAL}")
            return {m.filename.removesuffix(".npy"): _read_npy(archive, m) for m in members}
    except Exception as error:  # a damaged archive can raise nearly anything
        raise ValueError(f"{name}: expected a whole .npz file of arrays, found {error}") from error


def _read_npy(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    npy = np.lib.format
    with archive.open(member) as file:
        version = npy.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{member.filename} of version {version}")
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read_header(file)
        size = math.prod(shape) * dtype.itemsize
        if dtype.hasobject or file.tell() + size != member.file_size:
            raise ValueError(f"{member.filename}: {dtype} {shape}, which is not what it holds")
        content = file.read(size + 1)  # to its end, where the checksum is compared
    if len(content) != size:
        raise ValueError(f"{member.filename}: cut short")
    array = np.frombuffer(content, ml_dtypes.bfloat16 if dtype == np.dtype("V2") else dtype)
    return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)


READERS: dict[str, Callable[[bytes, str], dict[str, np.ndarray]]] = {
    ".safetensors": read_safetensors,
    ".pth": read_torch,
    ".pt": read_torch,
    ".bin": read_torch,
    ".npz": read_npz,
}
"""The reader of a file by the end of its name."""


def read_weights(path: str | os.PathLike, data: bytes | None = None) -> dict[str, np.ndarray]:
    """Arrays by name, with the dtypes of the file; see `READERS`.

    Args:
      path: the file; the end of its name decides how it is read.
      data: its content, if it has been read already.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a file of another kind, a damaged one, an array of another kind than numbers, a value that is not
        finite; the array is named.
      ImportError: safetensors is not installed.
    """
    path = Path(path)
    expect(path.suffix in READERS, str(path), f"a file named {', '.join(READERS)}", repr(path.suffix))
    tensors = READERS[path.suffix](read_bytes(path, LARGEST_FILE) if data is None else data, str(path))
    expect(tensors, str(path), "weights", "none")
    check_finite(tensors, str(path))
    return tensors


def check_finite(tensors: Mapping[str, np.ndarray], name: str) -> None:
    """Raises ValueError unless all arrays are numbers, and finite; those that are not are named."""
    kinds = [key for key, value in tensors.items() if value.dtype.kind not in "fiub" and value.dtype.name != "bfloat16"]
    expect(not kinds, name, "arrays of numbers", ", ".join(f"{key}: {tensors[key].dtype}" for key in kinds))
    with np.errstate(over="ignore"):
        broken = [key for key, value in tensors.items() if not np.isfinite(value.astype(np.float32)).all()]
    expect(not broken, name, "finite float32 values", f"NaN or infinite ones in {', '.join(broken)}")
