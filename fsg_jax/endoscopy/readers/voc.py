"""One annotation of REAL-Colon: a small XML in the manner of Pascal VOC."""

from typing import NamedTuple, TypeAlias
from xml.parsers import expat

from fsg_jax.endoscopy.readers.boxes import CORNERS, parse_pixels
from fsg_jax.endoscopy.readers.reports import Reason, RefusedError

MAX_DEPTH = 32
"""Of elements inside one another; annotations have 4."""

_OBJECT = "/annotation/object"
_VALUES = {f"/annotation/size/{name}": name for name in ("width", "height")} | {f"{_OBJECT}/unique_id": "unique_id"}
_VALUES |= {f"{_OBJECT}/bndbox/{name}": name for name in CORNERS}
_SINGLE = {"/annotation/size": "size", f"{_OBJECT}/bndbox": "bndbox"} | _VALUES


Found: TypeAlias = dict[str, list[str]]
"""The texts of the elements of one name, of a frame or of an object."""


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
      RefusedError: the bytes are no XML, have no ``annotation`` as their root, lack the size of the frame or have it
        twice, have an element inside a value, or are too deep.
    """
    root: list[str] = []
    paths: list[str] = [""]
    text: list[str] = []
    size: Found = {}
    objects: list[Found] = []

    def start(tag: str, _: object) -> None:
        path = f"{paths[-1]}/{tag}"
        if len(paths) > MAX_DEPTH or paths[-1] in _VALUES:
            found = f"<{tag[:40]}> in {paths[-1][:80]}"
            raise RefusedError(Reason.BROKEN_XML, f"{found}; expected at most {MAX_DEPTH} levels, and plain values")
        if not root:
            root.append(tag)
        elif path == _OBJECT:
            objects.append({})
        paths.append(path)
        text.clear()

    def end(_: str) -> None:
        name = _SINGLE.get(path := paths.pop())
        if name is not None:
            found = objects[-1] if path.startswith(_OBJECT) else size
            found.setdefault(name, []).append("".join(text).strip())

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
    if len(size["size"]) > 1:
        raise RefusedError(Reason.FRAME_SIZE, f"{len(size['size'])} elements size; expected one")
    width, height = (parse_pixels(_value(size, name), f"size/{name}") for name in ("width", "height"))
    return Annotation(width, height, tuple(map(_lesion, objects)))


def _lesion(found: Found) -> VocObject:
    boxes = len(found.get("bndbox", ()))
    corners = (f"in {boxes} boxes",) * len(CORNERS) if boxes > 1 else tuple(_value(found, name) for name in CORNERS)
    return VocObject(_value(found, "unique_id"), corners)


def _value(found: Found, name: str) -> str:
    """The text of an element; that of a repeated one is joined, so that it reads as no number and no known id."""
    return " | ".join(found.get(name, ()))


def _refuse_doctype(name: str, *_: object) -> None:
    raise RefusedError(Reason.DOCTYPE, f"<!DOCTYPE {name}>; annotations need none, and entities can hurt")
