"""Seals indexes and files of folds anew after a wanted edit: `python -m experiments.seal FILE...`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from experiments.errors import UserError, run_main
from experiments.run_folder import writing_to
from fsg_jax.endoscopy.index.schema import seal_index
from fsg_jax.endoscopy.index.split_files import seal_folds


@dataclass(frozen=True)
class SealArgs:
    """Records the digest of files as they are now; what reads them later refuses them if they have changed since."""

    files: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Indexes (index.parquet or its folder), which are written anew, and files of folds (.csv)."""
    root: tuple[str, ...] = ()
    """DATASET=FOLDER, for an index that another program wrote without the folders of its datasets."""


def main(argv: Sequence[str] | None = None) -> None:
    """Seals every file and prints its path.

    Raises:
      UserError: a root is no DATASET=FOLDER, or a file cannot be written.
      FileNotFoundError: there is no such file.
      ValueError: a file is no index and no file of folds.
    """
    args = tyro.cli(SealArgs, args=argv, prog="python -m experiments.seal")
    roots = {}
    for text in args.root:
        name, _, folder = text.partition("=")
        if not name or not Path(folder).is_dir() or not folder:
            raise UserError(f"--root: expected DATASET=FOLDER with a folder that exists, found {text!r}")
        roots[name] = str(Path(folder).resolve())
    for path in args.files:
        with writing_to(path.parent):
            if path.suffix == ".csv":
                seal_folds(path)
            else:
                seal_index(path, roots)
        print(f"sealed {path}")


if __name__ == "__main__":
    run_main(main)
