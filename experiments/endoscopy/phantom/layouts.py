"""What the two layouts have in common; each has a file of its own."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from experiments.endoscopy.phantom.records import FrameRecord, VideoPlan, VideoRecord

Corners = tuple[str, str, str, str]
"""xmin, ymin, xmax, ymax as they are written."""


class ExtraFrame(NamedTuple):
    """A frame beyond the planned ones; `text` is added to the file `annotation`, a row to a table."""

    image: str
    annotation: str
    text: str
    table: tuple[str, str] | None


class Layout(Protocol):
    """How a dataset lies on disk. Paths are relative to its root, with forward slashes."""

    @property
    def dataset(self) -> str:
        """Name of the folder of its depth maps."""
        ...

    @property
    def has_empty_frames(self) -> bool:
        """Whether frames without a polyp belong to it."""
        ...

    def images(self, video: VideoPlan | VideoRecord, frame: FrameRecord) -> list[tuple[str, tuple[int, ...]]]:
        """Every place that a frame is written to, with the polyps that are annotated there."""
        ...

    def annotate(self, root: Path, videos: Sequence[VideoRecord]) -> None:
        """Writes the boxes of all frames and the tables of sizes."""
        ...

    def extra_frame(self, video: VideoRecord, number: int, corners: Corners, *, sized: bool) -> ExtraFrame:
        """One more frame of the first polyp of `video` or, if not `sized`, of a polyp whose size is not known."""
        ...


def write_rows(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Writes a CSV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
