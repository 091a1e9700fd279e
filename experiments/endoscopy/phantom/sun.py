"""SUN as it is distributed (Misawa et al., Gastrointest. Endosc. 93:960, 2021): a folder and a text file a polyp."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.endoscopy.phantom.layouts import Corners, ExtraFrame, write_rows
from experiments.endoscopy.phantom.records import FrameRecord, VideoPlan, VideoRecord

_LABELS = "metadata/sun_dataset_labels.csv"
_CENSORED_MM = 15
_POLYP = 0  # class_id


@dataclass(frozen=True)
class Sun:
    """``sundatabase_positive_part{1,2}/case{N}`` with the boxes of both halves in part 1, and a table of sizes.

    A frame with two polyps lies in the folders of both cases.
    """

    polyps: int
    """Number of cases."""
    censor: bool = False
    """Write sizes of 15 mm or more as ``15mm-``."""
    dataset: str = "sun"
    has_empty_frames: bool = False

    def images(self, video: VideoPlan | VideoRecord, frame: FrameRecord) -> list[tuple[str, tuple[int, ...]]]:
        """A place for each polyp that is seen."""
        return [(self._image(box.polyp, frame.number), (box.polyp,)) for box in frame.boxes]

    def annotate(self, root: Path, videos: Sequence[VideoRecord]) -> None:
        """Writes a text file a case and the table of sizes."""
        sizes = [(polyp, size) for video in videos for polyp, size in zip(video.polyps, video.sizes, strict=True)]
        write_rows(root / _LABELS, ("ID", "Size"), [(polyp + 1, self._size(size)) for polyp, size in sizes])
        lines: dict[int, list[str]] = {polyp: [] for polyp, _ in sizes}
        for video in videos:
            for frame in video.frames:
                for box in frame.boxes:
                    lines[box.polyp].append(_line(box.polyp, frame.number, [str(v) for v in box.corners]))
        for polyp, texts in lines.items():
            path = root / _annotation(polyp)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(texts))

    def extra_frame(self, video: VideoRecord, number: int, corners: Corners, *, sized: bool) -> ExtraFrame:
        """One more frame of the first case or, if not `sized`, of a case whose size is empty in the table."""
        polyp = video.polyps[0] if sized else self.polyps + video.number
        table = None if sized else (_LABELS, f"{polyp + 1},\n")
        return ExtraFrame(self._image(polyp, number), _annotation(polyp), _line(polyp, number, corners), table)

    def _size(self, size: float) -> str:
        return f"{_CENSORED_MM}mm-" if self.censor and size >= _CENSORED_MM else f"{size:g}mm"

    def _image(self, polyp: int, number: int) -> str:
        part = 1 if polyp < (self.polyps + 1) // 2 else 2
        return f"sundatabase_positive_part{part}/case{polyp + 1}/{_file_name(polyp, number)}"


def _file_name(polyp: int, number: int) -> str:
    """A name in the form of the dataset's."""
    return f"case_M_20180101000000_0U00000000000000_1_{polyp + 1:03d}_001-1_a2_ayy_image{number:04d}.jpg"


def _annotation(polyp: int) -> str:
    return f"sundatabase_positive_part1/annotation_txt/case{polyp + 1}.txt"


def _line(polyp: int, number: int, corners: Sequence[str]) -> str:
    return f"{_file_name(polyp, number)} {','.join(corners)},{_POLYP}\n"
