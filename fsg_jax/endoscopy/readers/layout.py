"""What the readers of the layouts share: chunks of files, and rows of the index with what was dropped."""

import hashlib
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from fsg_jax.endoscopy.readers.boxes import FittedBox
from fsg_jax.endoscopy.readers.reasons import Event, Reason
from fsg_jax.endoscopy.readers.sizes import PolypSizes, Size
from fsg_jax.endoscopy.readers.verify import Verify

SYNTHETIC = "SYNTHETIC.json"


class Chunk(NamedTuple):
    """Files that are read together. `key` changes when the files do; `name` is unique in a dataset."""

    name: str
    group: str
    files: tuple[str, ...]
    key: str


class Frame(NamedTuple):
    """One frame: its ids, its image relative to the root, and its size in pixels."""

    video_id: str
    frame_id: str
    image_path: str
    width: int
    height: int


@dataclass
class Part:
    """What was read from a chunk: rows of the index, what was dropped or noted, and counts."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def note_box(self, fitted: FittedBox, file: str, item: str) -> None:
        """Notes a box that was rounded or clipped."""
        if fitted.rounded:
            self.events.append(Event(file, item, Reason.ROUNDED, f"to {tuple(fitted.box)}"))
        if fitted.clipped:
            self.events.append(Event(file, item, Reason.CLIPPED, f"to {tuple(fitted.box)}"))


@dataclass(frozen=True)
class Layout(ABC):
    """A dataset on disk; picklable, for it is sent to worker processes."""

    name: str
    root: Path
    verify: Verify
    sizes: PolypSizes
    patients: Mapping[str, str]
    synthetic: bool

    @abstractmethod
    def chunks(self) -> Iterator[Chunk]:
        """The files in an order that does not depend on that of the folders, never all of them at once."""

    @abstractmethod
    def read(self, chunk: Chunk) -> Part:
        """Reads one chunk."""

    @abstractmethod
    def count_files(self) -> int:
        """Number of annotation files, without reading them."""

    def events(self) -> list[Event]:
        """What is odd about the dataset as a whole."""
        return self.sizes.events

    def row(self, frame: Frame, polyp_id: str, fitted: FittedBox, size: Size) -> dict[str, Any]:
        """One row of the index."""
        patient = self.patients.get(frame.video_id, frame.video_id)
        ids = {"dataset": self.name, "patient_id": patient, "polyp_id": polyp_id}
        return index_row(frame, fitted, size, **ids, synthetic=self.synthetic)


def index_row(frame: Frame, fitted: FittedBox, size: Size, **others: str | bool) -> dict[str, Any]:
    """One row of the index; `others` are dataset, patient_id, polyp_id and synthetic."""
    sizes = {"size_mm": size.mm, "size_censored": size.censored}
    return {**frame._asdict(), "mask_path": None, **fitted.box._asdict(), **sizes, **others}


class FileStat(NamedTuple):
    """A file of a folder; `name` comes first to sort by."""

    name: str
    size: int
    modified: int


def list_files(folder: Path) -> list[FileStat]:
    """What is in a folder in the order of the names (shorter ones first, so numbers are in order)."""
    with os.scandir(folder) as entries:
        files = [_file_stat(entry) for entry in entries]
    return sorted(files, key=lambda file: (len(file.name), file.name))


def _file_stat(entry: os.DirEntry[str]) -> FileStat:
    try:
        stat = entry.stat()
    except OSError:  # such as a broken link; reading it fails too, and is reported
        return FileStat(entry.name, 0, 0)
    return FileStat(entry.name, stat.st_size, stat.st_mtime_ns)


def list_names(folder: Path) -> list[str]:
    """As `list_files`, but the names only; none if there is no such folder."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted((entry.name for entry in entries), key=lambda name: (len(name), name))


def fingerprint(values: Iterable[object]) -> str:
    """A digest of what `str` makes of the values."""
    digest = hashlib.sha256()
    for value in values:
        digest.update(str(value).encode("utf-8", "surrogateescape") + b"\n")
    return digest.hexdigest()


def read_bytes(path: str, limit: int) -> bytes:
    """At most the first `limit` bytes of a file."""
    with open(path, "rb") as file:
        return file.read(min(limit, os.fstat(file.fileno()).st_size))


def check_root(root: Path) -> Path:
    """The absolute path of a dataset's folder.

    Raises:
      FileNotFoundError: there is no such folder.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder; expected the root of a dataset")
    return root.resolve()


def is_synthetic(root: Path) -> bool:
    """Whether the dataset is made up: its root holds `SYNTHETIC`."""
    return (root / SYNTHETIC).exists()
