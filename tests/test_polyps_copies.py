"""Datasets as computers leave them: copied by a Mac, saved again by pandas or Excel, doubled, huge, with pipes."""

import csv
import json
import os
import re
import shutil
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments.endoscopy import index as command
from experiments.errors import run_main
from fsg_jax.endoscopy.index import csv_rows
from fsg_jax.endoscopy.index.csv_rows import plain_id, read_rows
from fsg_jax.endoscopy.index.schema import read_index
from fsg_jax.endoscopy.readers.indexing import build_index
from fsg_jax.endoscopy.readers.kvasir import open_kvasir
from fsg_jax.endoscopy.readers.real_colon import open_real_colon
from fsg_jax.endoscopy.readers.reference_lists import LIST_COLUMNS, read_lists
from fsg_jax.endoscopy.readers.reports import Note, Reason, RefusedError
from fsg_jax.endoscopy.readers.sizes import Size, read_patients, read_sizes
from fsg_jax.endoscopy.readers.sun import MAX_BYTES, open_sun
from fsg_jax.endoscopy.readers.voc import parse_annotation
from tests.polyp_files import sun_name, write_csv, write_real_colon, write_sun, xml_text
from tests.test_polyps_kvasir import distributed, resized

WRITERS: dict[str, tuple[Callable[[Path], Path], Callable[..., Any]]] = {
    "real_colon": (write_real_colon, open_real_colon),
    "sun": (write_sun, open_sun),
    "sun renamed": (lambda root: write_sun(root, layout="renamed"), open_sun),
    "kvasir": (distributed, open_kvasir),
    "kvasir resized": (resized, open_kvasir),
}


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("originals")
    return {name: write(folder / name) for name, (write, _) in WRITERS.items()}


def copy(originals: dict[str, Path], name: str, to: Path) -> Path:
    return shutil.copytree(originals[name], to / "root")


def index(layout: Any, out: Path) -> tuple[list[dict], dict, list[tuple[str, str, str]]]:
    """Rows, counts and events of an index."""
    counts = build_index(layout, out)
    for name in ("root", "seconds", "files_per_second"):
        counts.pop(name)
    events = []
    for name in ("dropped.csv", "notes.csv"):
        with (out / name).open(newline="", encoding="utf-8") as file:
            events += [(row["file"], row["item"], row["reason"]) for row in csv.DictReader(file)]
    return read_index(out)[0].to_pylist(), counts, events


@pytest.mark.parametrize("name", WRITERS)
def test_files_of_an_operating_system_change_nothing(originals, tmp_path, name):
    opened = WRITERS[name][1]
    root = copy(originals, name, tmp_path)
    folders = [root, *(path for path in root.rglob("*") if path.is_dir())]
    for folder in folders:
        for path in list(folder.iterdir()):
            (folder / f"._{path.name}").write_bytes(b"\0\5\x16\7")
        for extra in (".DS_Store", "Thumbs.db", "desktop.ini", ".hidden.jpg", ".hidden.xml"):
            (folder / extra).write_bytes(b"\0")
        (folder / "__MACOSX").mkdir()
    for folder in [path for path in root.iterdir() if path.is_dir() and path.name != "__MACOSX"]:
        shutil.copytree(folder, root / "__MACOSX" / f"._{folder.name}")
        shutil.copytree(folder, root / f".{folder.name}")
    assert index(opened(root), tmp_path / "b") == index(opened(originals[name]), tmp_path / "a")


