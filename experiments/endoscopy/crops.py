"""Crops of Kvasir-SEG with and without a polyp, as a classification: ``python -m experiments.crops FOLDER --out FILE``.

For `experiments.ablate kvasir_crops`, whose networks see no mask; `experiments.localise` then asks where they look.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from tqdm import tqdm

from experiments.errors import UserError, run_main
from experiments.image_files import decode
from experiments.run_folder import writing_to
from fsg_jax._checks import check_integer, expect
from fsg_jax._files import replacing
from fsg_jax.endoscopy.mask_crops import draw_crops

SPLITS = ("train", "validation", "test")
CLASSES = ("none", "polyp")
_SHOWN = 20


@dataclass(frozen=True)
class Args:
    """Cuts crops out of the frames of Kvasir-SEG: half with a polyp, half without, where the frames have them."""

    folder: Annotated[Path, tyro.conf.Positional]
    """With train, validation and test, each with images and masks."""
    out: Path
    """A .npz file; one that is there is replaced."""
    size: int = 96
    """Height and width of a crop in pixels of a frame."""
    each: int = 2
    """Crops with a polyp, and as many without, from each frame."""
    least: float = 0.2
    """Share of a crop with a polyp that the mask covers at least; one without is not covered at all."""
    seed: int = 0


def find_frames(folder: Path, split: str) -> list[tuple[Path, Path]]:
    """Image and mask of every frame of a split, by name.

    Raises:
      UserError: there are none, or an image without a mask.
    """
    images = sorted((folder / split / "images").glob("*.jpg"), key=lambda path: (len(path.stem), path.stem))
    if not images:
        raise UserError(f"{folder / split / 'images'}: expected the images of Kvasir-SEG, *.jpg, found none")
    pairs = [(image, folder / split / "masks" / image.name) for image in images]
    if missing := [str(mask) for _, mask in pairs if not mask.is_file()]:
        raise UserError(f"{len(missing)} masks are missing: {', '.join(missing[:_SHOWN])}")
    return pairs


def read_frame(image: Path, mask: Path) -> tuple[np.ndarray, np.ndarray]:
    """Pixels uint8 (height, width, 3) and the mask, bool (height, width): grey values above 127.

    Raises:
      ValueError: a file cannot be read, or the two differ in size.
    """
    try:
        pixels, grey = np.asarray(decode(image, 3)), np.asarray(decode(mask, 1))
    except Exception as error:  # Pillow raises errors of any type
        raise ValueError(f"{image}: {' '.join(str(error).split())}") from error
    expect(grey.shape == pixels.shape[:2], str(mask), f"the size of its image, {pixels.shape[:2]}", grey.shape)
    return pixels, grey > 127


def make_crops(args: Args) -> dict[str, Any]:
    """Images, labels, and of each crop the frame and its first row and column, by split; writes the file.

    Raises:
      UserError: frames are missing, or some cannot be read; all are named.
    """
    arrays: dict[str, np.ndarray] = {"class_names": np.array(CLASSES)}
    bad: list[str] = []
    for order, split in enumerate(SPLITS):
        rng, rows = np.random.default_rng((args.seed, order)), []
        few: Counter[str] = Counter()
        for image, mask in tqdm(find_frames(args.folder, split), desc=split, unit="frame", disable=None):
            try:
                pixels, covered = read_frame(image, mask)
                kinds = draw_crops(covered, args.size, args.each, rng, args.least)
            except ValueError as error:
                bad.append(str(error))
                continue
            for label, crops in zip((1, 0), kinds, strict=True):
                few[CLASSES[label]] += len(crops) < args.each
                for top, left, _ in crops:
                    crop = pixels[top : top + args.size, left : left + args.size]
                    rows.append((crop, label, image.name, (top, left)))
        if rows:
            columns = dict(zip(("images", "labels", "frames", "places"), zip(*rows, strict=True), strict=True))
            arrays |= {f"{split}_{name}": np.array(column) for name, column in columns.items()}
            arrays[f"{split}_labels"] = arrays[f"{split}_labels"].astype(np.int32)
            counts = np.bincount(arrays[f"{split}_labels"], minlength=2)
            fewer = ", ".join(f"{n} frames with fewer than {args.each} of {name}" for name, n in few.items() if n)
            print(f"{split}: {counts[1]} crops with a polyp, {counts[0]} without; {fewer or 'no frame with fewer'}")
    if bad:
        more = [f"and {len(bad) - _SHOWN} more"] if len(bad) > _SHOWN else []
        raise UserError("\n".join([f"{len(bad)} frames cannot be used:", *bad[:_SHOWN], *more]))
    for split in SPLITS:
        labels = arrays.get(f"{split}_labels", np.zeros(0, np.int32))
        expect(len(np.unique(labels)) == 2, split, "crops of both classes", np.unique(labels).tolist())
    print("There are no patients in Kvasir-SEG: near-duplicate frames may lie on both sides of the published split.")
    with writing_to(args.out.parent):
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(args.out) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return arrays


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    args = tyro.cli(Args, args=argv, prog="python -m experiments.crops")
    check_integer("--each", args.each, 1)
    make_crops(args)


if __name__ == "__main__":
    run_main(main)
