"""The SUN colonoscopy video database, which is also the set that Misawa et al. 2021 describe.

As distributed, or with its frames renamed for the code of Roffo et al. 2024:

    ROOT/sundatabase_positive_part{1,2}/case{N}/*_image{digits}.jpg      or ROOT/case{N}/...
    ROOT/renamed/case{N}/image_{number, three digits or more}.jpg
    ROOT/sundatabase_positive_part1/annotation_txt/case{N}.txt           or ROOT/annotation_txt/...
    ROOT/metadata/sun_dataset_labels.csv                                 ID, Size

A line is ``FILENAME xmin,ymin,xmax,ymax,class`` with any number of boxes; class 1 is no polyp. SUN publishes the sizes
as a table on its site, which the user writes as the CSV. Folders of negative frames are not read.

Source: Misawa et al. 2021, "Development of a computer-aided detection system for colonoscopy and a publicly accessible
large colonoscopy video database", Gastrointest. Endosc. 93.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fsg_jax.endoscopy.index.schema import natural_key
from fsg_jax.endoscopy.readers.layout import (
    Chunk,
    Layout,
    Part,
    check_root,
    fingerprint,
    is_synthetic,
    list_names,
    read_bytes,
)
from fsg_jax.endoscopy.readers.reasons import Event, Reason, RefusedError
from fsg_jax.endoscopy.readers.sizes import read_sizes
from fsg_jax.endoscopy.readers.sun_case import CaseReader
from fsg_jax.endoscopy.readers.sun_lines import parse_lines
from fsg_jax.endoscopy.readers.verify import Verify

SIZES = "metadata/sun_dataset_labels.csv"
MAX_BYTES = 64 << 20
_CASE = re.compile(r"(?:case)?(\d+)", re.ASCII | re.I)
_PARTS = "sundatabase_positive_part"


def open_sun(
    root: Path,
    *,
    sizes: Path | None = None,
    name: str = "sun",
    verify: Verify = "decode",
    patients: Mapping[str, str] | None = None,
) -> "Sun":
    """The dataset under `root`, ready to be indexed.

    Args:
      root: the folder that holds the parts or the cases.
      sizes: a CSV with columns ID (case number) and Size; None: `SIZES` under `root`.
      name: the dataset's name in the index.
      verify: what is done with the image of every frame that has a box, see `check_frame`. As SUN notes no frame
        size, the header is read in any case.
      patients: patient of each case by its number as text; a case that is not there is a patient of its own.

    Raises:
      FileNotFoundError: the folder, the sizes, or every annotation is missing.
      ValueError: the CSV lacks a column, or a case has two annotation files.
    """
    root = check_root(root)
    sizes = sizes or root / SIZES
    if not sizes.is_file():
        raise FileNotFoundError(f"{sizes}: no such file; expected the sizes of SUN as a CSV with columns ID, Size")
    table = read_sizes(sizes, "ID", "Size", _case_number)
    annotations, folders = _find_annotations(root), _find_folders(root)
    return Sun(name, root, verify, table, patients or {}, is_synthetic(root), annotations, folders)


@dataclass(frozen=True)
class Sun(Layout):
    """SUN on disk: by case number, the annotation file and the folders of frames, distributed ones first."""

    annotations: Mapping[str, str]
    folders: Mapping[str, tuple[str, ...]]

    def events(self) -> list[Event]:
        """Also the cases that have frames but no annotations."""
        missing = sorted(self.folders.keys() - self.annotations.keys(), key=natural_key)
        return super().events() + [Event(self.folders[case][0], "", Reason.NO_FOLDER, "") for case in missing]

    def count_files(self) -> int:
        """Number of annotation files."""
        return len(self.annotations)

    def chunks(self) -> Iterator[Chunk]:
        """One chunk a case."""
        for case, file in self.annotations.items():
            stat = os.stat(self.root / file)
            key = fingerprint((stat.st_size, stat.st_mtime_ns, *self._images(case).values()))
            yield Chunk(f"case{case}", case, (file,), key)

    def read(self, chunk: Chunk) -> Part:
        """Reads the lines of one case, and checks the images of those with a polyp."""
        file = chunk.files[0]
        reader = CaseReader(self, chunk.group, file, self._images(chunk.group))
        part = reader.part
        part.counts["files"] += 1
        try:
            boxes, malformed = parse_lines(self._bytes(file))
        except RefusedError as error:
            part.events.append(error.event(file))
            return part
        part.events += [error.event(file, f"line {line}") for line, error in malformed]
        reader.read(boxes)
        return part

    def _bytes(self, file: str) -> bytes:
        try:
            data = read_bytes(os.path.join(self.root, file), MAX_BYTES + 1)
        except OSError as error:
            raise RefusedError(Reason.UNREADABLE_FILE, error.strerror or str(error)) from error
        if not data:
            raise RefusedError(Reason.EMPTY_FILE, "no bytes")
        if len(data) > MAX_BYTES:
            raise RefusedError(Reason.LARGE_FILE, f"more than {MAX_BYTES} bytes")
        return data

    def _images(self, case: str) -> dict[str, str]:
        """Path of every image of a case by its file name; of two files of one name the first is kept."""
        images: dict[str, str] = {}
        for folder in self.folders.get(case, ()):
            for name in list_names(self.root / folder):
                if name.lower().endswith((".jpg", ".jpeg")):
                    images.setdefault(name, f"{folder}/{name}")
        return images


def _case_number(text: str) -> str:
    match = _CASE.fullmatch(text)
    if match is None:
        raise ValueError(f"the ID is {text!r}; expected the number of a case")
    return str(int(match[1]))


def _part_folders(root: Path) -> list[str]:
    """The folders that may hold cases and annotations, relative to `root`."""
    parts = [name for name in sorted(os.listdir(root), key=natural_key) if name.startswith(_PARTS)]
    return [*(f"{name}/" for name in parts if (root / name).is_dir()), ""]


def _find_annotations(root: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for folder in _part_folders(root):
        for name in list_names(root / folder / "annotation_txt"):
            if not name.endswith(".txt") or _CASE.fullmatch(name.removesuffix(".txt")) is None:
                continue
            case, file = _case_number(name.removesuffix(".txt")), f"{folder}annotation_txt/{name}"
            if case in found:
                raise ValueError(f"{root}: case {case} has two annotation files, {found[case]} and {file}")
            found[case] = file
    if not found:
        raise FileNotFoundError(f"{root}: no annotation_txt/case*.txt, neither here nor under {_PARTS}*; expected SUN")
    return dict(sorted(found.items(), key=lambda pair: natural_key(pair[0])))


def _find_folders(root: Path) -> dict[str, tuple[str, ...]]:
    folders: dict[str, tuple[str, ...]] = {}
    for parent in (*_part_folders(root), "renamed/"):
        for name in list_names(root / parent):
            if name.lower().startswith("case") and _CASE.fullmatch(name) and (root / parent / name).is_dir():
                case = _case_number(name)
                folders[case] = (*folders.get(case, ()), f"{parent}{name}")
    return folders
