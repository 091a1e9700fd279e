"""What the readers share: a dataset as chunks of files, each read into rows of the index and what was dropped."""

import hashlib
import os
import stat
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from fsg_jax._files import is_system_file
from fsg_jax.endoscopy.readers.boxes import Box, fit_box
from fsg_jax.endoscopy.readers.lesion_labels import PolypLabels
from fsg_jax.endoscopy.readers.reports import Event, Reason, RefusedError
from fsg_jax.endoscopy.readers.sizes import PolypSizes, Size
from fsg_jax.endoscopy.readers.verify import Verify

Patients: TypeAlias = Mapping[str, str]
"""Patient of each video; a video that is not there is a patient of its own."""

SYNTHETIC = "SYNTHETIC.json"
"""The root of a dataset that is made up holds this file."""


class Chunk(NamedTuple):
    """What is read together: files of one `group`. `key` changes when they do; `name` is unique in a dataset."""

    name: str
    group: str
    files: tuple[Any, ...]
    key: str


class Frame(NamedTuple):
    """One frame: its ids, its image and mask relative to the root, and its size in pixels."""

    video_id: str
    frame_id: str
    image_path: str
    width: int
    height: int
    mask_path: str | None = None

    def row(self, polyp_id: str, box: Box, size: Size, **others: str | bool | None) -> dict[str, Any]:
        """One row of the index; `others` are dataset, patient_id, synthetic, and the labels where there are any."""
        sizes = {"size_mm": size.mm, "size_censored": size.censored}
        return {**self._asdict(), "polyp_id": polyp_id, **box._asdict(), **sizes, **others}


@dataclass
class Part:
    """What was read from a chunk: rows of the index, what was dropped or noted, and counts."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    @contextmanager
    def dropping(self, file: str, item: str = "") -> Iterator[None]:
        """Turns a `RefusedError` of the block into an event."""
        try:
            yield
        except RefusedError as error:
            self.events.append(error.event(file, item))

    def fit_box(self, corners: Sequence[str], size: tuple[int, int], file: str, item: str, again: bool = False) -> Box:
        """Returns the box inside a frame of `size`, see `boxes.fit_box`; notes where it was rounded or clipped.

        Raises:
          RefusedError: the box cannot be used, or it is `again` one of the same polyp in the same frame.
        """
        box, notes = fit_box(corners, *size)
        if again:
            raise RefusedError(Reason.DUPLICATE_BOX, f"{tuple(box)} after another")
        self.events += [Event(file, item, note, f"to {tuple(box)}") for note in notes]
        return box


@dataclass(frozen=True)
class Layout(ABC):
    """A dataset on disk, and what is odd about it as a whole; picklable, for it is sent to worker processes."""

    name: str
    root: Path
    verify: Verify
    sizes: PolypSizes
    labels: PolypLabels
    patients: Patients
    synthetic: bool
    events: list[Event]

    @abstractmethod
    def chunks(self) -> Iterator[Chunk]:
        """The files in an order that does not depend on that of the folders, never all of them at once."""

    @abstractmethod
    def read(self, chunk: Chunk) -> Part:
        """Reads one chunk."""

    def count_files(self) -> int:
        """Number of annotation files, without reading them."""
        return sum(len(chunk.files) for chunk in self.chunks())

    def row(self, frame: Frame, polyp_id: str, box: Box, size: Size) -> dict[str, Any]:
        """One row of the index."""
        patient = self.patients.get(frame.video_id, frame.video_id)
        labels: dict[str, Any] = self.labels.of(polyp_id)
        return frame.row(polyp_id, box, size, dataset=self.name, patient_id=patient, synthetic=self.synthetic, **labels)


def check_patients(patients: Patients, videos: Iterable[str]) -> None:
    """Raises ValueError if `patients` has entries and none of them is for one of the videos, under whatever names."""
    known = set(videos)
    if patients and not patients.keys() & known:
        expected = f"some of the videos {sorted(known)[:3]} ..."
        raise ValueError(f"patients: expected {expected}, found {sorted(patients)[:3]} ...")


def list_names(folder: Path) -> list[str]:
    """What is in a folder, shorter names first, so that numbers are in order; none if there is no such folder.

    Files that an operating system added are left out.
    """
    if not folder.is_dir():
        return []
    names = (name for name in os.listdir(folder) if not is_system_file(name))
    return sorted(names, key=lambda name: (len(name), name))


def stamp(path: str) -> str:
    """Size and time of a file, which change when it does; nothing for a broken link, which cannot be read either."""
    try:
        found = os.stat(path)
    except OSError:
        return ""
    return f"{found.st_size} {found.st_mtime_ns}"


def fingerprint(values: Iterable[object]) -> str:
    """A digest of what `str` makes of the values."""
    digest = hashlib.sha256()
    for value in values:
        digest.update(str(value).encode("utf-8", "surrogateescape") + b"\n")
    return digest.hexdigest()


def read_annotation(path: str, limit: int) -> bytes:
    """Reads an annotation file whole.

    Raises:
      RefusedError: the file cannot be read, is no regular file, is empty, or has more than `limit` bytes.
    """
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise RefusedError(Reason.UNREADABLE_FILE, "not a file")
        if not found.st_size:
            raise RefusedError(Reason.EMPTY_FILE, "no bytes")
        if found.st_size > limit:
            raise RefusedError(Reason.LARGE_FILE, f"{found.st_size} bytes; expected at most {limit}")
        with open(path, "rb", buffering=0) as file:
            return file.readall()
    except OSError as error:
        raise RefusedError(Reason.UNREADABLE_FILE, error.strerror or str(error)) from error


def check_root(root: Path) -> Path:
    """The absolute path of a dataset's folder.

    Raises:
      FileNotFoundError: there is no such folder.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder; expected the root of a dataset")
    return root.resolve()


def is_synthetic(root: Path) -> bool:
    """Whether the dataset is made up."""
    return (root / SYNTHETIC).exists()
