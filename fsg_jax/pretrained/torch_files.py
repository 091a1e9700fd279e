"""Tensors of files that ``torch.save`` wrote, read without PyTorch and without running what a pickle asks for.

Such a file is a pickle that refers to storages, flat arrays of bytes. Of the classes and functions that a pickle can
name, those of a state dict are known here, as functions of our own; any other name ends the reading.
"""

import io
import math
import pickle
import pickletools
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from fsg_jax._checks import expect

LARGEST_TOTAL = 2**33
"""Bytes of all tensors of a file together, 8 GiB; views of one storage count each."""

MEMBERS = 100_000
"""The most records that an archive may have."""

MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_VERSION = 1001

STORAGES: dict[str, Any] = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which training scripts keep the state dict, the first that is there counts."""


class Tensor(NamedTuple):
    """A tensor of a pickle: a view of a storage that is read later."""

    storage: Any
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Storage(NamedTuple):
    """A reference to a storage: its dtype by the name of PyTorch's class, its key in the file, its elements."""

    kind: str
    key: str
    size: int


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
    return Tensor(storage, offset, tuple(shape), tuple(strides))


class _Unpickler(pickle.Unpickler):
    """Knows what a state dict is made of and nothing else."""

    found: dict[str, Storage]

    def find_class(self, module: str, name: str) -> Any:
        # New functions for every call: a pickle can set attributes on what it gets.
        known: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): lambda *items: OrderedDict(*items),
            ("torch._utils", "_rebuild_tensor_v2"): lambda *parts: _tensor(*parts),
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
            ("torch", "Size"): lambda *sizes: tuple(*sizes),
        }
        if module == "torch" and name in STORAGES:
            return name
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"a reference to {module}.{name}, which is not run")
        return known[module, name]

    def persistent_load(self, pid: Any) -> Storage:
        _, kind, key, _, size, *view = pid if isinstance(pid, tuple) and len(pid) in (5, 6) else (None,) * 5
        whole = isinstance(size, int) and not isinstance(size, bool) and size >= 0
        if pid[0] != "storage" or kind not in STORAGES or not isinstance(key, str) or not whole or any(view):
            raise pickle.UnpicklingError("a reference to something else than a storage")
        storage = Storage(kind, key, size)
        if self.found.setdefault(key, storage) != storage:
            raise pickle.UnpicklingError(f"two storages {key!r}")
        return storage


def read_torch(data: bytes, name: str) -> dict[str, np.ndarray]:
    """The state dict in a file of ``torch.save``, arrays by name, in the formats before and since PyTorch 1.6.

    Args:
      data: the content of the file.
      name: of the file, for errors.

    Raises:
      ValueError: the file is cut short or damaged, refers to any other class or function than a state dict does, or
        holds another value than a state dict (by itself or under a key of `WRAPPERS`).
    """
    try:
        value, storages = (_read_archive if data[:4] == b"PK\x03\x04" else _read_legacy)(data)
    except Exception as error:  # a damaged pickle can raise nearly anything
        found = f"{str(error) or type(error).__name__}".splitlines()[0]
        raise ValueError(f"{name}: expected a PyTorch file of only tensors, found {found}") from error
    return _tensors(_unwrap(value, name), storages, name)