# Who holds a file, and what happens to the rest of the dataset if it is a pipe, a folder or a device.
IRREGULAR = [
    ("real_colon", "001-001_annotations/001-001_1.xml", Reason.UNREADABLE_FILE),
    ("real_colon", "001-001_frames/001-001_1.jpg", Reason.UNREADABLE_FRAME),
    ("real_colon", "lesion_info.csv", None),
    ("real_colon", "video_info.csv", None),
    ("sun", "sundatabase_positive_part1/annotation_txt/case1.txt", Reason.UNREADABLE_FILE),
    ("sun", f"sundatabase_positive_part1/case1/{sun_name('1', 1)}", Reason.UNREADABLE_FRAME),
    ("sun", "metadata/sun_dataset_labels.csv", None),
    ("kvasir", "images/a2.jpg", Reason.UNREADABLE_FRAME),
    ("kvasir", "masks/a2.jpg", Note.NO_MASK),
    ("kvasir", "kavsir_bboxes.json", None),
    ("kvasir resized", "index.csv", None),
    ("kvasir", "index.csv", None),
]


@pytest.mark.parametrize("verify", ["decode", "header"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
@pytest.mark.parametrize(("name", "file", "reason"), IRREGULAR, ids=[f"{name} {file}" for name, file, _ in IRREGULAR])
def test_what_is_no_regular_file_is_not_opened(originals, tmp_path, name, file, reason, kind, verify):
    path = copy(originals, name, tmp_path) / file
    path.unlink(missing_ok=True)
    {"pipe": os.mkfifo, "folder": os.mkdir, "device": lambda path: path.symlink_to("/dev/zero")}[kind](path)
    opened = WRITERS[name][1]
    if reason is None:
        with pytest.raises(ValueError, match=rf"{path.name}: expected a regular file, found "):
            opened(tmp_path / "root", verify=verify)
        return
    rows, _, events = index(opened(tmp_path / "root", verify=verify), tmp_path / "out")
    assert rows
    assert reason in {event[2] for event in events if Path(event[0]).name == path.name}


@pytest.mark.parametrize(("name", "file", "reason"), IRREGULAR, ids=[f"{name} {file}" for name, file, _ in IRREGULAR])
def test_a_file_of_terabytes_is_not_read(originals, tmp_path, name, file, reason):
    path = copy(originals, name, tmp_path) / file
    path.touch()
    os.truncate(path, 8 << 40)
    opened = WRITERS[name][1]
    if reason is None:
        with pytest.raises(ValueError, match=rf"{path.name}: expected at most \d+ bytes, found {8 << 40}"):
            opened(tmp_path / "root")
        return
    _, _, events = index(opened(tmp_path / "root"), tmp_path / "out")
    reasons = {event[2] for event in events if Path(event[0]).name == path.name}
    assert reasons & {Reason.LARGE_FILE, Reason.UNREADABLE_FRAME, Note.NO_MASK}


def edit(path: Path, change: Callable[[list[list[str]]], list[list[str]]]) -> None:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    write_csv(path, *(lambda header, *rows: (header, rows))(*change(rows)))


def numbered(rows: list[list[str]], title: str) -> list[list[str]]:
    return [[title if i == 0 else str(i - 1), *row] for i, row in enumerate(rows)]


def floats(rows: list[list[str]]) -> list[list[str]]:
    return [[f"{cell}.0" if cell.isdigit() else cell for cell in row] for row in rows]


def padded(rows: list[list[str]]) -> list[list[str]]:
    return [[*row, "", ""] for row in rows] + [[""] * (len(rows[0]) + 2)] * 3


RESAVED = {
    "an index column": lambda rows: numbered(rows, ""),
    "an index column of a table read again": lambda rows: numbered(numbered(rows, ""), "Unnamed: 0"),
    "floats": floats,
    "empty cells and lines": padded,
    "spaces": lambda rows: [[f" {cell} " for cell in row] for row in rows],
    "all": lambda rows: padded(numbered(floats(rows), "Unnamed: 0")),
}
TABLES = {
    "real_colon": ("lesion_info.csv", "video_info.csv"),
    "sun": ("metadata/sun_dataset_labels.csv",),
    "kvasir resized": ("index.csv",),
}


@pytest.mark.parametrize("change", RESAVED)
@pytest.mark.parametrize("name", TABLES)
def test_tables_saved_again_change_nothing(originals, tmp_path, name, change):
    root = copy(originals, name, tmp_path)
    for table in TABLES[name]:
        edit(root / table, RESAVED[change])
    opened = WRITERS[name][1]
    assert index(opened(root), tmp_path / "b") == index(opened(originals[name]), tmp_path / "a")


def test_ids_and_numbers_of_frames_that_pandas_saved(originals, tmp_path):
    root = copy(originals, "real_colon", tmp_path)
    write_csv(root / "video_info.csv", ("unique_video_name", "num_frames"), [("001-001", "6.0"), ("002-010", "nan")])
    assert index(open_real_colon(root), tmp_path / "out")[2] == []
    write_csv(tmp_path / "patients.csv", ("", "video_id", "patient_id"), [(0, "1.0", "7.0"), (1, "2.0", "7")])
    patients = read_patients(tmp_path / "patients.csv")
    assert patients == {"1": "7", "2": "7"}
    rows = index(open_sun(originals["sun"], patients=patients), tmp_path / "sun")[0]
    assert {(row["video_id"], row["patient_id"]) for row in rows} == {("1", "7"), ("2", "7"), ("10", "10")}


@pytest.mark.parametrize(
    ("text", "plain"),
    [("6.0", "6"), ("6.000", "6"), ("6", "6"), ("006.0", "006"), ("6.5", "6.5"), ("-1.0", "-1.0"), ("1.0_2", "1.0_2")]
    + [(text, "") for text in ("nan", "NaN", "", "None", "N/A", "x" * 256, "1" * 5000)],
)
def test_plain_ids(text, plain):
    assert plain_id(text) == plain


@pytest.mark.parametrize(("video", "patient"), [("1.0", "nan"), ("nan", "7"), ("", "7"), ("1", "N/A")])
def test_nan_is_no_patient(tmp_path, video, patient):
    write_csv(tmp_path / "patients.csv", ("video_id", "patient_id"), [("2", "1"), (video, patient)])
    with pytest.raises(ValueError, match=r"patients\.csv, line 3: expected a video_id and a patient_id"):
        read_patients(tmp_path / "patients.csv")


@pytest.mark.parametrize(("first", "second"), [("6", "6.0"), ("6.0mm", "6"), ("6.5", "6.50"), ("15mm-", ">=15.0")])
def test_one_size_written_in_two_ways_is_no_conflict(tmp_path, first, second):
    write_csv(tmp_path / "sizes.csv", ("ID", "Size"), [("1", first), ("1.0", second), ("nan", "3"), ("2", "nan")])
    table = read_sizes(tmp_path / "sizes.csv", "ID", "Size")
    assert isinstance(table.size("1"), Size)
    assert [event[1:3] for event in table.events] == [
        ("line 3", Reason.DUPLICATE_POLYP),
        ("line 4", Reason.MALFORMED_LINE),
    ]
    with pytest.raises(RefusedError, match="polyp without size"):
        table.size("2")


def test_lists_that_pandas_saved(tmp_path):
    path = tmp_path / "polypsizing_sun_part1.csv"
    cells = ["SUN", "1.0", "3.0", "1.0", "30.0", "2.0", "40.0", "64.0", "48.0", "$SUN_DATA_PATH/a/b.jpg", "3.0"]
    write_csv(path, ("Unnamed: 0", *LIST_COLUMNS), [(0, *cells)])
    table, events = read_lists([path], {"sun": tmp_path})
    assert events == []
    row = table.to_pylist()[0]
    assert [row[name] for name in ("polyp_id", "frame_id", "width", "height", "xmax")] == ["1", "3", 64, 48, 30]


CSV_FAULTS = [
    (b"a,b,a\n6,1,99\n", "expected every column once, found 'a' twice"),
    (b"a, a ,b\n6,99,1\n", "expected every column once, found 'a' twice"),
    (b"b,c,a,c\n6,99,1,2\n", "expected every column once, found 'c' twice"),
    (b"\xef\xbb\xbfa,b,a\n6,1,99\n", "expected every column once, found 'a' twice"),
    (b'a,b\n1,"2\n3,4\n', "expected a CSV in UTF-8, found unexpected end of data"),
    (b'a,b\n1,"2"x\n', "expected a CSV in UTF-8, found "),
    (b"a,b\n1,2\n\xff,3\n", "expected a CSV in UTF-8, found 'utf-8' codec"),
    ("a,b\n1,2\n".encode("utf-16"), "expected a CSV in UTF-8, found 'utf-8' codec"),
    ("a,b\n1,2\n".encode("utf-16-le"), r"expected a CSV in UTF-8, found a NUL in 'a"),
    (b"a,b\n1,\0\n", r"expected a CSV in UTF-8, found a NUL in '1,"),
    (b"a,b\n6,5,7\n", "line 2: expected 2 cells, found more"),
    (b"a,b\n" + b"," * 2_000_000 + b"\n", "expected lines of at most 1048576 characters, found a longer one"),
    (b"," * 2_000_000, "expected lines of at most 1048576 characters"),
    (b"a,b\n" + b'"",' * 500_000, "expected lines of at most 1048576 characters"),
    (b'a,b\n1,"' + b"x" * 200_000 + b'"\n', "expected a CSV in UTF-8, found field larger than field limit"),
    (b'a,b\n1,"' + b"x\n" * 100_000 + b'"\n', "expected a CSV in UTF-8, found field larger than field limit"),
    (b"", r"expected columns \['a', 'b'\], found \[\]"),
]


@pytest.mark.parametrize(("data", "message"), CSV_FAULTS)
def test_tables_that_are_refused(tmp_path, data, message):
    (tmp_path / "table.csv").write_bytes(data)
    tracemalloc.start()
    with pytest.raises(ValueError, match=rf"table\.csv(: |, ){message}"):
        list(read_rows(tmp_path / "table.csv", ("a", "b")))
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()


def test_a_large_table_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_rows, "MAX_BYTES", 100)
    (tmp_path / "table.csv").write_bytes(b"a,b\n" + b"1,2\n" * 30)
    with pytest.raises(ValueError, match=r"table\.csv: expected at most 100 bytes, found 124"):
        list(read_rows(tmp_path / "table.csv", ("a", "b")))


def test_a_video_twice_in_the_table_of_videos(originals, tmp_path):
    root = copy(originals, "real_colon", tmp_path)
    write_csv(root / "video_info.csv", ("unique_video_name", "num_frames"), [("001-001", 6), ("001-001", 7)])
    with pytest.raises(ValueError, match=r"video_info\.csv, line 3: expected every video once, found '001-001' again"):
        open_real_colon(root)


P = "001-001_1"
TWICE = [
    ("<size>", "<size><width>64</width><height>48</height></size><size>", Reason.FRAME_SIZE, ""),
    ("<size>", "<size/><size>", Reason.FRAME_SIZE, ""),
    ("<height>48</height>", "</size><size><height>48</height>", Reason.FRAME_SIZE, ""),
    ("<width>64<", "<width>64</width><width>64<", Reason.FRAME_SIZE, ""),
    ("<height>48<", "<height/><height>48<", Reason.FRAME_SIZE, ""),
    ("<bndbox>", "<bndbox/><bndbox>", Reason.COORDINATE, P),
    ("<ymin>", "</bndbox><bndbox><ymin>", Reason.COORDINATE, P),
    ("<xmin>", "<xmin>5</xmin><xmin>", Reason.COORDINATE, P),
    ("<ymax>", "<ymax/><ymax>", Reason.COORDINATE, P),
    ("<unique_id>", f"<unique_id>{P}</unique_id><unique_id>", Reason.UNKNOWN_POLYP, f"{P} | {P}"),
    ("<unique_id>", "<unique_id/><unique_id>", Reason.OTHER_VIDEO, f" | {P}"),
    ("<width>64<", "<width>6<b/>4<", Reason.BROKEN_XML, ""),
    ("<xmin>", "<xmin>9<b>9</b>", Reason.BROKEN_XML, ""),
]


@pytest.mark.parametrize(("old", "new", "reason", "item"), TWICE)
def test_an_element_twice_or_inside_a_value(originals, tmp_path, old, new, reason, item):
    root = copy(originals, "real_colon", tmp_path)
    file = root / "001-001_annotations" / "001-001_1.xml"
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))
    rows, _, events = index(open_real_colon(root), tmp_path / "out")
    assert events == [("001-001_annotations/001-001_1.xml", item, str(reason))]
    assert len(rows) == 10


