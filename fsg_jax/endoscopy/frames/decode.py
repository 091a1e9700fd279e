"""Image files: opened with every failure named, and resized into a square."""

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int, UInt8

from fsg_jax.data.extras import import_extra

_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)


class FrameError(ValueError):
    """A frame, mask or depth map on disk is missing, damaged or not what the index says."""


class Placement(NamedTuple):
    """Where the whole frame lies in the square it is resized to, in pixels of the square."""

    size: int
    left: int
    top: int
    width: int
    height: int


def place_frame(width: int, height: int, size: int, *, keep_aspect: bool = False) -> Placement:
    """The place of a frame of ``width`` x ``height`` in a square of ``size`` pixels.

    Args:
      width: of the frame, 1 or more.
      height: of the frame, 1 or more.
      size: of the square, 1 or more.
      keep_aspect: the longer side fills the square and the frame is centred, its shorter side rounded to a whole
        pixel; False stretches the frame to the square.
    """
    if not keep_aspect:
        return Placement(size, 0, 0, size, size)
    longer = max(width, height)
    inner = max(1, round(size * width / longer)), max(1, round(size * height / longer))
    return Placement(size, (size - inner[0]) // 2, (size - inner[1]) // 2, *inner)


def place_box(box: Int[np.ndarray, "4"], shape: tuple[int, int], placement: Placement) -> Float32[np.ndarray, "4"]:
    """The edges xmin, ymin, xmax, ymax of ``box``, moved with a frame of ``shape`` (width, height)."""
    scale = np.array([placement.width / shape[0], placement.height / shape[1]])
    offset = np.array([placement.left, placement.top])
    return (box.reshape(2, 2) * scale + offset).reshape(4).astype(np.float32)


@contextmanager
def open_image(path: Path, remedy: str) -> Iterator[Any]:
    """``path`` opened with Pillow; what keeps it from being opened or decoded inside becomes a `FrameError`."""
    pillow = import_extra("PIL.Image", "endoscopy")
    try:
        with pillow.open(path) as image:
            yield image
    except FrameError:
        raise
    except FileNotFoundError as error:
        raise FrameError(f"{path}: no such file; {remedy}") from error
    except (*_DAMAGE, pillow.DecompressionBombError) as error:
        raise FrameError(f"{path}: found an image that cannot be decoded ({error}); {remedy}") from error


def check_image(path: Path, image: Any, shape: tuple[int, int], remedy: str) -> None:
    """Raises `FrameError` unless ``image`` has the (width, height) ``shape`` and 8 bits a channel or fewer."""
    if image.size != shape:
        found, expected = "x".join(map(str, image.size)), "x".join(map(str, shape))
        raise FrameError(f"{path}: found {found} pixels, expected {expected} as in the index; {remedy}")
    if image.mode.startswith(("I", "F")):
        raise FrameError(f"{path}: found pixels of mode {image.mode}, expected 8 bits a channel; {remedy}")


def read_rgb(path: Path, shape: tuple[int, int], placement: Placement, remedy: str) -> UInt8[np.ndarray, "size size 3"]:
    """An image of ``shape`` (width, height) as RGB in its `Placement`, black around it, antialiased.

    A JPEG is decoded at the smallest scale that is not below the target. EXIF orientation is not applied: boxes
    are in stored pixels.

    Raises:
      FrameError: missing, damaged or of another size.
    """
    with open_image(path, remedy) as image:
        check_image(path, image, shape, remedy)
        pixels = _resized(image, placement, "RGB")
    return _centred(pixels, placement, np.zeros((placement.size, placement.size, 3), np.uint8))


def read_grey(path: Path, shape: tuple[int, int], placement: Placement, remedy: str) -> UInt8[np.ndarray, "size size"]:
    """An image as `read_rgb` has it, with one channel."""
    with open_image(path, remedy) as image:
        check_image(path, image, shape, remedy)
        pixels = _resized(image, placement, "L")
    return _centred(pixels, placement, np.zeros((placement.size, placement.size), np.uint8))


def _resized(image: Any, placement: Placement, mode: str) -> np.ndarray:
    target = placement.width, placement.height
    draft = image.draft("L" if mode == "L" else None, target)
    # A scaled JPEG is rounded up to whole pixels: the part of them that the frame covers is resized.
    box = None if draft is None else draft[1]
    image = image if image.mode == mode else image.convert(mode)
    return np.asarray(image.resize(target, import_extra("PIL.Image", "endoscopy").Resampling.BILINEAR, box=box))


def _centred(pixels: np.ndarray, placement: Placement, canvas: np.ndarray) -> np.ndarray:
    rows, columns = slice(placement.top, placement.top + placement.height), slice(placement.left, None)
    canvas[rows, columns][:, : placement.width] = pixels
    return canvas


def resize_map(values: Float[np.ndarray, "rows columns"], placement: Placement) -> Float32[np.ndarray, "size size"]:
    """A map over the whole frame, at any resolution, in its `Placement`; its edge values are repeated around it."""
    pillow = import_extra("PIL.Image", "endoscopy")
    image = pillow.fromarray(np.ascontiguousarray(values, np.float32))
    inner = np.asarray(image.resize((placement.width, placement.height), pillow.Resampling.BILINEAR))
    right = placement.size - placement.left - placement.width
    bottom = placement.size - placement.top - placement.height
    return np.pad(inner, ((placement.top, bottom), (placement.left, right)), mode="edge")