def _read_archive(data: bytes) -> tuple[Any, Mapping[str, memoryview | bytes]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        names = [member.filename for member in members]
        if len(members) > MEMBERS or len(set(names)) < len(names):
            raise zipfile.BadZipFile(f"more than {MEMBERS} records, or one twice")
        packed = [m.filename for m in members if m.compress_type != zipfile.ZIP_STORED or m.file_size > len(data)]
        if packed or sum(m.file_size for m in members) > len(data):
            raise zipfile.BadZipFile(f"compressed records, which PyTorch does not write: {packed}")
        (top,) = {name.partition("/")[0] for name in names if name.endswith("/data.pkl")}
        if f"{top}/byteorder" in names and archive.read(f"{top}/byteorder") != b"little":
            raise zipfile.BadZipFile("a byte order that is not little-endian")
        start = f"{top}/data/"
        storages = {name.removeprefix(start): archive.read(name) for name in names if name.startswith(start)}
        return _load(io.BytesIO(archive.read(f"{top}/data.pkl"))), storages


def _read_legacy(data: bytes) -> tuple[Any, Mapping[str, memoryview | bytes]]:
    stream, rest = io.BytesIO(data), memoryview(data)
    if _load(stream) != MAGIC or _load(stream) != LEGACY_VERSION or not _load(stream).get("little_endian"):
        raise pickle.UnpicklingError("no file of torch.save, or one of another byte order")
    found: dict[str, Storage] = {}
    value = _load(stream, found)
    keys, storages = _load(stream), {}
    for key in keys:
        (size,) = struct.unpack("<q", stream.read(8))
        end = stream.tell() + size * np.dtype(STORAGES[found[key].kind]).itemsize
        if size < 0 or size != found[key].size or end > len(data):
            raise EOFError(f"{len(data)} bytes, too few for the storage {key!r} of {size} elements: cut short?")
        storages[key] = rest[stream.tell() : end]
        stream.seek(end)
    if stream.read(1):
        raise pickle.UnpicklingError("bytes after its end")
    return value, storages


def _load(stream: io.BytesIO, found: dict[str, Storage] | None = None) -> Any:
    """The value of a pickle that begins where `stream` is; the storages that it refers to are noted in `found`."""
    start = stream.tell()
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if opcode.name.endswith("PUT") and (argument or 0) > count:  # memory for so many would be taken
            raise pickle.UnpicklingError(f"{opcode.name} {argument}")
    stream.seek(start)
    unpickler = _Unpickler(stream, encoding="utf-8")
    unpickler.found = {} if found is None else found
    return unpickler.load()


def _unwrap(value: Any, name: str) -> Mapping[str, Any]:
    expect(isinstance(value, Mapping), name, "a state dict, tensors by name", type(value).__name__)
    for wrapper in WRAPPERS:
        if isinstance(value.get(wrapper), Mapping):
            value = value[wrapper]
            break
    other = [repr(key) for key, v in value.items() if not (isinstance(key, str) and isinstance(v, Tensor))]
    expect(value and not other, name, "a state dict, tensors by name", f"other values: {', '.join(other) or 'none'}")
    parallel = "module."
    if all(key.startswith(parallel) for key in value):  # of torch.nn.DataParallel
        value = {key.removeprefix(parallel): tensor for key, tensor in value.items()}
    return value


def _tensors(state: Mapping[str, Tensor], storages: Mapping[str, Any], name: str) -> dict[str, np.ndarray]:
    total, arrays = 0, {}
    for key, tensor in state.items():
        storage, what = tensor.storage, f"{name}: {key}"
        integers = (tensor.offset, *tensor.shape, *tensor.strides)
        sound = all(type(i) is int and 0 <= i < 2**48 for i in integers) and len(tensor.shape) == len(tensor.strides)
        expect(sound and isinstance(storage, Storage), what, "a tensor", "impossible sizes, strides or storage")
        expect(storage.key in storages, what, f"the storage {storage.key!r} in the file", "none")
        dtype, content = np.dtype(STORAGES[storage.kind]), storages[storage.key]
        size = storage.size * dtype.itemsize
        expect(len(content) == size, what, f"a storage of {size} bytes", f"{len(content)}: cut short?")
        last = tensor.offset + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True))
        count = math.prod(tensor.shape)
        fits = count <= storage.size and (count == 0 or last < storage.size) and len(tensor.shape) <= 32
        expect(fits, what, f"a tensor inside its {storage.size} elements", f"shape {tensor.shape} at {tensor.offset}")
        total += count * dtype.itemsize
        expect(total <= LARGEST_TOTAL, name, f"at most {LARGEST_TOTAL} bytes of tensors", "more")
        if count == 0:
            arrays[key] = np.zeros(tensor.shape, dtype)
            continue
        flat = np.frombuffer(content, dtype)[tensor.offset :]
        strides = [s * dtype.itemsize for s in tensor.strides]
        arrays[key] = np.lib.stride_tricks.as_strided(flat, tensor.shape, strides, writeable=False).copy()
    return arrays
