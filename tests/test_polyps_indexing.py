"""Indexing: any order of folders, any number of workers, killed or not, gives one index; lists out and in."""

import csv
import json
import os
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from experiments.endoscopy import index as command
from experiments.errors import UserError
from experiments.run_folder import RunFolder
from fsg_jax._files import BusyError
from fsg_jax.endoscopy.index.schema import read_index, write_index
from fsg_jax.endoscopy.readers import real_colon
from fsg_jax.endoscopy.readers.indexing import build_index
from fsg_jax.endoscopy.readers.parallel import map_bounded
from fsg_jax.endoscopy.readers.real_colon import open_real_colon
from fsg_jax.endoscopy.readers.reference_lists import LIST_COLUMNS, export_lists, read_lists
from fsg_jax.endoscopy.readers.reports import Note, Reason
from fsg_jax.endoscopy.readers.sun import open_sun
from tests.polyp_files import sun_image, write_csv, write_lesions, write_real_colon, write_sun, xml_text

OUTPUTS = ("index.parquet", "dropped.csv", "notes.csv")


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("roots")
    return {"real_colon": write_real_colon(folder / "real"), "sun": write_sun(folder / "sun")}


@pytest.fixture(scope="module")
def indexes(roots, tmp_path_factory) -> dict[str, Path]:
    out = {name: tmp_path_factory.mktemp(name) for name in roots}
    build_index(open_real_colon(roots["real_colon"]), out["real_colon"])
    build_index(open_sun(roots["sun"]), out["sun"])
    return out


def contents(out: Path) -> list[bytes]:
    return [(out / name).read_bytes() for name in OUTPUTS]


def test_the_order_of_folders_and_the_size_of_chunks_change_nothing(roots, indexes, tmp_path, monkeypatch):
    monkeypatch.setattr(real_colon, "FILES_PER_CHUNK", 4)
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: sorted(listdir(path), reverse=True))
    for name, opened in (("real_colon", open_real_colon), ("sun", open_sun)):
        (tmp_path / name).mkdir()
        build_index(opened(roots[name]), tmp_path / name)
        assert contents(tmp_path / name) == contents(indexes[name])
    assert len(list((tmp_path / "real_colon" / "parts").glob("001-001.0*.json"))) == 2


def test_natural_order(indexes):
    for name, last in (("real_colon", "002-010_1"), ("sun", "10")):
        table = read_index(indexes[name])[0]
        assert table.column("polyp_id")[-1].as_py() == last


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop_columns(["frame_id"]), r"expected columns \['frame_id'\], found \['dataset', "),
        (
            lambda t: t.set_column(0, "dataset", pa.nulls(len(t), pa.string())),
            r"empty values in .*, found some in \['dat",
        ),
        (lambda t: t.set_column(7, "width", t.column("image_path")), "expected the types of an index, found"),
        (lambda t: t.replace_schema_metadata(None), "expected an index of polyps, found TypeError"),
    ],
)
def test_an_index_of_other_columns_is_refused(indexes, tmp_path, change, message):
    table = pa.parquet.read_table(indexes["sun"] / "index.parquet")
    path = tmp_path / "index.parquet"
    pa.parquet.write_table(change(table), path)
    with pytest.raises(ValueError, match=rf"index\.parquet: .*{message}"):
        read_index(path)


