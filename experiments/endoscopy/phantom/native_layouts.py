"""Where frames, boxes, sizes and labels lie in REAL-Colon and in SUN as they are distributed.

SUN comes without a file of labels: theirs are in a table like that of a user, `SUN_LABELS`. Every third polyp has its
site in another spelling, as in REAL-Colon, which a reader must map.

Paths are relative to the set's root, with forward slashes.
"""

import csv
from collections.abc import Iterable
from pathlib import Path

from experiments.endoscopy.phantom.phantom_plan import Frame, Video

_VIDEOS_A_STUDY = 15
_LESIONS, _UNSIZED = "lesion_info.csv", 9  # the number of a lesion without a size
_LESION_HEADER = ("unique_object_id", "unique_video_name", "size [mm]", "site", "histology_extended", "histology_class")
_VIDEO_HEADER = ("unique_video_name", "age", "sex", "endoscope_brand", "fps", "num_frames", "num_lesions", "bbps")
_SPELLINGS = {"cecum": "caecum", "transverse": "trasnverse", "sigmoid": "Sigmoid colon"}
_EXTENDED = {
    "AD": "Tubular adenoma",
    "HP": "Hyperplastic polyp",
    "SSL": "Sessile serrated lesion",
    "TSA": "Traditional serrated adenoma",
    "OTHER": "Inflammatory polyp",
    "NO POLYP": "Normal mucosa",
}
SUN_LABELS = "metadata/sun_histology_and_site.csv"
"""What ``experiments.index sun --labels`` reads."""
_CASES, _BOXES = "metadata/sun_dataset_labels.csv", "sundatabase_positive_part1/annotation_txt"
_CENSORED_MM = 15


class RealColon:
    """REAL-Colon (Biffi et al., Scientific Data 11:539, 2024): one XML file a frame, two tables.

    ``SSS-VVV_frames``, ``SSS-VVV_annotations``, ``lesion_info.csv`` and ``video_info.csv``.
    """

    dataset = "real_colon"
    """Name of the folder of its depth maps."""
    has_empty_frames = True
    """Whether frames without a polyp belong to it."""

    def images(self, video: Video, frame: Frame) -> list[tuple[str, tuple[int, ...]]]:
        """Every place that a frame is written to, with the polyps that are annotated there: one, with all polyps."""
        return [(self._path(video, frame, "frames", "jpg"), tuple(box.polyp for box in frame.boxes))]

    def annotations(self, video: Video, frame: Frame) -> list[tuple[str, str]]:
        """File and text: one XML file, with the elements in the order of the dataset (xmax before ymin)."""
        name, objects = _name(video), ""
        for box_id, box in enumerate(frame.boxes, start=1):
            lesion = video.polyps.index(box.polyp) + 1 if box.polyp in video.polyps else _UNSIZED
            xmin, ymin, xmax, ymax = box.corners
            objects += f"""  <object>
    <name>lesion</name>
    <unique_id>{name}_{lesion}</unique_id>
    <box_id>{box_id}</box_id>
    <bndbox><xmin>{xmin}</xmin><xmax>{xmax}</xmax><ymin>{ymin}</ymin><ymax>{ymax}</ymax></bndbox>
  </object>
"""
        text = f"""<annotation>
  <version_fmt>1.0</version_fmt>
  <folder>{name}_frames</folder>
  <filename>{name}_{frame.number}.jpg</filename>
  <source>
    <database>synthetic phantom in the layout of REAL-Colon</database>
    <release>phantom_v1</release>
  </source>
  <size><width>{frame.width}</width><height>{frame.height}</height><depth>3</depth></size>
{objects}</annotation>
"""
        return [(self._path(video, frame, "annotations", "xml"), text)]

    def tables(self, videos: Iterable[Video]) -> dict[str, list[tuple[object, ...]]]:
        """Header and rows of each table; lesions are numbered from 1 in each video."""
        lesions: list[tuple[object, ...]] = [_LESION_HEADER]
        rows: list[tuple[object, ...]] = [_VIDEO_HEADER]
        for video in videos:
            name, n = _name(video), video.number
            for lesion, size in enumerate(video.sizes, start=1):
                histology, site = _written(video, lesion - 1)
                extended = _EXTENDED.get(histology, "")
                lesions.append((f"{name}_{lesion}", name, f"{size:g}", site, extended, histology))
            sex, brand = ("female", "male")[n % 2], ("Olympus", "Fuji")[n % 3 == 2]
            rows.append((name, 50 + 7 * n % 31, sex, brand, 30, len(video.frames), len(video.polyps), 6 + n % 4))
        return {_LESIONS: lesions, "video_info.csv": rows}

    def unsized(self, video: Video) -> tuple[int, str, str]:
        """A polyp without a size: a number of no other polyp, the table of sizes and its row there, as lesion 9."""
        return -1, _LESIONS, f"{_name(video)}_{_UNSIZED},{_name(video)},,rectum,Hyperplastic polyp,HP\n"

    def _path(self, video: Video, frame: Frame, kind: str, suffix: str) -> str:
        return f"{_name(video)}_{kind}/{_name(video)}_{frame.number}.{suffix}"


