"""REAL-Colon as it is distributed (Biffi et al., Scientific Data 11:539, 2024): one XML file a frame, two tables."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from experiments.endoscopy.phantom.layouts import Corners, ExtraFrame, write_rows
from experiments.endoscopy.phantom.records import FrameRecord, VideoPlan, VideoRecord

_VIDEOS_A_STUDY = 15
_LESION_COLUMNS = (
    "unique_object_id",
    "unique_video_name",
    "size [mm]",
    "site",
    "histology_extended",
    "histology_class",
)
_VIDEO_COLUMNS = (
    "unique_video_name",
    "age",
    "sex",
    "endoscope_brand",
    "fps",
    "num_frames",
    "num_lesions",
    "bbps",
)
_LESIONS = "lesion_info.csv"
_UNSIZED = 9  # number of a lesion without a size


@dataclass(frozen=True)
class RealColon:
    """``SSS-VVV_frames``, ``SSS-VVV_annotations``, ``lesion_info.csv`` and ``video_info.csv``."""

    dataset: str = "real_colon"
    has_empty_frames: bool = True

    def images(self, video: VideoPlan | VideoRecord, frame: FrameRecord) -> list[tuple[str, tuple[int, ...]]]:
        """The one place of a frame, with all polyps in it."""
        return [(_image(video.number, frame.number), tuple(box.polyp for box in frame.boxes))]

    def annotate(self, root: Path, videos: Sequence[VideoRecord]) -> None:
        """Writes an XML file a frame and both tables."""
        for video in videos:
            (root / f"{_name(video.number)}_annotations").mkdir()
            for frame in video.frames:
                lesions = [
                    (video.polyps.index(box.polyp) + 1, _text_of(box.corners)) for box in frame.boxes
                ]  # numbered from 1 in each video
                text = _xml(video.number, frame, lesions)
                (root / _annotation(video.number, frame.number)).write_text(text)
        write_rows(root / _LESIONS, _LESION_COLUMNS, [row for video in videos for row in _lesion_rows(video)])
        write_rows(root / "video_info.csv", _VIDEO_COLUMNS, [_video_row(video) for video in videos])

    def extra_frame(self, video: VideoRecord, number: int, corners: Corners, *, sized: bool) -> ExtraFrame:
        """One more frame of the first lesion or, if not `sized`, of lesion 9, whose size is empty in the table."""
        frame = video.frames[-1]._replace(number=number)
        text = _xml(video.number, frame, [(1 if sized else _UNSIZED, corners)])
        name = _name(video.number)
        table = None if sized else (_LESIONS, f"{name}_{_UNSIZED},{name},,rectum,Hyperplastic polyp,HP\n")
        return ExtraFrame(_image(video.number, number), _annotation(video.number, number), text, table)


def _name(video: int) -> str:
    return f"{video // _VIDEOS_A_STUDY + 1:03d}-{video % _VIDEOS_A_STUDY + 1:03d}"


def _image(video: int, number: int) -> str:
    return f"{_name(video)}_frames/{_name(video)}_{number}.jpg"


def _annotation(video: int, number: int) -> str:
    return f"{_name(video)}_annotations/{_name(video)}_{number}.xml"


def _text_of(corners: tuple[int, int, int, int]) -> Corners:
    xmin, ymin, xmax, ymax = map(str, corners)
    return xmin, ymin, xmax, ymax


def _xml(video: int, frame: FrameRecord, lesions: Sequence[tuple[int, Corners]]) -> str:
    """The annotation of a frame, with the elements in the order of the dataset (xmax before ymin)."""
    name = _name(video)
    lines = [
        "<annotation>",
        "  <version_fmt>1.0</version_fmt>",
        f"  <folder>{name}_frames</folder>",
        f"  <filename>{name}_{frame.number}.jpg</filename>",
        "  <source>",
        "    <database>synthetic phantom in the layout of REAL-Colon</database>",
        "    <release>phantom_v1</release>",
        "  </source>",
        f"  <size><width>{frame.width}</width><height>{frame.height}</height><depth>3</depth></size>",
    ]
    for box_id, (lesion, (xmin, ymin, xmax, ymax)) in enumerate(lesions, start=1):
        corners = {"xmin": xmin, "xmax": xmax, "ymin": ymin, "ymax": ymax}
        lines += [
            "  <object>",
            "    <name>lesion</name>",
            f"    <unique_id>{name}_{lesion}</unique_id>",
            f"    <box_id>{box_id}</box_id>",
            "    <bndbox>" + "".join(f"<{tag}>{escape(text)}</{tag}>" for tag, text in corners.items()) + "</bndbox>",
            "  </object>",
        ]
    return "\n".join([*lines, "</annotation>", ""])


def _lesion_rows(video: VideoRecord) -> list[tuple[object, ...]]:
    sites = ("cecum", "ascending", "transverse", "descending", "sigmoid", "rectum")
    return [
        (f"{_name(video.number)}_{k + 1}", _name(video.number), f"{size:g}", sites[polyp % 6], "Tubular adenoma", "AD")
        for k, (polyp, size) in enumerate(zip(video.polyps, video.sizes, strict=True))
    ]


def _video_row(video: VideoRecord) -> tuple[object, ...]:
    age, sex = 50 + 7 * video.number % 31, ("female", "male")[video.number % 2]
    brand = ("Olympus", "Fuji")[video.number % 3 == 2]
    return (_name(video.number), age, sex, brand, 30, len(video.frames), len(video.polyps), 6 + video.number % 4)