def test_indexes_that_cannot_be_read(indexes, tmp_path):
    with pytest.raises(ValueError, match="expected at least one path, found none"):
        read_index()
    with pytest.raises(FileNotFoundError, match=r"index\.parquet: no such file; expected an index"):
        read_index(tmp_path)
    with pytest.raises(ValueError, match="expected each dataset in one index, found 'sun' again"):
        read_index(indexes["sun"], indexes["real_colon"], indexes["sun"])
    (tmp_path / "index.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"index\.parquet: expected an index of polyps, found ArrowInvalid"):
        read_index(tmp_path)
    with pytest.raises(ValueError, match=r"roots: expected the folder of every dataset, found none for \['sun'\]"):
        write_index(read_index(indexes["sun"])[0], tmp_path / "other.parquet", {"real_colon": "/data"})
    assert not (tmp_path / "other.parquet").exists()


def test_an_interrupted_index_goes_on_where_it_was(roots, indexes, tmp_path):
    class Stop(Exception):
        pass

    def stop(files: int) -> None:
        raise Stop

    with pytest.raises(Stop):
        build_index(open_real_colon(roots["real_colon"]), tmp_path, progress=stop)
    first = tmp_path / "parts" / "001-001.00000.json"
    written = first.stat().st_mtime_ns
    assert not (tmp_path / "index.parquet").exists()
    counts = build_index(open_real_colon(roots["real_colon"]), tmp_path)
    assert (counts["files"], counts["files_read_now"]) == (12, 6)
    assert first.stat().st_mtime_ns == written
    assert contents(tmp_path) == contents(indexes["real_colon"])


def test_changed_and_damaged_parts_are_read_again(tmp_path):
    root, out = write_real_colon(tmp_path / "root"), tmp_path / "out"
    before = build_index(open_real_colon(root), out)
    (root / "001-001_annotations" / "001-001_1.xml").write_text(xml_text([("001-001_2", (1, 2, 30, 40))]))
    after = build_index(open_real_colon(root), out)
    assert (before["rows"], after["rows"], after["files_read_now"]) == (11, 11, 6)
    assert [row["polyp_id"] for row in read_index(out)[0].to_pylist()].count("001-001_2") == 4
    good = contents(out)
    part = out / "parts" / "001-001.00000.json"
    part.write_bytes(part.read_bytes()[:-9])
    older = out / "parts" / "002-010.00000.json"  # an older version kept the rows in a file of their own
    older.write_text(
        json.dumps({name: value for name, value in json.loads(older.read_text()).items() if name != "rows"})
    )
    assert build_index(open_real_colon(root), out)["files_read_now"] == 12
    assert contents(out) == good


@pytest.mark.slow
def test_workers(roots, indexes, tmp_path):
    seen = []
    counts = build_index(open_sun(roots["sun"]), tmp_path, workers=2, progress=seen.append)
    assert (sum(seen), counts["files"]) == (3, 3)
    assert contents(tmp_path) == contents(indexes["sun"])


def test_the_map_looks_ahead_a_little_and_stops_at_an_error():
    taken = []
    results = map_bounded(abs, (taken.append(n) or n for n in range(100)), workers=1)
    assert next(results) == 0
    assert len(taken) == 1
    with pytest.raises(ValueError, match="workers: expected an integer >= 1, found 0"):
        next(map_bounded(abs, [1], workers=0))


def call(monkeypatch: pytest.MonkeyPatch, *args: object) -> None:
    monkeypatch.setattr(sys, "argv", ["index", *map(str, args)])
    command.main()


def test_the_command_indexes_and_tells_what_was_dropped(tmp_path, monkeypatch, capsys):
    root, out = write_real_colon(tmp_path / "root"), tmp_path / "out"
    (root / "002-010_annotations" / "002-010_4.xml").write_bytes(b"")
    call(monkeypatch, "real-colon", root, "--out", out, "--workers", 1)
    assert [line.split() for line in capsys.readouterr().out.splitlines() if "zero-byte" in line] == [
        ["zero-byte", "file", "1"]
    ]
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["rows"], summary["dropped"]) == (10, {"zero-byte file": 1})
    with (out / "dropped.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [
            {
                "file": "002-010_annotations/002-010_4.xml",
                "item": "",
                "reason": "zero-byte file",
                "detail": "no bytes",
            }
        ]


def test_a_finished_index_is_not_built_again(roots, tmp_path, monkeypatch, capsys):
    args = ("sun", roots["sun"], "--out", tmp_path, "--workers", 1)
    call(monkeypatch, *args)
    before = (tmp_path / "index.parquet").stat().st_mtime_ns
    call(monkeypatch, *args)
    assert "holds the finished index already" in capsys.readouterr().out
    assert (tmp_path / "index.parquet").stat().st_mtime_ns == before


def test_another_dataset_or_other_options_in_one_folder_are_refused(roots, tmp_path, monkeypatch):
    root, out = write_real_colon(tmp_path / "root"), tmp_path / "out"
    call(monkeypatch, "real-colon", root, "--out", out, "--workers", 1)
    with pytest.raises(UserError, match=r"differ in root: .*there, .*now"):
        call(monkeypatch, "real-colon", roots["real_colon"], "--out", out)
    with pytest.raises(UserError, match="verify: 'decode' there, 'header' now"):
        call(monkeypatch, "real-colon", root, "--out", out, "--verify", "header")
    write_lesions(root, {"001-001_1": "99"})
    with pytest.raises(UserError, match=r"tables.lesion_info.csv: "):
        call(monkeypatch, "real-colon", root, "--out", out)
    with pytest.raises(UserError, match=r"expected an empty folder or config\.json in it"):
        call(monkeypatch, "real-colon", root, "--out", roots["sun"])


def test_two_at_once_on_one_folder(roots, tmp_path, monkeypatch):
    out = tmp_path / "out"
    call(monkeypatch, "sun", roots["sun"], "--out", out, "--workers", 1)
    config = json.loads((out / "config.json").read_text())
    with RunFolder(out, config, resume=True), pytest.raises(BusyError, match="in use by another process"):
        call(monkeypatch, "sun", roots["sun"], "--out", out, "--workers", 1)


def as_lists(table: pa.Table) -> pa.Table:
    """Without what the lists cannot hold."""
    return table.drop_columns(["size_censored", "patient_id", "histology", "site"])


