"""Frames that are damaged on purpose, each in one way, and that a reader must drop."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from experiments.endoscopy.phantom.native_layouts import Layout, append_text
from experiments.endoscopy.phantom.phantom_plan import Corners, Frame, Video


class Damage(NamedTuple):
    """What is done to the image's bytes (None: no file), to the corners of its box and to its annotation."""

    image: Callable[[bytes], bytes | None] = lambda data: data
    corners: Callable[[Corners, Frame], Corners] = lambda corners, frame: corners
    annotation: Callable[[str], str] = lambda text: text
    sized: bool = True


def _converted(data: bytes, *, mode: str = "RGB", shrink: int = 1) -> bytes:
    image, out = Image.open(io.BytesIO(data)).convert(mode), io.BytesIO()
    image.resize((image.width // shrink, image.height // shrink)).save(out, format="JPEG", quality=90)
    return out.getvalue()


def _last_corner(corners: Corners, frame: Frame) -> Corners:
    return frame.width // 2, frame.height // 2, frame.width - 1, frame.height - 1


DAMAGES = {
    "truncated JPEG": Damage(image=lambda data: data[: len(data) // 3]),
    "zero-byte JPEG": Damage(image=lambda data: b""),
    "annotation cut in half": Damage(annotation=lambda text: text[: len(text) // 2] + "\n"),
    "swapped corners": Damage(corners=lambda c, frame: (c[2], c[3], c[0], c[1])),
    "box outside the frame": Damage(corners=lambda c, frame: (frame.width + 5, c[1], frame.width + 40, c[3])),
    "polyp without a size": Damage(sized=False),
    "greyscale JPEG": Damage(image=lambda data: _converted(data, mode="L")),
    "missing JPEG": Damage(image=lambda data: None),
    "box without area": Damage(corners=lambda c, frame: (c[0], c[1], c[0], c[3])),
    "corners that are no numbers": Damage(corners=lambda c, frame: ("left", c[1], "right", c[3])),
    "JPEG of another size": Damage(image=lambda data: _converted(data, shrink=4), corners=_last_corner),
    "no JPEG but text": Damage(image=lambda data: b"not an image\n"),
}


def add_broken(root: Path, layout: Layout, videos: Sequence[Video], count: int) -> list[dict[str, str]]:
    """Adds `count` damaged frames, the kinds and the videos taking turns; returns image, annotation and kind of each.

    Each is a copy of the video's last frame with its first polyp and comes after the planned frames, which stay as
    they are.
    """
    broken = []
    for k in range(count):
        video, kind = videos[k % len(videos)], list(DAMAGES)[k % len(DAMAGES)]
        damage, first = DAMAGES[kind], video.polyps[0]
        frame, box = [(frame, box) for frame in video.frames for box in frame.boxes if box.polyp == first][-1]
        number = max(frame.number for frame in video.frames) + 10 + k // len(videos)
        polyp, table, row = (first, None, "") if damage.sized else layout.unsized(video)
        box = box._replace(polyp=polyp, corners=damage.corners(box.corners, frame))
        extra = frame._replace(number=number, boxes=(box,))
        ((image, _),), ((annotation, text),) = layout.images(video, extra), layout.annotations(video, extra)
        data = damage.image((root / layout.images(video, frame)[0][0]).read_bytes())
        if data is not None:
            (root / image).parent.mkdir(parents=True, exist_ok=True)
            (root / image).write_bytes(data)
        append_text(root / annotation, damage.annotation(text))
        if table is not None:
            append_text(root / table, row)
        broken.append({"image": image, "annotation": annotation, "kind": kind})
    return broken
