"""Small CIFAR-100 copies in every format, written byte by byte as the official tools did."""

import contextlib
import functools
import http.server
import io
import struct
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

FINE_NAMES = tuple(f"fine_{i:03d}" for i in range(100))
COARSE_NAMES = tuple(f"coarse_{i:02d}" for i in range(20))
COUNTS = {"train": 30, "test": 10}


def arrays(split: str) -> dict[str, np.ndarray]:
    random = np.random.RandomState(COUNTS[split])
    fine = random.permutation(100)[: COUNTS[split]]
    images = random.randint(0, 256, (COUNTS[split], 32, 32, 3)).astype(np.uint8)
    return {"images": images, "fine": fine, "coarse": fine // 5}


def rows(split: str) -> np.ndarray:
    return arrays(split)["images"].transpose(0, 3, 1, 2).reshape(-1, 3072)


def opcodes(value: object) -> bytes:
    """The protocol 2 pickle opcodes that Python 2 wrote for ``value``; bytes are its strings."""
    if isinstance(value, bytes):
        return b"T" + struct.pack("<i", len(value)) + value
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, tuple):
        return b"(" + b"".join(map(opcodes, value)) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(map(opcodes, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(opcodes(k) + opcodes(v) for k, v in value.items()) + b"u"
    assert isinstance(value, np.ndarray)
    empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + opcodes((0,)) + opcodes(b"b") + b"tR"
    dtype = b"cnumpy\ndtype\n" + opcodes((b"u1", 0, 1)) + b"R"
    dtype += b"(" + opcodes(3) + opcodes(b"|") + b"NNN" + opcodes(-1) * 2 + opcodes(0) + b"tb"
    state = b"(" + opcodes(1) + opcodes(value.shape) + dtype + b"I00\n" + opcodes(value.tobytes()) + b"t"
    return empty + state + b"b"


def pickle_py2(value: object) -> bytes:
    return b"\x80\x02" + opcodes(value) + b"."


def split_pickle(split: str) -> dict[bytes, object]:
    data = arrays(split)
    return {
        b"filenames": [b"x.png"] * COUNTS[split],
        b"batch_label": split.encode(),
        b"fine_labels": data["fine"].tolist(),
        b"coarse_labels": data["coarse"].tolist(),
        b"data": rows(split),
    }


def write_python(folder: Path) -> Path:
    folder = folder / "cifar-100-python"
    folder.mkdir(parents=True)
    for split in COUNTS:
        (folder / split).write_bytes(pickle_py2(split_pickle(split)))
    names = {b"fine_label_names": FINE_NAMES, b"coarse_label_names": COARSE_NAMES}
    meta = {key: [name.encode() for name in value] for key, value in names.items()}
    (folder / "meta").write_bytes(pickle_py2(meta))
    return folder


def write_binary(folder: Path) -> Path:
    folder = folder / "cifar-100-binary"
    folder.mkdir(parents=True)
    for split in COUNTS:
        data = arrays(split)
        labels = np.stack([data["coarse"], data["fine"]], 1).astype(np.uint8)
        np.concatenate([labels, rows(split)], 1).tofile(folder / f"{split}.bin")
    for kind, names in (("fine", FINE_NAMES), ("coarse", COARSE_NAMES)):
        (folder / f"{kind}_label_names.txt").write_text("\n".join(names) + "\n")
    return folder


def npz_content() -> dict[str, np.ndarray]:
    content = {f"{split}_{key}": value for split in COUNTS for key, value in arrays(split).items()}
    return {**content, "fine_names": np.array(FINE_NAMES), "coarse_names": np.array(COARSE_NAMES)}


def write_npz(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "cifar100.npz", **npz_content())
    return folder / "cifar100.npz"


def write_archive(folder: Path) -> Path:
    """``folder`` as a .tar.gz beside it."""
    path = folder.with_name(folder.name + ".tar.gz")
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, arcname=folder.name)
    return path


def write_members(path: Path, members: dict[str, bytes], links: dict[str, str] | None = None) -> Path:
    """A .tar.gz with these members, whatever their names."""
    with tarfile.open(path, "w:gz") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
    return path


@contextlib.contextmanager
def web_server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list]]:
    """Serve ``folder`` on this machine: its address, and the list that the requests are added to."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    requests: list = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            requests.append(args)

    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", requests
        finally:
            server.shutdown()
            thread.join()
