"""Writes files as torch.save does, without PyTorch, and lets a test lie in them."""

import io
import struct
import zipfile

import numpy as np

KINDS = {"float32": "FloatStorage", "int64": "LongStorage", "float16": "HalfStorage"}


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value):
    return b"\x8a\x08" + struct.pack("<q", value)


def numbers(values):
    return b"(" + b"".join(map(number, values)) + b"t"


def name(module, attribute):
    return f"c{module}\n{attribute}\n".encode()


EMPTY = name("collections", "OrderedDict") + b")R"


def tensor(array, key, legacy, shape=None, strides=None, offset=0, kind=None, numel=None):
    """The pickle of a tensor: a call of PyTorch's function on a reference to a storage."""
    parts = [text("storage"), name("torch", kind or KINDS[array.dtype.name]), text(key), text("cpu")]
    parts += [number(array.size if numel is None else numel), b"N" * legacy]
    storage = b"(" + b"".join(parts) + b"tQ"
    itemsize = array.dtype.itemsize
    strides = [s // itemsize for s in array.strides] if strides is None else strides
    view = number(offset) + numbers(array.shape if shape is None else shape) + numbers(strides)
    return name("torch._utils", "_rebuild_tensor_v2") + b"(" + storage + view + b"\x89" + EMPTY + b"tR"


def pickled(values):
    """The pickle of an OrderedDict of pickles without their beginning and end."""
    return b"\x80\x02" + EMPTY + b"(" + b"".join(text(key) + value for key, value in values.items()) + b"u."


def torch_file(tensors, legacy=False, extra=None, compression=zipfile.ZIP_STORED, order=b"little", **lies):
    """The content of a file: `extra` are further pickled values, `lies` go to the first tensor."""
    values = {}
    for i, (key, array) in enumerate(tensors.items()):
        values[key] = tensor(np.ascontiguousarray(array), str(i), legacy, **(lies if i == 0 else {}))
    main = pickled(values | (extra or {}))
    contents = [np.ascontiguousarray(array) for array in tensors.values()]
    if legacy:
        magic = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
        info = b"\x80\x02}(" + text("little_endian") + (b"\x88" if order == b"little" else b"\x89") + b"u."
        keys = b"\x80\x02](" + b"".join(text(str(i)) for i in range(len(contents))) + b"e."
        raw = b"".join(struct.pack("<q", array.size) + array.tobytes() for array in contents)
        return magic + b"\x80\x02M\xe9\x03." + info + main + keys + raw
    with zipfile.ZipFile(file := io.BytesIO(), "w", compression) as archive:
        archive.writestr("archive/data.pkl", main)
        archive.writestr("archive/byteorder", order)
        for i, array in enumerate(contents):
            archive.writestr(f"archive/data/{i}", array.tobytes())
        archive.writestr("archive/version", "3\n")
    return file.getvalue()
