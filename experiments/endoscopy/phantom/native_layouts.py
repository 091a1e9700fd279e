"""Where frames, boxes and sizes lie in REAL-Colon and in SUN as they are distributed.

Paths are relative to the set's root, with forward slashes.
"""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.endoscopy.phantom.phantom_plan import Frame, Video

Corners = tuple[int | str, int | str, int | str, int | str]
"""xmin, ymin, xmax, ymax; words where they are damaged."""

_VIDEOS_A_STUDY = 15
_LESIONS, _UNSIZED = "lesion_info.csv", 9  # the number of a lesion without a size
_LESION_COLUMNS = (
    "unique_object_id",
    "unique_video_name",
    "size [mm]",
    "site",
    "histology_extended",
    "histology_class",
)
_SITES = ("cecum", "ascending", "transverse", "descending", "sigmoid", "rectum")
_VIDEO_COLUMNS = ("unique_video_name", "age", "sex", "endoscope_brand", "fps", "num_frames", "num_lesions", "bbps")
_CASES = "metadata/sun_dataset_labels.csv"
_CENSORED_MM = 15


class ExtraFrame(NamedTuple):
    """A frame beyond the planned ones; `text` is added to the file `annotation`, and `row` to the file `table`."""

    image: str
    annotation: str
    text: str
    table: str
    row: str


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
        return [(_path(video, frame.number, "frames", "jpg"), tuple(box.polyp for box in frame.boxes))]

    def annotate(self, root: Path, videos: Sequence[Video]) -> None:
        """Writes the boxes of all frames and the tables; lesions are numbered from 1 in each video."""
        lesions, rows = [], []
        for video in videos:
            name, n = _name(video), video.number
            (root / f"{name}_annotations").mkdir()
            for frame in video.frames:
                boxes = [(video.polyps.index(box.polyp) + 1, box.corners) for box in frame.boxes]
                (root / _path(video, frame.number, "annotations", "xml")).write_text(_xml(name, frame, boxes))
            for lesion, (polyp, size) in enumerate(zip(video.polyps, video.sizes, strict=True), start=1):
                lesions.append((f"{name}_{lesion}", name, f"{size:g}", _SITES[polyp % 6], "Tubular adenoma", "AD"))
            sex, brand = ("female", "male")[n % 2], ("Olympus", "Fuji")[n % 3 == 2]
            rows.append((name, 50 + 7 * n % 31, sex, brand, 30, len(video.frames), len(video.polyps), 6 + n % 4))
        _write_rows(root / _LESIONS, _LESION_COLUMNS, lesions)
        _write_rows(root / "video_info.csv", _VIDEO_COLUMNS, rows)

    def extra_frame(self, video: Video, number: int, corners: Corners, *, sized: bool) -> ExtraFrame:
        """One more frame of the first lesion or, if not `sized`, of lesion 9, whose size is empty in the table."""
        name = _name(video)
        text = _xml(name, video.frames[-1]._replace(number=number), [(1 if sized else _UNSIZED, corners)])
        row = "" if sized else f"{name}_{_UNSIZED},{name},,rectum,Hyperplastic polyp,HP\n"
        image, annotation = _path(video, number, "frames", "jpg"), _path(video, number, "annotations", "xml")
        return ExtraFrame(image, annotation, text, _LESIONS, row)


def _name(video: Video) -> str:
    return f"{video.number // _VIDEOS_A_STUDY + 1:03d}-{video.number % _VIDEOS_A_STUDY + 1:03d}"


def _path(video: Video, number: int, kind: str, suffix: str) -> str:
    return f"{_name(video)}_{kind}/{_name(video)}_{number}.{suffix}"


def _xml(name: str, frame: Frame, lesions: Sequence[tuple[int, Corners]]) -> str:
    """The annotation of a frame, with the elements in the order of the dataset (xmax before ymin)."""
    objects = "".join(
        f"""  <object>
    <name>lesion</name>
    <unique_id>{name}_{lesion}</unique_id>
    <box_id>{box_id}</box_id>
    <bndbox><xmin>{xmin}</xmin><xmax>{xmax}</xmax><ymin>{ymin}</ymin><ymax>{ymax}</ymax></bndbox>
  </object>
"""
        for box_id, (lesion, (xmin, ymin, xmax, ymax)) in enumerate(lesions, start=1)
    )
    return f"""<annotation>
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


class Sun:
    """SUN (Misawa et al., Gastrointest. Endosc. 93:960, 2021): a folder and a text file a polyp, a table of sizes.

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
        return [(self._image(box.polyp, frame.number), (box.polyp,)) for box in frame.boxes]

    def annotate(self, root: Path, videos: Sequence[Video]) -> None:
        """Writes the boxes of all frames and the table of sizes."""
        rows = []
        for video in videos:
            for polyp, size in zip(video.polyps, video.sizes, strict=True):
                censored = self._censor and size >= _CENSORED_MM
                rows.append((polyp + 1, f"{_CENSORED_MM}mm-" if censored else f"{size:g}mm"))
                boxes = [(f.number, box.corners) for f in video.frames for box in f.boxes if box.polyp == polyp]
                path = root / _case_file(polyp)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("".join(_case_line(polyp, number, corners) for number, corners in boxes))
        _write_rows(root / _CASES, ("ID", "Size"), rows)

    def extra_frame(self, video: Video, number: int, corners: Corners, *, sized: bool) -> ExtraFrame:
        """One more frame of the first case or, if not `sized`, of a case whose size is empty in the table."""
        polyp = video.polyps[0] if sized else self._polyps + video.number
        row = "" if sized else f"{polyp + 1},\n"
        image = self._image(polyp, number)
        return ExtraFrame(image, _case_file(polyp), _case_line(polyp, number, corners), _CASES, row)

    def _image(self, polyp: int, number: int) -> str:
        part = 1 if polyp < (self._polyps + 1) // 2 else 2
        return f"sundatabase_positive_part{part}/case{polyp + 1}/{_file_name(polyp, number)}"


def _file_name(polyp: int, number: int) -> str:
    """A name in the form of the dataset's."""
    return f"case_M_20180101000000_0U00000000000000_1_{polyp + 1:03d}_001-1_a2_ayy_image{number:04d}.jpg"


def _case_file(polyp: int) -> str:
    return f"sundatabase_positive_part1/annotation_txt/case{polyp + 1}.txt"


def _case_line(polyp: int, number: int, corners: Corners) -> str:
    """File name, corners and class, which is 0 for a polyp."""
    return f"{_file_name(polyp, number)} {','.join(map(str, corners))},0\n"


Layout = RealColon | Sun
"""How a dataset lies on disk."""


def _write_rows(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
