"""`python -m experiments.split INDEX... --out splits.csv`: deals the polyps of indexes to folds, or imports folds."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from experiments.errors import UserError, run_main
from experiments.run_folder import writing_to
from fsg_jax.endoscopy.index.folds import SIZE_GROUPS, FoldCount, Folds, group_counts, make_folds, name_some
from fsg_jax.endoscopy.index.roles import roles
from fsg_jax.endoscopy.index.schema import Table, read_index
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
    _check(args)
    table, _ = read_index(*args.index)
    imported = _import(args, table)
    folds = make_folds(table, args.folds, args.group, args.seed) if imported is None else imported.folds
    kept = table if imported is None else keep_listed(table, folds)
    counts = group_counts(kept, folds)
    shared = [roles(kept, folds, fold).shared for fold in range(folds.num_folds)]
    written = _write(folds, args.out)
    if any(table.column("synthetic").to_pylist()):
        yield "SYNTHETIC: the index has polyps that are made up"
    yield from _count_lines(counts, folds)
    frames = len(set(zip(*(kept.column(name).to_pylist() for name in ("dataset", "image_path")), strict=True)))
    if sum(count.frames for count in counts) > frames:
        yield f"note: of {frames} frames, those with polyps of several folds or size groups are counted in each"
    for fold, found in enumerate(shared):
        if any(found):
            yield (
                f"fold {fold}: roles share {found.patients} patients, {found.videos} videos and {found.frames} frames"
            )
    yield from [] if imported is None else _import_lines(imported)
    yield f"{len(folds.fold_of)} polyps, kept together by {folds.group}, {written} {args.out}"


def _check(args: SplitArgs) -> None:
    if not args.index:
        raise UserError("expected the path of an index, found none")
    if args.official is not None and args.audit is not None:
        raise UserError("--official and --audit each bring folds; expected one of them")
    listed = args.official is not None or args.audit is not None
    own = (args.folds, args.group, args.seed) != (SplitArgs.folds, SplitArgs.group, SplitArgs.seed)
    if listed and own:
        raise UserError("--folds, --group and --seed have no effect on folds from a list; leave them out")
    if args.drop_unlisted and not listed:
        raise UserError("--drop-unlisted is for --official and --audit; folds that are made have every polyp")


def _import(args: SplitArgs, table: Table) -> ImportedFolds | None:
    if args.official is not None:
        return import_official(args.official, table, drop_unlisted=args.drop_unlisted)
    if args.audit is not None:
        return import_audit(args.audit, table, drop_unlisted=args.drop_unlisted)
    return None


def _write(folds: Folds, out: Path) -> str:
    if out.exists():
        if read_folds(out) != folds:
            raise UserError(f"{out} holds other folds; remove it, or choose another --out")
        return "are in"
    with writing_to(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_folds(folds, out)
    return "written to"


def _count_lines(counts: Sequence[FoldCount], folds: Folds) -> Iterator[str]:
    """A line a fold with polyps / frames of every size group, and one for all folds."""
    yield "polyps / frames".ljust(16) + "".join(name.rjust(18) for name in (*SIZE_GROUPS, "all"))
    for fold in [*range(folds.num_folds), None]:
        here = [count for count in counts if fold in (None, count.fold)]
        cells = [[count for count in here if count.size_group == name] for name in SIZE_GROUPS]
        title = "all" if fold is None else f"fold {fold}"
        yield title.ljust(16) + "".join(_sum(cell).rjust(18) for cell in (*cells, here))
    for count in counts:
        if not count.polyps:
            yield f"note: fold {count.fold} has no polyp of {count.size_group}"


def _sum(counts: Sequence[FoldCount]) -> str:
    return f"{sum(count.polyps for count in counts)} / {sum(count.frames for count in counts)}"


def _import_lines(imported: ImportedFolds) -> Iterator[str]:
    for name, number in imported.report.items():
        yield f"{name}: {number}"
    if imported.unlisted:
        yield f"dropped: {name_some(list(imported.unlisted), 20)}"


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command and prints the report."""
    for line in split(tyro.cli(SplitArgs, args=argv, prog="python -m experiments.split")):
        print(line)


if __name__ == "__main__":
    run_main(main)
