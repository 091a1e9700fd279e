"""One annotation of REAL-Colon: a small XML in the manner of Pascal VOC."""

from typing import NamedTuple
from xml.parsers import expat

from fsg_jax.endoscopy.readers.boxes import CORNERS, parse_pixels
from fsg_jax.endoscopy.readers.reports import Reason, RefusedError

_OBJECT = ["annotation", "object"]
_LEAVES = {f"annotation/size/{name}": name for name in ("width", "height")}
_LEAVES |= {"annotation/object/unique_id": "unique_id"}
_LEAVES |= {f"annotation/object/bndbox/{name}": name for name in CORNERS}


class VocObject(NamedTuple):
    """One lesion: its id, and xmin, ymin, xmax, ymax as written (``""`` where missing)."""

    unique_id: str
    corners: tuple[str, ...]


class Annotation(NamedTuple):
    """Width and height of the frame in pixels, and the lesions in it, of which most frames have none."""

    width: int
    height: int
    objects: tuple[VocObject, ...]


class _Handler:
    """Collects the text of `_LEAVES`; that of a repeated element is joined, so that it reads as no number."""

    def __init__(self) -> None:
        self.root = ""
        self.path: list[str] = []
        self.text: list[str] = []
        self.size: dict[str, str] = {}
        self.objects: list[dict[str, str]] = []

    def start(self, tag: str, _: object) -> None:
        self.root = self.root or tag
        self.path.append(tag)
        self.text = []
        if self.path == _OBJECT:
            self.objects.append({})

    def characters(self, text: str) -> None:
        self.text.append(text)

    def end(self, _: str) -> None:
        name = _LEAVES.get("/".join(self.path))
        self.path.pop()
        if name is not None:
            target = self.objects[-1] if self.path[1] == "object" else self.size
            text = "".join(self.text).strip()
            target[name] = f"{target[name]} | {text}" if name in target else text

    def doctype(self, name: str, *_: object) -> None:
        raise RefusedError(Reason.DOCTYPE, f"<!DOCTYPE {name}>; annotations need none, and entities can hurt")


def parse_annotation(data: bytes) -> Annotation:
    """Parses the frame size and the lesions of one XML; entities and a DOCTYPE are refused.

    Raises:
      RefusedError: the bytes are no XML, have no ``annotation`` as their root, or lack the size of the frame.
    """
    handler, parser = _Handler(), expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = handler.start, handler.end
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = handler.characters, handler.doctype
    try:
        parser.Parse(data, True)
    except RefusedError:
        raise
    except (expat.ExpatError, LookupError, ValueError) as error:  # the last two: an unknown encoding
        raise RefusedError(Reason.BROKEN_XML, str(error)) from error
    if handler.root != "annotation":
        raise RefusedError(Reason.BROKEN_XML, f"the root element is <{handler.root[:40]}>; expected <annotation>")
    for name in ("width", "height"):
        if name not in handler.size:
            raise RefusedError(Reason.NO_FRAME_SIZE, f"no size/{name}")
    width, height = (parse_pixels(handler.size[name], f"size/{name}") for name in ("width", "height"))
    lesions = [
        (found.get("unique_id", ""), tuple(found.get(name, "") for name in CORNERS)) for found in handler.objects
    ]
    return Annotation(width, height, tuple(VocObject(*lesion) for lesion in lesions))
