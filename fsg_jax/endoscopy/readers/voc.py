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

Found: TypeAlias = dict[str, str]
"""The text of each element of `_SINGLE`; that of a repeated one is joined, and reads as no number and no known id."""


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
        parent = paths[-1]
        if parent in _VALUES or len(paths) > MAX_DEPTH:
            found = f"<{tag[:40]}> in {parent[:80]}"
            raise RefusedError(Reason.BROKEN_XML, f"{found}; expected at most {MAX_DEPTH} levels, and plain values")
        paths.append(path := f"{parent}/{tag}")
        if path == _OBJECT:
            objects.append({})
        elif not parent:
            root.append(tag)
        text.clear()

    def end(_: str) -> None:
        name = _SINGLE.get(path := paths.pop())
        if name is not None:
            found = objects[-1] if path.startswith(_OBJECT) else size
            written = "".join(text).strip() if path in _VALUES else ""
            found[name] = f"{found[name]} | {written}" if name in found else written

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
    if size["size"]:
        raise RefusedError(Reason.FRAME_SIZE, "several elements size; expected one")
    width, height = (parse_pixels(size[name], f"size/{name}") for name in ("width", "height"))
    return Annotation(width, height, tuple(map(_lesion, objects)))


def _lesion(found: Found) -> VocObject:
    twice = found.get("bndbox")
    corners = ["in several boxes" if twice else found.get(name, "") for name in CORNERS]
    return VocObject(found.get("unique_id", ""), tuple(corners))


def _refuse_doctype(name: str, *_: object) -> None:
    raise RefusedError(Reason.DOCTYPE, f"<!DOCTYPE {name}>; annotations need none, and entities can hurt")
