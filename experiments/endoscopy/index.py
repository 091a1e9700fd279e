"""Makes the index of a dataset of polyps: `python -m experiments.index COMMAND`."""

import os
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Annotated, Any

import tyro
from tqdm import tqdm

from experiments.errors import StopRequested, UserError, run_main
from experiments.run_folder import RunFolder, writing_to
from fsg_jax._files import check_file, digest, read_json, write_json
from fsg_jax.endoscopy.index.label_codes import LABELS
from fsg_jax.endoscopy.index.schema import read_index, write_index
from fsg_jax.endoscopy.readers.indexing import INDEX, build_index
from fsg_jax.endoscopy.readers.kvasir import CSV_FILE, JSON_FILES, open_kvasir
from fsg_jax.endoscopy.readers.layout import Layout
from fsg_jax.endoscopy.readers.real_colon import open_real_colon
from fsg_jax.endoscopy.readers.reference_lists import export_lists, read_lists
from fsg_jax.endoscopy.readers.reports import DROPPED, NOTED, write_reports
from fsg_jax.endoscopy.readers.sizes import read_patients
from fsg_jax.endoscopy.readers.sun import SIZES, open_sun
from fsg_jax.endoscopy.readers.verify import Verify

SUMMARY = "summary.json"
WORKERS = min(os.cpu_count() or 1, 4)
Root = Annotated[Path, tyro.conf.Positional]
app = tyro.extras.SubcommandApp()


@app.command(name="real-colon")
def index_real_colon(
    root: Root,
    out: Path,
    workers: int = WORKERS,
    verify: Verify = "decode",
    name: str = "real_colon",
    patients: Path | None = None,
) -> None:
    """Index REAL-Colon as distributed.

    Args:
        root: Holds *_frames, *_annotations, lesion_info.csv and video_info.csv.
        out: Folder of the index; an interrupted command continues there.
        workers: Processes; each takes about 250 MB.
        verify: Frames with a box: decode them, check their header and end, or do not look at them.
        name: The dataset's name in the index.
        patients: CSV with columns video_id, patient_id; by default each video is a patient.
    """
    layout = open_real_colon(root, name=name, verify=verify, patients=read_patients(patients) if patients else {})
    _index("real-colon", layout, [root / "lesion_info.csv", root / "video_info.csv", patients], out, workers)


@app.command(name="sun")
def index_sun(
    root: Root,
    out: Path,
    sizes: Path | None = None,
    labels: Path | None = None,
    workers: int = WORKERS,
    verify: Verify = "decode",
    name: str = "sun",
    patients: Path | None = None,
) -> None:
    """Index SUN (Misawa et al. 2021) as distributed, or with renamed frames.

    Args:
        root: Holds sundatabase_positive_part*/ or case*/ or renamed/, and annotation_txt/ there or in a part.
        out: Folder of the index; an interrupted command continues there.
        sizes: CSV with columns ID, Size; by default metadata/sun_dataset_labels.csv under the root.
        labels: CSV with columns case, histology, site; by default they are not known.
        workers: Processes; each takes about 250 MB.
        verify: Frames with a box: decode them, check their header and end, or read their size only.
        name: The dataset's name in the index.
        patients: CSV with columns video_id, patient_id, the video being the case number; by default each is a patient.
    """
    known = read_patients(patients) if patients else {}
    layout = open_sun(root, sizes=sizes, labels=labels, name=name, verify=verify, patients=known)
    _index("sun", layout, [sizes or root / SIZES, patients], out, workers, labels)


@app.command(name="kvasir")
def index_kvasir(
    root: Root, out: Path, workers: int = WORKERS, verify: Verify = "decode", name: str = "kvasir_seg"
) -> None:
    """Index Kvasir-SEG, which has boxes and masks but no sizes.

    Args:
        root: Holds images/, masks/ and kavsir_bboxes.json, or resized frames and index.csv.
        out: Folder of the index; an interrupted command continues there.
        workers: Processes; each takes about 250 MB.
        verify: Frames: decode them, check their header and end, or read their size only.
        name: The dataset's name in the index.
    """
    layout = open_kvasir(root, name=name, verify=verify)
    _index("kvasir", layout, [root / file for file in (CSV_FILE, *JSON_FILES)], out, workers)


@app.command
def export(index: Root, out: Path) -> None:
    """Write an index as the CSV lists of the reference code.

    Args:
        index: Folder of an index.
        out: Folder of the lists, polypsizing_{real,sun}_part*.csv.
    """
    table, _ = read_index(index)
    if not len(table):
        raise UserError(f"{index}: expected an index with rows, found none")
    with writing_to(out):
        paths = export_lists(table, out)
    print(f"{len(table)} rows in {len(paths)} lists, in {out}")


