"""The SUN colonoscopy video database, which is also the set that Misawa et al. 2021 describe.

As distributed, or with its frames renamed for the code of Roffo et al. 2024:

    ROOT/sundatabase_positive_part{1,2}/case{N}/*_image{digits}.jpg      or ROOT/case{N}/...
    ROOT/renamed/case{N}/image_{number, three digits or more}.jpg
    ROOT/sundatabase_positive_part1/annotation_txt/case{N}.txt           or ROOT/annotation_txt/...
    ROOT/metadata/sun_dataset_labels.csv                                 ID, Size
    a table of the user's own, anywhere                                  case, histology, site

A line is ``FILENAME xmin,ymin,xmax,ymax,class`` with any number of boxes; class 1 is no polyp. SUN publishes sizes,
diagnoses and locations as a table on its site, which the user writes as the CSVs. Folders of negative frames are not
read.

Source: Misawa et al. 2021, "Development of a computer-aided detection system for colonoscopy and a publicly accessible
large colonoscopy video database", Gastrointest. Endosc. 93.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fsg_jax.endoscopy.index.csv_rows import plain_id
from fsg_jax.endoscopy.index.schema import natural_key
from fsg_jax.endoscopy.readers import layout
from fsg_jax.endoscopy.readers.layout import Chunk, Frame, Part, Patients, list_names
from fsg_jax.endoscopy.readers.lesion_labels import PolypLabels, read_own_labels
from fsg_jax.endoscopy.readers.reports import Event, Note, Reason, RefusedError
from fsg_jax.endoscopy.readers.sizes import read_sizes
from fsg_jax.endoscopy.readers.verify import Verify, check_frame

SIZES = "metadata/sun_dataset_labels.csv"
MAX_BYTES = 1 << 20
"""Of an annotation file, which has about 100 bytes a frame; a larger one is dropped."""

_CASE = re.compile(r"(?:case)?(\d+)", re.ASCII | re.I)
_FOLDER = re.compile(r"case(\d+)", re.ASCII | re.I)
_ANNOTATION = re.compile(r"(?i:case)?(\d+)\.txt", re.ASCII)
_IMAGE = re.compile(r"image_?(\d{1,9})\.jpe?g", re.ASCII | re.I)
_COMMA = re.compile(r"\s*,\s*")
_PARTS = "sundatabase_positive_part"


def open_sun(
    root: Path,
    *,
    sizes: Path | None = None,
    labels: Path | None = None,
    name: str = "sun",
    verify: Verify = "decode",
    patients: Patients | None = None,
) -> "Sun":
    """Opens the dataset under `root`, ready to be indexed.

    Args:
      root: the folder that holds the parts or the cases.
      sizes: a CSV with columns ID (case number) and Size; None: `SIZES` under `root`.
      labels: a CSV with columns case, histology and site, see `read_own_labels`; None: they are not known.
      name: the dataset's name in the index.
      verify: what is done with the image of every frame that has a box, see `check_frame`. As SUN notes no frame
        size, the header is read in any case.
      patients: patient of each case, ``1`` or ``case1``; a case that is not there is a patient of its own.

    Raises:
      FileNotFoundError: the folder, the sizes, the labels, or every annotation is missing.
      ValueError: a CSV lacks a column, the labels are not as `read_own_labels` wants them, a case has two annotation
        files, or `patients` has no case of the dataset, or one twice.
    """
    root = layout.check_root(root)
    table = read_sizes(sizes or root / SIZES, "ID", "Size", _case_number)
    parts = [f"{name}/" for name in sorted(list_names(root), key=natural_key) if name.startswith(_PARTS)]
    files = _by_case(root, [f"{parent}annotation_txt/" for parent in (*parts, "")], _ANNOTATION)
    if not files:
        raise FileNotFoundError(f"{root}: expected SUN, found no annotation_txt/case*.txt here or in {_PARTS}*")
    for case, found in files.items():
        if len(found) > 1:
            raise ValueError(f"{root}: expected one annotation file for case {case}, found {found[0]} and {found[1]}")
    annotations = {case: found[0] for case, found in files.items()}
    named = _by_case(root, (*parts, "", "renamed/"), _FOLDER)
    folders = {case: [folder for folder in found if (root / folder).is_dir()] for case, found in named.items()}
    bare = [found[0] for case, found in folders.items() if found and case not in annotations]
    events = table.events + [Event(folder, "", Note.NO_FOLDER, "") for folder in bare]
    numbered = {_case_number(case): patient for case, patient in (patients or {}).items()}
    if len(numbered) < len(patients or {}):
        raise ValueError(f"patients: expected every case once, found {len(patients or {}) - len(numbered)} again")
    layout.check_patients(numbered, files)
    known = read_own_labels(labels, "case", _case_number, annotations) if labels else PolypLabels()
    events += known.events
    return Sun(name, root, verify, table, known, numbered, layout.is_synthetic(root), events, annotations, folders)


@dataclass(frozen=True)
class Sun(layout.Layout):
    """SUN on disk: by case number, the annotation file and the folders of frames, distributed ones first."""

    annotations: Mapping[str, str]
    folders: Mapping[str, list[str]]

    def chunks(self) -> Iterator[Chunk]:
        """One chunk a case."""
        for case, file in self.annotations.items():
            key = layout.fingerprint((layout.stamp(os.path.join(self.root, file)), *self._images(case).values()))
            yield Chunk(f"case{case}", case, (file,), key)

    def read(self, chunk: Chunk) -> Part:
        """Reads the lines of one case, and checks the images of those with a polyp."""
        file, part = chunk.files[0], Part()
        with part.dropping(file):
            data = layout.read_annotation(os.path.join(self.root, file), MAX_BYTES)
            self._read_boxes(parse_lines(data, file, part), chunk, part)
        return part

    def _read_boxes(self, boxes: Mapping[str, Sequence["SunBox"]], chunk: Chunk, part: Part) -> None:
        """Adds rows for the boxes by file name, and notes the images that no line names."""
        case, file, images = chunk.group, chunk.files[0], self._images(chunk.group)
        named: set[str | None] = set()
        kept: set[str] = set()  # a case is one polyp, so a frame gives one row: its first box that can be used
        for name, found in boxes.items():
            lesion = any(box.is_polyp for box in found)
            part.counts["frames with boxes" if lesion else "frames without lesion"] += 1
            number = _frame_number(name)
            image = images.get(name) or images.get(f"image_{number or 0:03d}.jpg")
            named.add(image)
            polyps = [box for box in found if self._has_size(box, chunk, part)]
            if not polyps:
                continue
            with part.dropping(image or f"case{case}/{name}", f"line {polyps[0].line}"):
                frame = self._frame(name, number, image, case, part)
                for box in polyps:
                    item = f"line {box.line}"
                    with part.dropping(file, item):
                        size = frame.width, frame.height
                        fitted = part.fit_box(box.corners, size, file, item, again=frame.image_path in kept)
                        kept.add(frame.image_path)
                        part.rows.append(self.row(frame, case, fitted, self.sizes.size(case)))
        bare = [image for image in images.values() if image not in named]
        part.events += [Event(image, "", Note.NO_ANNOTATION, "") for image in bare]

    def _has_size(self, box: "SunBox", chunk: Chunk, part: Part) -> bool:
        with part.dropping(chunk.files[0], f"line {box.line}"):
            if not box.is_polyp:
                raise RefusedError(Reason.NOT_POLYP, "class 1")
            self.sizes.size(chunk.group)
            return True
        return False

    def _frame(self, name: str, number: int | None, image: str | None, case: str, part: Part) -> Frame:
        if number is None:
            raise RefusedError(Reason.FILE_NAME, "expected a name that ends with image<digits>.jpg")
        if image is None:
            detail = f"neither {name} nor image_{number:03d}.jpg is in a folder of the case"
            raise RefusedError(Reason.MISSING_FRAME, detail)
        part.counts["images"] += 1
        return Frame(case, str(number), image, *check_frame(self.root / image, self.verify))

    def _images(self, case: str) -> dict[str, str]:
        """Path of every image of a case by its file name; of two files of one name the first is kept."""
        images: dict[str, str] = {}
        for folder in self.folders.get(case, ()):
            for name in list_names(self.root / folder):
                if name.lower().endswith((".jpg", ".jpeg")):
                    images.setdefault(name, f"{folder}/{name}")
        return images


class SunBox(NamedTuple):
    """One box: its line, from 1; xmin, ymin, xmax, ymax as written; and whether it shows a polyp."""

    line: int
    corners: tuple[str, ...]
    is_polyp: bool


def parse_lines(data: bytes, file: str, part: Part) -> dict[str, list[SunBox]]:
    """Parses an annotation file: the boxes of each file name, in the order of the lines.

    A line is ``FILENAME xmin,ymin,xmax,ymax,class`` with any number of boxes; a name may come on several lines. Blank
    lines are passed over; lines and boxes that are malformed become events of `part`.
    """
    boxes: dict[str, list[SunBox]] = {}
    for line, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").splitlines(), start=1):
        item = f"line {line}"
        with part.dropping(file, item):
            name, texts = _split(raw)
            for text in texts:
                found = boxes.setdefault(name, [])
                *corners, kind = text.split(",")
                with part.dropping(file, item):
                    if len(corners) != 4 or kind not in ("0", "1"):
                        expected = "expected xmin,ymin,xmax,ymax,class with class 0 or 1"
                        raise RefusedError(Reason.MALFORMED_LINE, f"{expected}, found {text[:80]!r}")
                    found.append(SunBox(line, tuple(corners), kind == "0"))
    return boxes


def _split(raw: bytes) -> tuple[str, list[str]]:
    """File name and boxes of one line; no boxes if it is blank."""
    try:
        tokens = _COMMA.sub(",", raw.decode()).split()
    except UnicodeDecodeError as error:
        raise RefusedError(Reason.MALFORMED_LINE, f"not UTF-8: {raw[:60]!r}") from error
    if not tokens:
        return "", []
    if len(tokens) == 1 or "," in tokens[0]:
        raise RefusedError(Reason.MALFORMED_LINE, f"expected a file name and boxes, found {' '.join(tokens)[:80]!r}")
    if "/" in tokens[0] or "\\" in tokens[0]:
        raise RefusedError(Reason.MALFORMED_LINE, f"expected a file name without folders, found {tokens[0][:80]!r}")
    return tokens[0], tokens[1:]


def _frame_number(name: str) -> int | None:
    match = _IMAGE.search(name)
    return None if match is None else int(match[1])


def _case_number(text: str) -> str:
    match = _CASE.fullmatch(plain_id(text))
    if match is None:
        raise ValueError(f"the ID is {text!r}; expected the number of a case")
    return str(int(match[1]))


def _by_case(root: Path, parents: Sequence[str], pattern: re.Pattern[str]) -> dict[str, list[str]]:
    """What matches `pattern` in the parents, relative to `root`, by the number of the case in natural order."""
    found: dict[str, list[str]] = {}
    for parent in parents:
        for name in list_names(root / parent):
            if match := pattern.fullmatch(name):
                found.setdefault(str(int(match[1])), []).append(f"{parent}{name}")
    return dict(sorted(found.items(), key=lambda pair: natural_key(pair[0])))