@pytest.mark.parametrize("depth", [31, 32, 100, 100_000])
@pytest.mark.parametrize("tag", ["a", "object"])
def test_deep_xml(depth, tag):
    text = xml_text([(P, (4, 6, 30, 28))])
    deep = text.replace("</annotation>", f"<{tag}>" * depth + f"</{tag}>" * depth + "</annotation>").encode()
    if depth <= 31:
        assert parse_annotation(deep).width == 64
        return
    with pytest.raises(RefusedError, match=r"broken XML: .*expected at most 32 levels"):
        parse_annotation(deep)


def test_the_largest_annotation_of_sun_takes_a_moment(originals, tmp_path):
    root = copy(originals, "sun", tmp_path)
    file = root / "sundatabase_positive_part1" / "annotation_txt" / "case1.txt"
    digits = "1" * 5000
    file.write_text(file.read_text() + f"image{digits}.jpg 1,2,30,40,0\n")
    assert [event[1:] for event in index(open_sun(root), tmp_path / "out")[2]] == [("line 5", str(Reason.FILE_NAME))]
    file.write_bytes(b"a\n" * (MAX_BYTES // 2) + b"a\n")
    _, _, events = index(open_sun(root), tmp_path / "out")
    assert (str(file.relative_to(root)), "", str(Reason.LARGE_FILE)) in events


KVASIR_FAULTS = [
    ('{"a2": {"width": 80, "height": 60, "bbox": []}, "a2": {}}', "the key 'a2' twice"),
    ('{"a2": {"width": 80, "width": 8, "height": 60, "bbox": []}}', "the key 'width' twice"),
    ('{"a2": {"width": 80, "height": 60, "bbox": [{"xmin": 1, "xmin": 2}]}}', "the key 'xmin' twice"),
    ("[" * 100_000, "expected JSON, found "),
    ('{"a2": ' * 20_000, "expected JSON, found "),
    (b'{"a\xff": 1}', "expected UTF-8"),
    (b"", "expected JSON, found "),
    ("3", "expected a JSON object, found int"),
]


@pytest.mark.parametrize(("data", "message"), KVASIR_FAULTS)
def test_files_of_boxes_that_are_refused(originals, tmp_path, data, message):
    root = copy(originals, "kvasir", tmp_path)
    (root / "kavsir_bboxes.json").write_bytes(data if isinstance(data, bytes) else data.encode())
    with pytest.raises(ValueError, match=rf"kavsir_bboxes\.json is damaged: .*{message}"):
        open_kvasir(root)


@pytest.mark.parametrize(
    "change",
    [
        {"width": 80.7},
        {"width": "wide"},
        {"height": True},
        {"height": 10**9},
        {"bbox": "boxes"},
        {"bbox": {"xmin": 1}},
        {"bbox": [{}] * 1001},
    ],
)
def test_entries_of_kvasir_that_are_no_frames(originals, tmp_path, change):
    root = copy(originals, "kvasir", tmp_path)
    listed = json.loads((root / "kavsir_bboxes.json").read_text())
    listed["a2"] |= change
    (root / "kavsir_bboxes.json").write_text(json.dumps(listed))
    rows, _, events = index(open_kvasir(root), tmp_path / "out")
    assert events == [("kavsir_bboxes.json", "a2", str(Reason.MALFORMED_LINE))]
    assert len(rows) == 3


def test_two_images_of_one_frame(originals, tmp_path):
    root = copy(originals, "kvasir", tmp_path)
    shutil.copy(root / "images" / "a2.jpg", root / "images" / "a2.png")
    with pytest.raises(ValueError, match=r"images: expected one image a frame, found a2\.\* twice"):
        open_kvasir(root)


def call(monkeypatch: pytest.MonkeyPatch, *args: object) -> int:
    monkeypatch.setattr(sys, "argv", ["index", *map(str, args)])
    with pytest.raises(SystemExit) as caught:
        run_main(command.main)
    return caught.value.code


def no_sizes(table: str) -> Callable[[Path], None]:
    return lambda root: edit(root / table, lambda rows: [rows[0], *([row[0], "?", *row[2:]] for row in rows[1:])])


EMPTY = [
    ("sun", no_sizes("metadata/sun_dataset_labels.csv"), "none in 3 files .dropped: 12 size text that cannot be read."),
    ("kvasir", lambda root: shutil.rmtree(root / "images"), "none in 3 files .dropped: 3 missing frame image."),
    ("kvasir", lambda root: (root / "kavsir_bboxes.json").write_text("{}"), "none in 0 files .dropped: nothing."),
    (
        "real_colon",
        lambda root: [path.write_text("") for path in root.glob("*_annotations/*")],
        "none in 12 files .dropped: 12 zero-byte file.",
    ),
]


@pytest.mark.parametrize(("name", "change", "message"), EMPTY)
def test_an_index_of_no_rows_is_an_error(originals, tmp_path, monkeypatch, capsys, name, change, message):
    root, out = copy(originals, name, tmp_path), tmp_path / "out"
    change(root)
    for _ in range(2):
        assert call(monkeypatch, name.replace("_", "-"), root, "--out", out, "--workers", 1) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith(f"error: {out}: expected an index with rows, found ")
        assert re.search(message, error)
        assert not {"summary.json", "index.parquet"} & {path.name for path in out.iterdir()}


def test_lists_of_no_rows_are_an_error(tmp_path, monkeypatch, capsys):
    path = tmp_path / "polypsizing_sun_part1.csv"
    cells = ["SUN", "1", "3", "1", "30", "2", "40", "64", "48", "$SUN_DATA_PATH/a/b.jpg", "large"]
    write_csv(path, LIST_COLUMNS, [cells])
    args = ("import-lists", path, "--root", f"sun={tmp_path}", "--out", tmp_path / "out")
    assert call(monkeypatch, *args) == 2
    assert "none in 1 files (dropped: 1 size text that cannot be read)" in capsys.readouterr().err
    assert not (tmp_path / "out" / "index.parquet").exists()
    path.unlink()
    os.mkfifo(path)
    assert call(monkeypatch, *args) == 2
    assert f"error: {path}: expected a regular file, found" in capsys.readouterr().err


def test_patients_of_other_videos_are_not_silently_unused(tmp_path):
    """Every video would be a patient of its own, and a patient in two folds."""
    real, sun = tmp_path / "real", tmp_path / "sun"
    write_real_colon(real)
    write_sun(sun)
    for open_dataset, root in ((open_real_colon, real), (open_sun, sun)):
        with pytest.raises(ValueError, match=r"patients: expected some of the videos \[.*\] \.\.\., found \['77'\]"):
            open_dataset(root, verify="none", patients={"77": "p"})
    assert open_sun(sun, verify="none", patients={"case1": "p"}).patients == {"1": "p"}
    with pytest.raises(ValueError, match="patients: expected every case once, found 1 again"):
        open_sun(sun, verify="none", patients={"case1": "p", "01": "q"})
