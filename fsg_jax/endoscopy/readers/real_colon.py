"""REAL-Colon as distributed: a folder of frames and one of XML annotations for every video.

    ROOT/{video}_frames/{video}_{t}.jpg
    ROOT/{video}_annotations/{video}_{t}.xml      (or {video}_annotation)
    ROOT/lesion_info.csv                          unique_object_id, size [mm], ...
    ROOT/video_info.csv                           unique_video_name, num_frames, ... (may be absent)

Source: Biffi et al. 2024, "REAL-Colon: A dataset for developing real-world AI applications in colonoscopy",
Sci. Data 11.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fsg_jax.endoscopy.index.schema import natural_key
from fsg_jax.endoscopy.readers.boxes import FittedBox, fit_box
from fsg_jax.endoscopy.readers.csv_files import read_rows
from fsg_jax.endoscopy.readers.layout import (
    Chunk,
    Frame,
    Layout,
    Part,
    check_root,
    fingerprint,
    is_synthetic,
    list_files,
    list_names,
    read_bytes,
)
from fsg_jax.endoscopy.readers.reasons import Event, Reason, RefusedError
from fsg_jax.endoscopy.readers.sizes import Size, read_sizes
from fsg_jax.endoscopy.readers.verify import Verify, check_frame
from fsg_jax.endoscopy.readers.voc import MAX_BYTES, Annotation, VocObject, parse_annotation

FILES_PER_CHUNK = 4096
_ANNOTATIONS = re.compile(r"(.+)_annotations?")
_FRAMES = "{}_frames"


def open_real_colon(
    root: Path, *, name: str = "real_colon", verify: Verify = "decode", patients: Mapping[str, str] | None = None
) -> "RealColon":
    """The dataset under `root`, ready to be indexed.

    Args:
      root: the folder that holds the folders of the videos.
      name: the dataset's name in the index.
      verify: what is done with the image of every frame that has a box, see `check_frame`; with ``"none"`` images are
        not looked at, not even whether they exist.
      patients: patient of each video; a video that is not there is a patient of its own.

    Raises:
      FileNotFoundError: the folder, its lesion_info.csv, or every folder of annotations is missing.
      ValueError: a CSV lacks a column, or a video has two folders of annotations.
    """
    root = check_root(root)
    sizes = read_sizes(root / "lesion_info.csv", "unique_object_id", "size [mm]")
    videos = _find_videos(root)
    frames = _read_video_info(root / "video_info.csv")
    return RealColon(name, root, verify, sizes, patients or {}, is_synthetic(root), videos, frames)


@dataclass(frozen=True)
class RealColon(Layout):
    """REAL-Colon on disk: the folder of annotations of each video, and the numbers of frames in video_info.csv."""

    videos: Mapping[str, str]
    num_frames: Mapping[str, str]

    def events(self) -> list[Event]:
        """Also the videos that have a row in video_info.csv, or a folder of frames, but no annotations."""
        frames = {name.removesuffix("_frames") for name in list_names(self.root) if name.endswith("_frames")}
        missing = sorted((frames | self.num_frames.keys()) - self.videos.keys(), key=natural_key)
        return super().events() + [Event(f"{video}_annotations", "", Reason.NO_FOLDER, "") for video in missing]

    def count_files(self) -> int:
        """Number of files in the folders of annotations."""
        total = 0
        for folder in self.videos.values():
            with os.scandir(self.root / folder) as entries:
                total += sum(1 for _ in entries)
        return total

    def chunks(self) -> Iterator[Chunk]:
        """The annotations of each video in chunks, and one chunk without files that compares its two folders."""
        for video, folder in self.videos.items():
            files = list_files(self.root / folder)
            for start in range(0, len(files), FILES_PER_CHUNK):
                some = files[start : start + FILES_PER_CHUNK]
                number = start // FILES_PER_CHUNK
                yield Chunk(f"{video}.{number:05d}", video, tuple(file.name for file in some), fingerprint(some))
            if self.verify != "none":
                names = (*(file.name for file in files), "frames:", *list_names(self.root / _FRAMES.format(video)))
                yield Chunk(f"{video}.frames", video, (), fingerprint(names))

    def read(self, chunk: Chunk) -> Part:
        """Reads the annotations of the chunk, and checks the images of those with a polyp."""
        part = Part()
        if chunk.name.endswith(".frames"):
            part.events += self._compare_folders(chunk.group)
        for name in chunk.files:
            file = f"{self.videos[chunk.group]}/{name}"
            try:
                self._read_file(file, chunk.group, part)
            except RefusedError as error:
                part.events.append(error.event(file))
            except OSError as error:
                part.events.append(Event(file, "", Reason.UNREADABLE_FILE, error.strerror or str(error)))
        part.counts["files"] += len(chunk.files)
        return part

    def _read_file(self, file: str, video: str, part: Part) -> None:
        frame_id = _frame_id(file, video)
        annotation = parse_annotation(read_bytes(os.path.join(self.root, file), MAX_BYTES + 1))
        image = f"{video}_frames/{video}_{frame_id}.jpg"
        frame = Frame(video, frame_id, image, annotation.width, annotation.height)
        part.counts["frames with boxes" if annotation.objects else "frames without lesion"] += 1
        if annotation.objects:
            boxes = self._boxes(annotation, file, frame, part)
            if boxes and self._usable(frame, part):
                part.rows += [self.row(frame, polyp, *box) for polyp, box in boxes.items()]
        elif self.verify != "none" and not os.path.exists(os.path.join(self.root, image)):
            part.events.append(Event(file, "", Reason.NO_FRAME, f"{image} does not exist"))

    def _boxes(self, annotation: Annotation, file: str, frame: Frame, part: Part) -> dict[str, tuple[FittedBox, Size]]:
        """Box and size of every polyp of the frame; of two boxes of one polyp the first is kept."""
        boxes: dict[str, tuple[FittedBox, Size]] = {}
        for found in annotation.objects:
            try:
                size = self._size(found, frame.video_id)
                fitted = fit_box(found.corners, frame.width, frame.height)
                if found.unique_id in boxes:
                    raise RefusedError(Reason.DUPLICATE_BOX, f"{tuple(fitted.box)} after another")
            except RefusedError as error:
                part.events.append(error.event(file, found.unique_id))
                continue
            part.note_box(fitted, file, found.unique_id)
            boxes[found.unique_id] = fitted, size
        return boxes

    def _size(self, found: VocObject, video: str) -> Size:
        if not found.unique_id:
            raise RefusedError(Reason.NO_ID, "the object cannot be matched with a lesion")
        if not found.unique_id.startswith(f"{video}_"):
            raise RefusedError(Reason.OTHER_VIDEO, f"{found.unique_id!r} in the folder of {video!r}")
        return self.sizes.size(found.unique_id)

    def _usable(self, frame: Frame, part: Part) -> bool:
        if self.verify == "none":
            return True
        part.counts["images"] += 1
        try:
            size = check_frame(self.root / frame.image_path, self.verify)
            if size != (frame.width, frame.height):
                detail = f"{size[0]}x{size[1]}; its XML says {frame.width}x{frame.height}"
                raise RefusedError(Reason.OTHER_FRAME_SIZE, detail)
        except RefusedError as error:
            part.events.append(error.event(frame.image_path))
            return False
        return True

    def _compare_folders(self, video: str) -> list[Event]:
        """Frames without an annotation, and a number of frames other than that of video_info.csv."""
        folder = _FRAMES.format(video)
        frames = [name for name in list_names(self.root / folder) if name.endswith(".jpg")]
        annotated = {name.rsplit(".", 1)[0] for name in list_names(self.root / self.videos[video])}
        bare = [name for name in frames if name.removesuffix(".jpg") not in annotated]
        events = [Event(f"{folder}/{name}", "", Reason.NO_ANNOTATION, "") for name in bare]
        expected = self.num_frames.get(video, str(len(frames)))
        if expected != str(len(frames)):
            events.append(Event(folder, "", Reason.FRAME_COUNT, f"{len(frames)} found, {expected} expected"))
        return events


def _frame_id(file: str, video: str) -> str:
    """The text after the last ``_`` of ``{video}_{t}.xml``."""
    stem, _, suffix = os.path.basename(file).rpartition(".")
    prefix, _, frame_id = stem.rpartition("_")
    if suffix != "xml" or prefix != video or not (frame_id.isascii() and frame_id.isalnum()):
        raise RefusedError(Reason.FILE_NAME, f"expected {video}_<frame>.xml")
    return frame_id


def _find_videos(root: Path) -> dict[str, str]:
    videos: dict[str, str] = {}
    for name in sorted(os.listdir(root), key=natural_key):
        match = _ANNOTATIONS.fullmatch(name)
        if match is None or not (root / name).is_dir():
            continue
        if not name.isprintable():
            raise ValueError(f"{root}: the folder name {name!r} is not valid text")
        if match[1] in videos:
            raise ValueError(f"{root}: both {videos[match[1]]} and {name} are there; expected one of them")
        videos[match[1]] = name
    if not videos:
        raise FileNotFoundError(f"{root}: no folder is named *_annotations; expected REAL-Colon as distributed")
    return videos


def _read_video_info(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    rows = read_rows(path, ("unique_video_name", "num_frames"))
    return {row["unique_video_name"]: row["num_frames"] for _, row in rows}