@pytest.mark.parametrize("name", ["real_colon", "sun"])
def test_lists_out_and_in_again(indexes, roots, tmp_path, name, monkeypatch):
    monkeypatch.setattr("fsg_jax.endoscopy.readers.reference_lists.ROWS_PER_PART", 4)
    table, _ = read_index(indexes[name])
    paths = export_lists(table, tmp_path)
    assert [path.name for path in paths] == [f"polypsizing_{name[:4].rstrip('_')}_part{k}.csv" for k in (1, 2, 3)]
    with paths[0].open(newline="") as file:
        header, first = list(csv.reader(file))[:2]
    assert tuple(header) == LIST_COLUMNS
    frame = "001-001_frames/001-001_1.jpg" if name == "real_colon" else sun_image(Path(), "1", 1).as_posix()
    expected = {
        "real_colon": f"REALC 001-001_1 1 5 31 6 28 64 48 $REAL_COLON_PATH/{frame} 4.0",
        "sun": f"SUN 1 1 4 34 5 30 64 48 $SUN_DATA_PATH/{frame} 3.0",
    }
    assert " ".join(first) == expected[name]
    back, events = read_lists(list(reversed(paths)), {name: roots[name]})
    assert events == []
    assert as_lists(back).equals(as_lists(table))
    with pytest.raises(FileExistsError, match="expected a folder without lists"):
        export_lists(table, tmp_path)


GOOD = ["SUN", "1", "001", "1", "30", "2", "40", "64", "48", "$SUN_DATA_PATH/renamed/case1/image_001.jpg", "3.0"]
LIST_FAULTS = [
    ("gt", "", Reason.NO_SIZE),
    ("gt", "large", Reason.SIZE_TEXT),
    ("unique_id", "", Reason.NO_ID),
    ("bbox_xmin", "x", Reason.COORDINATE),
    ("bbox_xmin", "31", Reason.SWAPPED),
    ("bbox_ymin", "40", Reason.EMPTY_BOX),
    ("bbox_xmax", "-1", Reason.SWAPPED),
    ("width", "", Reason.FRAME_SIZE),
    ("width", "1", Reason.OUTSIDE),
    ("frame_path", "$REAL_COLON_PATH/a.jpg", Reason.FRAME_PATH),
    ("frame_path", "$SUN_DATA_PATH/../a.jpg", Reason.FRAME_PATH),
    ("frame_path", "/elsewhere/a.jpg", Reason.FRAME_PATH),
    ("frame_path", "", Reason.FRAME_PATH),
    ("bbox_xmax", "99", Note.CLIPPED),
]


@pytest.mark.parametrize(("column", "value", "reason"), LIST_FAULTS)
def test_a_fault_in_a_list(tmp_path, roots, column, value, reason):
    bad = [value if name == column else cell for name, cell in zip(LIST_COLUMNS, GOOD, strict=True)]
    other = ["SUN", "2", *GOOD[2:]]
    path = tmp_path / "polypsizing_sun_part1.csv"
    write_csv(path, LIST_COLUMNS, [bad, other, other])
    table, events = read_lists([path], {"sun": roots["sun"]})
    assert [event[:3] for event in events] == [
        (path.name, "line 2", reason),
        (path.name, "line 4", Reason.DUPLICATE_BOX),
    ]
    kept = table.filter(pa.compute.equal(table.column("polyp_id"), "2")).to_pylist()
    assert [(row["frame_id"], row["image_path"]) for row in kept] == [("1", "renamed/case1/image_001.jpg")]
    assert len(table) == 1 + (reason is Note.CLIPPED)


def test_lists_that_cannot_be_used(tmp_path, roots, indexes):
    path = tmp_path / "polypsizing_sun_part1.csv"
    write_csv(path, LIST_COLUMNS, [GOOD])
    with pytest.raises(ValueError, match=r"line 2: expected a row of \[\'real_colon\'\], found one of sun"):
        read_lists([path], {"real_colon": roots["real_colon"]})
    write_csv(path, LIST_COLUMNS, [["Kvasir", *GOOD[1:]]])
    with pytest.raises(ValueError, match="line 2: database: expected a name with REAL or SUN in it, found 'Kvasir'"):
        read_lists([path], {"sun": roots["sun"]})
    write_csv(path, LIST_COLUMNS[:-1], [])
    with pytest.raises(ValueError, match=r"expected columns \['gt'\], found"):
        read_lists([path], {"sun": roots["sun"]})
    table, _ = read_index(indexes["sun"])
    names = pa.array(["sun"] * 6 + ["other_sun"] * 6)
    with pytest.raises(ValueError, match="expected at most one REAL-Colon and one SUN"):
        export_lists(table.set_column(0, "dataset", names), tmp_path / "out")
    empty = pa.nulls(len(table), pa.float32())
    with pytest.raises(ValueError, match="expected a size for every polyp"):
        export_lists(table.set_column(table.column_names.index("size_mm"), "size_mm", empty), tmp_path / "out")


def test_the_commands_for_lists(roots, indexes, tmp_path, monkeypatch, capsys):
    for name in indexes:
        call(monkeypatch, "export", indexes[name], "--out", tmp_path / name)
    lists = [path for name in indexes for path in (tmp_path / name).iterdir()]
    given = [f"{name}={root}" for name, root in roots.items()]
    call(monkeypatch, "import-lists", *lists, "--root", *given, "--out", tmp_path / "both")
    table, found = read_index(tmp_path / "both")
    assert (len(table), found) == (23, roots)
    assert "rows                                                 23" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"expected real_colon=FOLDER or sun=FOLDER .*, found nowhere=/"):
        call(monkeypatch, "import-lists", *lists, "--root", "nowhere=/", "--out", tmp_path / "x")
