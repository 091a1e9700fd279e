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


def parse_annotation(data: bytes) -> Annotation:
    """Parses the frame size and the lesions of one XML; entities and a DOCTYPE are refused.

    Raises:
      RefusedError: the bytes are no XML, have no ``annotation`` as their root, or lack the size of the frame.
    """
    root: list[str] = []
    path: list[str] = []
    text: list[str] = []
    size: dict[str, str] = {}
    objects: list[dict[str, str]] = []

    def start(tag: str, _: object) -> None:
        if not path:
            root.append(tag)
        path.append(tag)
        text.clear()
        if path == _OBJECT:
            objects.append({})

    def end(_: str) -> None:
        name = _LEAVES.get("/".join(path))
        if name is not None:
            leaves = objects[-1] if path[1] == "object" else size
            written = "".join(text).strip()  # that of a repeated element is joined, so that it reads as no number
            leaves[name] = f"{leaves[name]} | {written}" if name in leaves else written
        path.pop()

    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = text.append, _refuse_doctype
    try:
        parser.Parse(data, True)
    except RefusedError:
        raise
    except (expat.ExpatError, LookupError, ValueError) as error:  # the last two: an unknown encoding
        raise RefusedError(Reason.BROKEN_XML, str(error)) from error
    if root != ["annotation"]:
        raise RefusedError(Reason.BROKEN_XML, f"the root element is <{root[0][:40]}>; expected <annotation>")
    for name in ("width", "height"):
        if name not in size:
            raise RefusedError(Reason.NO_FRAME_SIZE, f"no size/{name}")
    width, height = (parse_pixels(size[name], f"size/{name}") for name in ("width", "height"))
    lesions = [(found.get("unique_id", ""), tuple(found.get(name, "") for name in CORNERS)) for found in objects]
    return Annotation(width, height, tuple(VocObject(*lesion) for lesion in lesions))


def _refuse_doctype(name: str, *_: object) -> None:
    raise RefusedError(Reason.DOCTYPE, f"<!DOCTYPE {name}>; annotations need none, and entities can hurt")
