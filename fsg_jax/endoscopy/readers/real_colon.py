"""REAL-Colon as distributed: a folder of frames and one of XML annotations for every video.

    ROOT/{video}_frames/{video}_{t}.jpg
    ROOT/{video}_annotations/{video}_{t}.xml      (or {video}_annotation)
    ROOT/lesion_info.csv                          unique_object_id, size [mm], histology_class, site, ...
    ROOT/video_info.csv                           unique_video_name, num_frames, ... (may be absent)

Source: Biffi et al. 2024, "REAL-Colon: A dataset for developing real-world AI applications in colonoscopy",
Sci. Data 11.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fsg_jax.endoscopy.index.csv_rows import plain_id, read_rows
from fsg_jax.endoscopy.index.schema import natural_key
from fsg_jax.endoscopy.readers import layout
from fsg_jax.endoscopy.readers.boxes import Box
from fsg_jax.endoscopy.readers.layout import Chunk, Frame, Part, Patients, list_names
from fsg_jax.endoscopy.readers.lesion_labels import read_published_labels
from fsg_jax.endoscopy.readers.reports import Event, Note, Reason, RefusedError
from fsg_jax.endoscopy.readers.sizes import Size, read_sizes
from fsg_jax.endoscopy.readers.verify import Verify, check_frame
from fsg_jax.endoscopy.readers.voc import Annotation, parse_annotation

FILES_PER_CHUNK = 4096
MAX_BYTES = 1 << 20
"""Of an annotation file; a larger one is dropped."""

_ANNOTATIONS = re.compile(r"(.+)_annotations?")


def open_real_colon(
    root: Path, *, name: str = "real_colon", verify: Verify = "decode", patients: Patients | None = None
) -> "RealColon":
    """Opens the dataset under `root`, ready to be indexed.

    A polyp whose histology or site is not in lesion_info.csv, or not one that is known, has none, which is noted.

    Args:
      root: the folder that holds the folders of the videos.
      name: the dataset's name in the index.
      verify: what is done with the image of every frame that has a box, see `check_frame`; with ``"none"`` images are
        not looked at, not even whether they exist.
      patients: patient of each video; a video that is not there is a patient of its own.

    Raises:
      FileNotFoundError: the folder, its lesion_info.csv, or every folder of annotations is missing.
      ValueError: a CSV lacks a column, a video is twice in video_info.csv or has two folders of annotations, or
        `patients` has none of the videos.
    """
    root = layout.check_root(root)
    lesions = root / "lesion_info.csv"
    sizes = read_sizes(lesions, "unique_object_id", "size [mm]")
    labels = read_published_labels(lesions, "unique_object_id", {"histology": "histology_class", "site": "site"})
    videos = _find_videos(root)
    info = root / "video_info.csv"
    num_frames: dict[str, str] = {}
    for line, row in read_rows(info, ("unique_video_name", "num_frames")) if info.exists() else ():
        if (video := plain_id(row["unique_video_name"])) in num_frames:
            raise ValueError(f"{info}, line {line}: expected every video once, found {video!r} again")
        num_frames |= {video: plain_id(row["num_frames"])} if video else {}
    shown = {name.removesuffix("_frames") for name in list_names(root) if name.endswith("_frames")}
    bare = sorted((shown | num_frames.keys()) - videos.keys(), key=natural_key)
    events = sizes.events + labels.events + [Event(f"{video}_annotations", "", Note.NO_FOLDER, "") for video in bare]
    synthetic = layout.is_synthetic(root)
    layout.check_patients(patients or {}, videos)
    return RealColon(name, root, verify, sizes, labels, patients or {}, synthetic, events, videos, num_frames)


@dataclass(frozen=True)
class RealColon(layout.Layout):
    """REAL-Colon on disk: the folder of annotations of each video, and the numbers of frames in video_info.csv."""

    videos: Mapping[str, str]
    num_frames: Mapping[str, str]

    def count_files(self) -> int:
        """Number of files in the folders of annotations."""
        return sum(len(list_names(self.root / folder)) for folder in self.videos.values())

    def chunks(self) -> Iterator[Chunk]:
        """The annotations of each video in chunks, and one chunk without files that compares its two folders."""
        for video, folder in self.videos.items():
            names = list_names(self.root / folder)
            for number, start in enumerate(range(0, len(names), FILES_PER_CHUNK)):
                some = tuple(names[start : start + FILES_PER_CHUNK])
                stamps = (f"{name} {layout.stamp(os.path.join(self.root, folder, name))}" for name in some)
                yield Chunk(f"{video}.{number:05d}", video, some, layout.fingerprint(stamps))
            if self.verify != "none":
                compared = (*names, "frames:", *list_names(self.root / f"{video}_frames"))
                yield Chunk(f"{video}.frames", video, (), layout.fingerprint(compared))

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
        return part

    def _read_file(self, file: str, video: str, part: Part) -> None:
        frame_id = _frame_id(file, video)
        annotation = parse_annotation(layout.read_annotation(os.path.join(self.root, file), MAX_BYTES))
        image = f"{video}_frames/{video}_{frame_id}.jpg"
        if not annotation.objects:
            part.counts["frames without lesion"] += 1
            if self.verify != "none" and not os.path.exists(os.path.join(self.root, image)):
                part.events.append(Event(file, "", Note.NO_FRAME, f"{image} does not exist"))
            return
        part.counts["frames with boxes"] += 1
        frame = Frame(video, frame_id, image, annotation.width, annotation.height)
        if boxes := self._boxes(annotation, file, frame, part):
            with part.dropping(image):
                self._check_image(frame, part)
                part.rows += [self.row(frame, polyp, *box) for polyp, box in boxes.items()]

    def _boxes(self, annotation: Annotation, file: str, frame: Frame, part: Part) -> dict[str, tuple[Box, Size]]:
        """Box and size of every polyp of the frame; of two boxes of one polyp the first is kept."""
        boxes: dict[str, tuple[Box, Size]] = {}
        for found in annotation.objects:
            polyp = found.unique_id
            with part.dropping(file, polyp):
                if not polyp:
                    raise RefusedError(Reason.NO_ID, "the object cannot be matched with a lesion")
                if not polyp.startswith(f"{frame.video_id}_"):
                    raise RefusedError(Reason.OTHER_VIDEO, f"{polyp!r} in the folder of {frame.video_id!r}")
                size = self.sizes.size(polyp)
                extent = frame.width, frame.height
                boxes[polyp] = part.fit_box(found.corners, extent, file, polyp, again=polyp in boxes), size
        return boxes

    def _check_image(self, frame: Frame, part: Part) -> None:
        if self.verify == "none":
            return
        part.counts["images"] += 1
        size = check_frame(self.root / frame.image_path, self.verify)
        if size != (frame.width, frame.height):
            detail = f"{size[0]}x{size[1]}; its XML says {frame.width}x{frame.height}"
            raise RefusedError(Reason.OTHER_FRAME_SIZE, detail)

    def _compare_folders(self, video: str) -> list[Event]:
        """Frames without an annotation, and a number of frames other than that of video_info.csv."""
        folder = f"{video}_frames"
        frames = [name for name in list_names(self.root / folder) if name.endswith(".jpg")]
        annotated = {name.rsplit(".", 1)[0] for name in list_names(self.root / self.videos[video])}
        bare = [name for name in frames if name.removesuffix(".jpg") not in annotated]
        events = [Event(f"{folder}/{name}", "", Note.NO_ANNOTATION, "") for name in bare]
        expected = self.num_frames.get(video) or str(len(frames))
        if expected != str(len(frames)):
            events.append(Event(folder, "", Note.FRAME_COUNT, f"{len(frames)} found, {expected} expected"))
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
    for name in sorted(list_names(root), key=natural_key):
        match = _ANNOTATIONS.fullmatch(name)
        if match is None or not (root / name).is_dir():
            continue
        if not name.isprintable():
            raise ValueError(f"{root}: expected folder names that are printable text, found {name!r}")
        if match[1] in videos:
            raise ValueError(f"{root}: expected one folder of annotations a video, found {videos[match[1]]} and {name}")
        videos[match[1]] = name
    if not videos:
        raise FileNotFoundError(f"{root}: expected REAL-Colon as distributed, found no folder named *_annotations")
    return videos
