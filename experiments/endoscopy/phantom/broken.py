"""Frames that are damaged on purpose, each in one way, and that a reader must drop."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from experiments.endoscopy.phantom.layouts import Corners, Layout
from experiments.endoscopy.phantom.records import FrameRecord, VideoRecord


class Size(NamedTuple):
    """Width and height of a frame."""

    width: int
    height: int


def _same(value: bytes) -> bytes:
    return value


@dataclass(frozen=True)
class Damage:
    """What is done to the image's bytes (None: no file), to the corners of its box and to its annotation."""

    kind: str
    image: Callable[[bytes], bytes | None] = _same
    corners: Callable[[Corners, Size], Corners] = lambda corners, size: corners
    annotation: Callable[[str], str] = lambda text: text
    sized: bool = True


def _swap(corners: Corners, size: Size) -> Corners:
    return corners[2], corners[3], corners[0], corners[1]


def _outside(corners: Corners, size: Size) -> Corners:
    return str(size.width + 5), corners[1], str(size.width + 40), corners[3]


def _no_area(corners: Corners, size: Size) -> Corners:
    return corners[0], corners[1], corners[0], corners[3]


def _words(corners: Corners, size: Size) -> Corners:
    return "left", corners[1], "right", corners[3]


def _last_corner(corners: Corners, size: Size) -> Corners:
    return str(size.width // 2), str(size.height // 2), str(size.width - 1), str(size.height - 1)


def _half(text: str) -> str:
    return text[: len(text) // 2] + "\n"


def _converted(data: bytes, *, grey: bool = False, shrink: int = 1) -> bytes:
    image = Image.open(io.BytesIO(data)).convert("L" if grey else "RGB")
    out = io.BytesIO()
    image.resize((image.width // shrink, image.height // shrink)).save(out, format="JPEG", quality=90)
    return out.getvalue()


DAMAGES = (
    Damage("truncated JPEG", image=lambda data: data[: len(data) // 3]),
    Damage("zero-byte JPEG", image=lambda data: b""),
    Damage("annotation cut in half", annotation=_half),
    Damage("swapped corners", corners=_swap),
    Damage("box outside the frame", corners=_outside),
    Damage("polyp without a size", sized=False),
    Damage("greyscale JPEG", image=lambda data: _converted(data, grey=True)),
    Damage("missing JPEG", image=lambda data: None),
    Damage("box without area", corners=_no_area),
    Damage("corners that are no numbers", corners=_words),
    Damage("JPEG of another size", image=lambda data: _converted(data, shrink=4), corners=_last_corner),
    Damage("no JPEG but text", image=lambda data: b"not an image\n"),
)


def add_broken(root: Path, layout: Layout, videos: Sequence[VideoRecord], count: int) -> list[dict[str, str]]:
    """Adds `count` damaged frames, the kinds and the videos taking turns; returns image, annotation and kind of each.

    Each is a copy of the video's last frame with a polyp and comes after the planned frames, which stay as they are.
    """
    broken = []
    for k in range(count):
        video, damage = videos[k % len(videos)], DAMAGES[k % len(DAMAGES)]
        source = [frame for frame in video.frames if _first_box(video, frame)][-1]
        number = max(frame.number for frame in video.frames) + 10 + k // len(videos)
        broken.append(_add(root, layout, video, source, number, damage))
    return broken


def _add(
    root: Path, layout: Layout, video: VideoRecord, source: FrameRecord, number: int, damage: Damage
) -> dict[str, str]:
    xmin, ymin, xmax, ymax = map(str, _first_box(video, source))
    corners = damage.corners((xmin, ymin, xmax, ymax), Size(source.width, source.height))
    extra = layout.extra_frame(video, number, corners, sized=damage.sized)
    data = damage.image((root / layout.images(video, source)[0][0]).read_bytes())
    if data is not None:
        (root / extra.image).parent.mkdir(parents=True, exist_ok=True)
        (root / extra.image).write_bytes(data)
    _append(root / extra.annotation, damage.annotation(extra.text))
    if extra.table is not None:
        _append(root / extra.table[0], extra.table[1])
    return {"image": extra.image, "annotation": extra.annotation, "kind": damage.kind}


def _first_box(video: VideoRecord, frame: FrameRecord) -> tuple[int, ...]:
    """Corners of the first polyp of the video in the frame; empty if it is not there."""
    return next((box.corners for box in frame.boxes if box.polyp == video.polyps[0]), ())


def _append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)
