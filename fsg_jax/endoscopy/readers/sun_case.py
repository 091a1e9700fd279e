"""One case of SUN: its boxes against its images."""

import re
from collections.abc import Mapping, Sequence

from fsg_jax.endoscopy.readers.boxes import fit_box
from fsg_jax.endoscopy.readers.layout import Frame, Layout, Part
from fsg_jax.endoscopy.readers.reasons import Event, Reason, RefusedError
from fsg_jax.endoscopy.readers.sun_lines import SunBox
from fsg_jax.endoscopy.readers.verify import check_frame

_NUMBER = re.compile(r"image_?(\d+)\.jpe?g", re.ASCII | re.I)


class CaseReader:
    """Reads the boxes of a case into `part`.

    Args:
      layout: the dataset.
      case: the number of the case, which is its polyp and its video.
      file: the annotation file, relative to the root.
      images: path, relative to the root, of every image by its file name.
    """

    def __init__(self, layout: Layout, case: str, file: str, images: Mapping[str, str]) -> None:
        self.layout, self.case, self.file, self.images = layout, case, file, images
        self.part = Part()
        self._named: set[str] = set()
        self._kept: set[str] = set()

    def read(self, boxes: Mapping[str, Sequence[SunBox]]) -> None:
        """Rows for the boxes by file name, and notes on the images that no line names."""
        for name, found in boxes.items():
            lesion = any(box.class_id == 0 for box in found)
            self.part.counts["frames with boxes" if lesion else "frames without lesion"] += 1
            self._read_frame(name, found)
        bare = [image for image in self.images.values() if image not in self._named]
        self.part.events += [Event(image, "", Reason.NO_ANNOTATION, "") for image in bare]

    def _read_frame(self, name: str, found: Sequence[SunBox]) -> None:
        number = _frame_number(name)
        image = self.images.get(name) or self.images.get(f"image_{number or 0:03d}.jpg")
        self._named.add(image or "")
        polyps = [box for box in found if self._has_size(box)]
        if not polyps:
            return
        try:
            frame = self._frame(name, number, image)
        except RefusedError as error:
            self.part.events.append(error.event(image or f"case{self.case}/{name}", f"line {polyps[0].line}"))
            return
        for box in polyps:
            self._add(box, frame)

    def _has_size(self, box: SunBox) -> bool:
        try:
            if box.class_id == 1:
                raise RefusedError(Reason.NOT_POLYP, "class 1")
            self.layout.sizes.size(self.case)
        except RefusedError as error:
            self.part.events.append(error.event(self.file, f"line {box.line}"))
            return False
        return True

    def _frame(self, name: str, number: int | None, image: str | None) -> Frame:
        if number is None:
            raise RefusedError(Reason.FILE_NAME, "expected a name that ends with image<digits>.jpg")
        if image is None:
            detail = f"neither {name} nor image_{number:03d}.jpg is in a folder of the case"
            raise RefusedError(Reason.MISSING_FRAME, detail)
        self.part.counts["images"] += 1
        return Frame(self.case, str(number), image, *check_frame(self.layout.root / image, self.layout.verify))

    def _add(self, box: SunBox, frame: Frame) -> None:
        """A case is one polyp, so a frame gives one row: its first box that can be used."""
        item = f"line {box.line}"
        try:
            fitted = fit_box(box.corners, frame.width, frame.height)
            if frame.image_path in self._kept:
                raise RefusedError(Reason.DUPLICATE_BOX, f"{tuple(fitted.box)} after another")
        except RefusedError as error:
            self.part.events.append(error.event(self.file, item))
            return
        self._kept.add(frame.image_path)
        self.part.note_box(fitted, self.file, item)
        self.part.rows.append(self.layout.row(frame, self.case, fitted, self.layout.sizes.size(self.case)))


def _frame_number(name: str) -> int | None:
    match = _NUMBER.search(name)
    return None if match is None else int(match[1])
