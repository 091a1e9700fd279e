"""Image files for `experiments.predict`: found, decoded side by side, in order."""

import glob
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from experiments.errors import UserError
from fsg_jax._checks import expect
from fsg_jax._files import check_file, is_system_file


class Found(NamedTuple):
    """Files to decode, and how many others lie in the folders."""

    images: list[Path]
    others: int


class Unreadable(NamedTuple):
    """Why a file gives no image."""

    reason: str


def find_images(words: Sequence[str]) -> Found:
    """The files that words name: files, folders, searched to any depth for the suffixes that Pillow reads, and globs.

    In the order of the words, the files of each sorted; a file that is named twice is there once.

    Raises:
      UserError: a word names nothing.
    """
    if not words:
        raise UserError("IMAGES: expected one or more, found none")
    Image.init()
    suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    images: dict[Path, None] = {}
    others = 0
    for word in words:
        paths = [Path(word)] if os.path.lexists(word) else [Path(p) for p in sorted(glob.glob(word, recursive=True))]
        if not paths:
            raise UserError(f"{word}: expected an image, a folder or a pattern that matches some, found none")
        for path in paths:
            files = _below(path) if path.is_dir() else [path]
            taken = [file for file in files if file == path or file.suffix.lower() in suffixes]
            others += len(files) - len(taken)
            images |= dict.fromkeys(taken)
    if not images:
        raise UserError(f"{' '.join(words)}: expected images, found {others} other files")
    return Found(list(images), others)


def _below(folder: Path) -> list[Path]:
    """The files in a folder and all folders below it, sorted; not what an operating system leaves there."""
    found = [Path(parent, name) for parent, _, names in os.walk(folder, onerror=_raise) for name in names]
    return sorted(file for file in found if not any(map(is_system_file, file.relative_to(folder).parts)))


def _raise(error: OSError) -> None:
    raise error


def decode(path: Path, channels: int) -> Image.Image:
    """The first frame of an image file, upright by its EXIF orientation, as RGB, or as grey for one channel.

    Transparent pixels are laid on white. Other colour spaces are converted by Pillow, without colour profiles. Grey
    values of 16 bits are divided by 257; floating-point ones, and integers beyond 16 bits, are refused.

    Raises:
      ValueError: such values, or no regular file.
      Exception: of any type, from Pillow, for what it cannot read.
    """
    check_file(path)
    with Image.open(path) as opened:
        opened.seek(0)
        image = ImageOps.exif_transpose(opened)
    image.load()
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image)
        right = values.dtype.kind in "iu" and values.min() >= 0 and values.max() < 2**16
        expect(right, "values", "integers from 0 to 65535", f"{values.dtype} from {values.min()} to {values.max()}")
        image = Image.fromarray((values / 257).round().astype(np.uint8))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("L" if channels == 1 else "RGB")


def batches(
    paths: Sequence[Path], read: Callable[[Path], np.ndarray], size: int, workers: int
) -> Iterator[list[np.ndarray | Unreadable]]:
    """What `read` gives for each of `size` paths at a time, in order; two batches are read ahead, in threads."""

    def attempt(path: Path) -> Any:
        try:
            return read(path)
        except Exception as error:  # Pillow raises errors of any type
            return Unreadable(" ".join(f"{type(error).__name__}: {error}".split()))

    ahead: deque[list[Future]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for start in range(0, len(paths), size):
                ahead.append([pool.submit(attempt, path) for path in paths[start : start + size]])
                if len(ahead) > 2:
                    yield [future.result() for future in ahead.popleft()]
            while ahead:
                yield [future.result() for future in ahead.popleft()]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