@app.command
def import_lists(lists: Annotated[tuple[Path, ...], tyro.conf.Positional], root: tuple[str, ...], out: Path) -> None:
    """Make an index from the CSV lists of the reference code; the images are not looked at.

    Args:
        lists: The polypsizing_*.csv.
        root: DATASET=FOLDER, with DATASET real_colon or sun, for each dataset in the lists.
        out: Folder of the index.
    """
    roots = _roots(root)
    if not lists:
        raise UserError("lists: expected the paths of polypsizing_*.csv, found none")
    config: dict[str, Any] = {"index": "import-lists", "root": {name: str(path) for name, path in roots.items()}}
    for path in lists:
        check_file(path)
    config["tables"] = {str(path.resolve()): digest(path) for path in lists}
    with RunFolder(out, config, resume=True):
        started = time.monotonic()
        table, events = read_lists(lists, roots)
        with writing_to(out):
            dropped, notes = write_reports(events, out)
            found = set(table.column("dataset").unique().to_pylist())
            write_index(table, out / INDEX, {name: str(path) for name, path in roots.items() if name in found})
        counts = {"lists": len(lists), "rows": len(table), "dropped": dropped, "notes": notes}
        counts |= {"synthetic": any(table.column("synthetic").to_pylist())}
        _finish(out, counts | {"seconds": round(time.monotonic() - started, 2)}, len(lists))


def _index(
    command: str, layout: Layout, tables: list[Path | None], out: Path, workers: int, labels: Path | None = None
) -> None:
    """Indexes a dataset; `tables`, those of them that exist, and `labels` are part of what the folder is for."""
    config: dict[str, Any] = {"index": command, "root": str(layout.root), "name": layout.name, "verify": layout.verify}
    digests = {path.name: digest(path) for path in tables if path is not None and path.exists()}
    config |= {"synthetic": layout.synthetic, "tables": digests} | ({"labels": digest(labels)} if labels else {})
    with RunFolder(out, config, resume=True):
        if (out / SUMMARY).exists():
            print(f"{out} holds the finished index already; remove it, or choose another --out, to index again\n")
            if not (counts := read_json(out / SUMMARY)).keys() >= LABELS.keys():
                print(
                    "it was made by an earlier version, which did not read histology and site: they are empty in it\n"
                )
            return _print(counts)
        with tqdm(total=layout.count_files(), unit=" files", disable=None) as bar:
            try:
                counts = build_index(layout, out, workers=workers, progress=bar.update)
            except BrokenProcessPool as error:
                raise UserError(
                    f"a worker process was killed ({error}); the same command continues in {out}"
                ) from error
            except KeyboardInterrupt:
                raise StopRequested(f"stopped; the same command continues in {out}") from None
        _finish(out, counts, counts["files"])


def _finish(out: Path, counts: dict[str, Any], files: int) -> None:
    """Marks the index, of so many `files`, as finished.

    Raises:
      UserError: it has no rows; then it is removed.
    """
    if not counts["rows"]:
        (out / INDEX).unlink()
        reasons = [f"{times} {reason}" for reason, times in list(counts["dropped"].items())[:3]]
        found = f"none in {files} files (dropped: {', '.join(reasons) or 'nothing'})"
        raise UserError(f"{out}: expected an index with rows, found {found}; see {DROPPED} and {NOTED} there")
    with writing_to(out):
        write_json(out / SUMMARY, counts)
    _print(counts)


def _print(counts: dict[str, Any]) -> None:
    groups = {"indexed": counts} | {f"polyps by {name}": counts[name] for name in LABELS if name in counts}
    for title, group in (groups | {"dropped": counts["dropped"], "noted": counts["notes"]}).items():
        print(title)
        rows = [(key, value) for key, value in group.items() if not isinstance(value, dict)]
        for key, value in rows or [("nothing", "")]:
            print(f"  {key.replace('_', ' '):<52} {value}")


def _roots(texts: tuple[str, ...]) -> dict[str, Path]:
    roots = {}
    for text in texts:
        name, _, folder = text.partition("=")
        if name not in ("real_colon", "sun") or not folder or not Path(folder).is_dir():
            raise UserError(f"--root: expected real_colon=FOLDER or sun=FOLDER with a folder that exists, found {text}")
        roots[name] = Path(folder).resolve()
    return roots


def main() -> None:
    """Command line."""
    app.cli(prog="python -m experiments.index", description="Make the index of a dataset of polyps.")


if __name__ == "__main__":
    run_main(main)
