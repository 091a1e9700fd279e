"""One example as bytes: a fixed header, then the arrays as they lie in memory."""

from typing import Any

import numpy as np

from fsg_jax.endoscopy.index.label_codes import LABELS

_HEADER = np.dtype(
    [("magic", "S4"), ("depth", "?"), ("size", "<u4"), ("row", "<i8"), ("box", "<f4", (4,)), ("size_mm", "<f4")]
    + [(name, "<i4") for name in LABELS]
)
_MAGIC = b"FSG2"


def encode_example(example: dict[str, Any]) -> bytes:
    """The bytes of an example of `FrameSource`."""
    size, depth = len(example["frame"]), example.get("depth")
    values = (example[name] for name in ("row", "box", "size_mm", *LABELS))
    header = np.array((_MAGIC, depth is not None, size, *values), _HEADER)
    return b"".join([header.tobytes(), example["frame"].tobytes(), b"" if depth is None else depth.tobytes()])


def decode_example(record: bytes) -> dict[str, Any]:
    """The example that `encode_example` made the bytes of, bit for bit.

    Raises:
      ValueError: they are not such bytes, or not all of them.
    """
    if len(record) < _HEADER.itemsize or record[: len(_MAGIC)] != _MAGIC:
        raise ValueError(f"found {len(record)} bytes that start {record[:4]!r}; expected an example")
    header = np.frombuffer(record, _HEADER, count=1)[0]
    size, has_depth = int(header["size"]), bool(header["depth"])
    frame_end = _HEADER.itemsize + 3 * size**2
    end = frame_end + 4 * size**2 * has_depth
    if len(record) != end:
        raise ValueError(f"found {len(record)} bytes; expected {end}")
    frame = np.frombuffer(record, np.uint8, count=3 * size**2, offset=_HEADER.itemsize)
    example: dict[str, Any] = {"frame": frame.reshape(size, size, 3).copy(), "box": header["box"].astype(np.float32)}
    if has_depth:
        example["depth"] = np.frombuffer(record, "<f4", offset=frame_end).reshape(size, size).astype(np.float32)
    example |= {"size_mm": np.float32(header["size_mm"])} | {name: np.int32(header[name]) for name in LABELS}
    return example | {"row": np.int64(header["row"])}
