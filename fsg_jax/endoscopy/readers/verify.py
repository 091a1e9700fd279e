"""Checks whether the image of a frame can be used, and reads its size."""

import os
import stat
import warnings
from pathlib import Path
from typing import Any, Literal

from fsg_jax.data.extras import import_extra
from fsg_jax.endoscopy.readers.reports import Reason, RefusedError

Verify = Literal["decode", "header", "none"]
MAX_BYTES = 32 << 20
_TAIL = 4096  # some writers pad after the end marker


def check_frame(path: Path, verify: Verify) -> tuple[int, int]:
    """Checks an image, and returns its width and height.

    Args:
      path: the image.
      verify: ``"decode"`` decodes all of it, a JPEG at an eighth of its scale; ``"header"`` reads its header and looks
        for the end marker of a JPEG; ``"none"`` reads the header only.

    Raises:
      RefusedError: it is missing, empty, truncated, unreadable, too large or not RGB.
    """
    image_module = import_extra("PIL.Image", "endoscopy")
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise RefusedError(Reason.UNREADABLE_FRAME, "not a file")
        if found.st_size == 0:
            raise RefusedError(Reason.EMPTY_FRAME, "no bytes")
        if found.st_size > MAX_BYTES:
            raise RefusedError(Reason.UNREADABLE_FRAME, f"{found.st_size} bytes; expected at most {MAX_BYTES}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", image_module.DecompressionBombWarning)
            with image_module.open(path) as image:
                return _check_image(image, path, verify)
    except FileNotFoundError:
        raise RefusedError(Reason.MISSING_FRAME, "no such file") from None
    except RefusedError:
        raise
    except (image_module.DecompressionBombWarning, image_module.DecompressionBombError) as error:
        raise RefusedError(Reason.UNREADABLE_FRAME, str(error)) from error
    except Exception as error:  # a damaged image can raise nearly anything
        truncated = "truncated" in str(error).lower()
        reason = Reason.TRUNCATED_FRAME if truncated else Reason.UNREADABLE_FRAME
        line = f"{type(error).__name__}: {error}".splitlines()[0]
        raise RefusedError(reason, line.replace(str(path), path.name)) from error


def _check_image(image: Any, path: Path, verify: Verify) -> tuple[int, int]:
    size = image.size
    if image.mode != "RGB":
        raise RefusedError(Reason.NOT_RGB, f"mode {image.mode}; expected RGB")
    if verify == "decode":
        image.draft("RGB", (max(size[0] // 8, 1), max(size[1] // 8, 1)))
        image.load()
    elif verify == "header" and image.format == "JPEG":
        with open(path, "rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - _TAIL, 0))
            if b"\xff\xd9" not in file.read():
                raise RefusedError(Reason.TRUNCATED_FRAME, "no end marker")
    return size
