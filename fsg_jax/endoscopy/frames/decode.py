"""Image files: opened with every failure named, and resized into a square."""

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float32, Int, Shaped, UInt8

from fsg_jax._files import check_file
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
    """Places a frame of ``width`` x ``height`` in a square of ``size`` pixels.

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
    """Moves the edges xmin, ymin, xmax, ymax of ``box`` along with its frame of ``shape`` (width, height)."""
    scale = np.array([placement.width / shape[0], placement.height / shape[1]])
    offset = np.array([placement.left, placement.top])
    return (box.reshape(2, 2) * scale + offset).reshape(4).astype(np.float32)


@contextmanager
def open_image(path: Path, remedy: str) -> Iterator[Any]:
    """Opens ``path`` with Pillow; if it cannot be opened, or decoded inside the block, a `FrameError` names it."""
    pillow = import_extra("PIL.Image", "endoscopy")
    try:
        check_file(path)
        with pillow.open(path) as image:
            yield image
    except FrameError:
        raise
    except FileNotFoundError as error:
        raise FrameError(f"{path}: no such file; {remedy}") from error
    except (*_DAMAGE, pillow.DecompressionBombError) as error:
        raise FrameError(f"{path}: expected an image, found one that cannot be decoded ({error}); {remedy}") from error


def check_image(path: Path, image: Any, shape: tuple[int, int], remedy: str) -> None:
    """Raises `FrameError` unless ``image`` has the (width, height) ``shape`` and 8 bits a channel or fewer."""
    if image.size != shape:
        sizes = f"expected {shape[0]}x{shape[1]} pixels as in the index, found {image.width}x{image.height}"
        raise FrameError(f"{path}: {sizes}; {remedy}")
    if image.mode.startswith(("I", "F")):
        raise FrameError(f"{path}: expected 8 bits a channel, found pixels of mode {image.mode}; {remedy}")


def read_image(
    path: Path, shape: tuple[int, int], placement: Placement, remedy: str, mode: Literal["RGB", "L"] = "RGB"
) -> UInt8[np.ndarray, "size size *channels"]:
    """Reads an image of ``shape`` (width, height) into its `Placement`, black around it, antialiased.

    A JPEG is decoded at the smallest scale that is not below the target. EXIF orientation is not applied: boxes
    are in stored pixels. ``mode`` "RGB" gives three channels, "L" (grey) gives (size, size).

    Raises:
      FrameError: the file is missing, damaged or of another size.
    """
    with open_image(path, remedy) as image:
        check_image(path, image, shape, remedy)
        draft = image.draft("L" if mode == "L" else None, (placement.width, placement.height))
        # A scaled JPEG is rounded up to whole pixels: the part of them that the frame covers is resized.
        box = None if draft is None else draft[1]
        return fit_image(image if image.mode == mode else image.convert(mode), placement, box=box)


def fit_image(
    image: Any, placement: Placement, *, around: Literal["constant", "edge"] = "constant", box: Any = None
) -> Shaped[np.ndarray, "size size *channels"]:
    """Resizes a Pillow image, or the part in ``box``, into its `Placement`; zeros or its edge values lie around it."""
    bilinear = import_extra("PIL.Image", "endoscopy").Resampling.BILINEAR
    pixels = np.asarray(image.resize((placement.width, placement.height), bilinear, box=box))
    right = placement.size - placement.left - placement.width
    bottom = placement.size - placement.top - placement.height
    margins = ((placement.top, bottom), (placement.left, right), (0, 0))
    return np.pad(pixels, margins[: pixels.ndim], mode=around)
