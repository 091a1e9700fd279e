"""Deals the polyps of indexes to folds, or imports folds: `python -m experiments.split INDEX... --out splits.csv`."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro

from experiments.errors import UserError, run_main
from experiments.run_folder import writing_to
from fsg_jax.endoscopy.index.folds import SIZE_GROUPS, FoldCount, Folds, group_counts, make_folds, name_some
from fsg_jax.endoscopy.index.roles import roles
from fsg_jax.endoscopy.index.schema import read_index
from fsg_jax.endoscopy.index.split_files import (
    ImportedFolds,
    import_audit,
    import_official,
    keep_listed,
    read_folds,
    write_folds,
)


@dataclass(frozen=True)
class SplitArgs:
    """Writes the fold of every polyp; for fold k, k tests, the one after it validates, and the rest train."""

    index: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Indexes of polyp boxes: files, or folders that hold index.parquet."""
    out: Path
    """CSV of the folds."""
    folds: int = 6
    """Number of folds, 3 or more."""
    group: Literal["patient", "video", "polyp"] = "patient"
    """What is kept in one fold; ``polyp`` is the reference's way, and lets a patient be in several."""
    seed: int = 1
    """Of the shuffle."""
    official: Path | None = None
    """Take the folds of the reference's kfold_polypsizing_lists_per_object.csv instead."""
    audit: Path | None = None
    """Take those of the MICCAI 2026 audit's fold_assignments.csv instead."""
    drop_unlisted: bool = False
    """Leave out polyps that such a list lacks; otherwise they are an error."""


def split(args: SplitArgs) -> Iterator[str]:
    """Writes the file and yields the lines of the report.

    Raises:
      UserError: the options contradict each other, or `out` holds other folds or cannot be written.
      FileNotFoundError: a file is missing.
      ValueError: an index or list is damaged, or there are too few polyps for the folds.
    """
    lists = _lists(args)
    table, _ = read_index(*args.index)
    imported = next((read(path, table, drop_unlisted=args.drop_unlisted) for read, path in lists), None)
    folds = make_folds(table, args.folds, args.group, args.seed) if imported is None else imported.folds
    kept = table if imported is None else keep_listed(table, folds)
    counts = group_counts(kept, folds)
    shared = [roles(kept, folds, fold).shared for fold in range(folds.num_folds)]
    written = _write(folds, args.out)
    if any(table.column("synthetic").to_pylist()):
        yield "SYNTHETIC: the index has polyps that are made up"
    yield from _count_lines(counts, folds.num_folds)
    frames = len(kept.group_by(["dataset", "image_path"]).aggregate([]))
    if sum(count.frames for count in counts) > frames:
        yield f"note: of {frames} frames, those with polyps of several folds or size groups are counted in each"
    for fold, found in enumerate(shared):
        if any(found):
            yield f"fold {fold}: roles share " + "{} patients, {} videos and {} frames".format(*found)
    if imported is not None:
        yield from (f"{name}: {number}" for name, number in imported.report.items())
        if imported.unlisted:
            yield f"dropped: {name_some(list(imported.unlisted), 20)}"
    yield f"{len(folds.fold_of)} polyps, kept together by {folds.group}, {written} {args.out}"


def _lists(args: SplitArgs) -> list[tuple[Callable[..., ImportedFolds], Path]]:
    """The list that brings the folds and what reads it; none if they are made.

    Raises:
      UserError: the options contradict each other.
    """
    lists = [(import_official, args.official), (import_audit, args.audit)]
    given = [(read, path) for read, path in lists if path is not None]
    if len(given) > 1:
        raise UserError("--official, --audit: expected one of them, found both")
    own = [name for name in ("folds", "group", "seed") if getattr(args, name) != getattr(SplitArgs, name)]
    if given and own:
        raise UserError(f"--{own[0]}: expected it only for folds that are made, found it with folds from a list")
    if args.drop_unlisted and not given:
        raise UserError("--drop-unlisted: expected it with --official or --audit, found neither")
    return given


def _write(folds: Folds, out: Path) -> str:
    if out.exists():
        if read_folds(out) != folds:
            raise UserError(f"--out: expected a new file or the same folds, found other folds in {out}")
        return "are in"
    with writing_to(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_folds(folds, out)
    return "written to"


def _count_lines(counts: Sequence[FoldCount], num_folds: int) -> Iterator[str]:
    """A line a fold with polyps / frames of every size group, and one for all folds."""
    cells = np.array([(count.polyps, count.frames) for count in counts]).reshape(num_folds, len(SIZE_GROUPS), 2)
    cells = np.concatenate([cells, cells.sum(axis=1, keepdims=True)], axis=1)
    cells = np.concatenate([cells, cells.sum(axis=0, keepdims=True)])
    titles = ["polyps / frames", *(f"fold {fold}" for fold in range(num_folds)), "all"]
    rows = [(*SIZE_GROUPS, "all"), *([f"{polyps} / {frames}" for polyps, frames in row] for row in cells)]
    for title, row in zip(titles, rows, strict=True):
        yield title.ljust(16) + "".join(text.rjust(18) for text in row)
    yield from (f"note: fold {count.fold} has no polyp of {count.size_group}" for count in counts if not count.polyps)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command and prints the report."""
    for line in split(tyro.cli(SplitArgs, args=argv, prog="python -m experiments.split")):
        print(line)


if __name__ == "__main__":
    run_main(main)