def _written(video: Video, place: int) -> tuple[str, str]:
    """Histology and site of one of its polyps as they are in a table."""
    lesion = video.lesions[place]
    variant = _SPELLINGS.get(lesion.written_site) if video.polyps[place] % 3 == 2 else None
    return lesion.written_histology or "", variant or lesion.written_site


def _name(video: Video) -> str:
    return f"{video.number // _VIDEOS_A_STUDY + 1:03d}-{video.number % _VIDEOS_A_STUDY + 1:03d}"


class Sun:
    """SUN (Misawa et al., Gastrointest. Endosc. 93:960, 2021): a folder and a text file a polyp, two tables.

    ``sundatabase_positive_part{1,2}/case{N}`` with the boxes of both halves in part 1. A frame with two polyps lies in
    the folders of both cases. With `censor`, sizes of 15 mm or more are written as ``15mm-``.
    """

    dataset = "sun"
    """Name of the folder of its depth maps."""
    has_empty_frames = False
    """Whether frames without a polyp belong to it."""

    def __init__(self, polyps: int, *, censor: bool) -> None:
        self._polyps, self._censor = polyps, censor

    def images(self, video: Video, frame: Frame) -> list[tuple[str, tuple[int, ...]]]:
        """Every place that a frame is written to, with the polyps that are annotated there: one for each polyp."""
        return [(f"{self._folder(box.polyp)}/{_file_name(box.polyp, frame)}", (box.polyp,)) for box in frame.boxes]

    def annotations(self, video: Video, frame: Frame) -> list[tuple[str, str]]:
        """File and text: a line for each polyp, with file name, corners and class, which is 0 for a polyp."""
        lines = [f"{_file_name(box.polyp, frame)} {','.join(map(str, box.corners))},0\n" for box in frame.boxes]
        return [(f"{_BOXES}/case{box.polyp + 1}.txt", line) for box, line in zip(frame.boxes, lines, strict=True)]

    def tables(self, videos: Iterable[Video]) -> dict[str, list[tuple[object, ...]]]:
        """Header and rows of each table: the sizes, and the labels."""
        rows: list[tuple[object, ...]] = [("ID", "Size")]
        labels: list[tuple[object, ...]] = [("case", "histology", "site")]
        for video in videos:
            for place, (polyp, size) in enumerate(zip(video.polyps, video.sizes, strict=True)):
                censored = self._censor and size >= _CENSORED_MM
                rows.append((polyp + 1, f"{_CENSORED_MM}mm-" if censored else f"{size:g}mm"))
                labels.append((polyp + 1, *_written(video, place)))
        return {_CASES: rows, SUN_LABELS: labels}

    def unsized(self, video: Video) -> tuple[int, str, str]:
        """A polyp without a size: a number of no other polyp, the table of sizes and its row there."""
        return self._polyps + video.number, _CASES, f"{self._polyps + video.number + 1},\n"

    def _folder(self, polyp: int) -> str:
        return f"sundatabase_positive_part{1 if polyp < (self._polyps + 1) // 2 else 2}/case{polyp + 1}"


def _file_name(polyp: int, frame: Frame) -> str:
    """A name in the form of the dataset's."""
    return f"case_M_20180101000000_0U00000000000000_1_{polyp + 1:03d}_001-1_a2_ayy_image{frame.number:04d}.jpg"


Layout = RealColon | Sun
"""How a dataset lies on disk."""


def annotate(root: Path, layout: Layout, videos: Iterable[Video]) -> None:
    """Writes the boxes of all frames and the tables."""
    for video in videos:
        for frame in video.frames:
            for name, text in layout.annotations(video, frame):
                append_text(root / name, text)
    for name, rows in layout.tables(videos).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        with (root / name).open("w", newline="") as file:
            csv.writer(file).writerows(rows)


def append_text(path: Path, text: str) -> None:
    """Adds `text` to a file, which may be new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(text)
