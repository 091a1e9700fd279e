"""REAL-Colon and SUN as they should not be: every fault is named with its file, and the rest is read."""

import contextlib
import csv
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fsg_jax.endoscopy.index.schema import read_index
from fsg_jax.endoscopy.readers.boxes import Box, fit_box
from fsg_jax.endoscopy.readers.indexing import build_index
from fsg_jax.endoscopy.readers.layout import Part
from fsg_jax.endoscopy.readers.real_colon import MAX_BYTES, open_real_colon
from fsg_jax.endoscopy.readers.reports import Note, Reason, RefusedError
from fsg_jax.endoscopy.readers.sizes import Size, parse_size, read_patients, read_sizes
from fsg_jax.endoscopy.readers.sun import open_sun, parse_lines
from fsg_jax.endoscopy.readers.verify import check_frame
from fsg_jax.endoscopy.readers.voc import VocObject, parse_annotation
from tests.polyp_files import (
    REAL_SIZES,
    sun_image,
    sun_lines,
    sun_name,
    write_csv,
    write_image,
    write_lesions,
    write_real_colon,
    write_sun,
    xml_text,
)

P, VIDEO = "001-001_1", "001-001"
FINE = (4, 6, 30, 28)
BOMB = '<!DOCTYPE a [<!ENTITY b "bbbbbbbbbb"><!ENTITY c "&b;&b;&b;">]><annotation>&c;</annotation>'


@pytest.fixture(scope="module")
def real_colon(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_real_colon(tmp_path_factory.mktemp("real"))


def index(layout, out: Path) -> tuple[list[dict], dict, list[tuple[str, str, str]]]:
    """Rows of the index, the counts, and (file, item, reason) of everything dropped or noted."""
    counts = build_index(layout, out)
    rows = read_index(out)[0].to_pylist()
    events = []
    for name in ("dropped.csv", "notes.csv"):
        with (out / name).open(newline="", encoding="utf-8") as file:
            events += [(row["file"], row["item"], row["reason"]) for row in csv.DictReader(file)]
    assert sum(counts["dropped"].values()) + sum(counts["notes"].values()) == len(events)
    return rows, counts, events


def boxes_text(*boxes: tuple[str, tuple]) -> Callable[[Path], None]:
    return lambda file: file.write_text(xml_text(boxes)) and None


def text(content: str | bytes) -> Callable[[Path], None]:
    return lambda file: file.write_bytes(content.encode() if isinstance(content, str) else content) and None


def replaced(old: str, new: str) -> Callable[[Path], None]:
    return lambda file: file.write_text(file.read_text().replace(old, new)) and None


# The fault is put into the annotation of frame 1, which has one box: name, fault, reason, item, boxes left in it.
XML_FAULTS = [
    ("cut short", lambda file: file.write_text(file.read_text()[:200]), Reason.BROKEN_XML, "", 0),
    ("zero bytes", text(""), Reason.EMPTY_FILE, "", 0),
    ("no XML", text("\x00\x01 not xml"), Reason.BROKEN_XML, "", 0),
    ("another root", text("<html><body/></html>"), Reason.BROKEN_XML, "", 0),
    ("unknown encoding", text('<?xml version="1.0" encoding="klingon"?><annotation/>'), Reason.BROKEN_XML, "", 0),
    ("undeclared Latin-1", text("<annotation>caf\xe9</annotation>".encode("latin-1")), Reason.BROKEN_XML, "", 0),
    ("unknown entity", replaced("REAL-Colon", "&nbsp;"), Reason.BROKEN_XML, "", 0),
    ("entity bomb", text(BOMB), Reason.DOCTYPE, "", 0),
    ("DOCTYPE in UTF-16", text(BOMB.encode("utf-16")), Reason.DOCTYPE, "", 0),
    ("huge", text(b"<annotation>" + b" " * MAX_BYTES + b"</annotation>"), Reason.LARGE_FILE, "", 0),
    ("no size", replaced("<width>64</width>", ""), Reason.NO_FRAME_SIZE, "", 0),
    ("size in words", replaced("<width>64<", "<width>wide<"), Reason.FRAME_SIZE, "", 0),
    ("size zero", replaced("<height>48<", "<height>0<"), Reason.FRAME_SIZE, "", 0),
    ("two widths", replaced("<width>64<", "<width>64</width><width>32<"), Reason.FRAME_SIZE, "", 0),
    ("another size", replaced("<width>64<", "<width>640<"), Reason.OTHER_FRAME_SIZE, None, 0),
    ("words", boxes_text((P, ("left", 6, 30, 28))), Reason.COORDINATE, P, 0),
    ("NaN", boxes_text((P, (4, "nan", 30, 28))), Reason.COORDINATE, P, 0),
    ("infinite", boxes_text((P, (4, 6, "1e999", 28))), Reason.COORDINATE, P, 0),
    ("underscore", boxes_text((P, (4, 6, "3_0", 28))), Reason.COORDINATE, P, 0),
    ("missing coordinate", replaced("<xmax>31</xmax>", ""), Reason.COORDINATE, P, 0),
    ("repeated coordinate", replaced("<xmax>", "<xmax>7</xmax><xmax>"), Reason.COORDINATE, P, 0),
    ("outside", boxes_text((P, (100, 6, 130, 28))), Reason.OUTSIDE, P, 0),
    ("outside, negative", boxes_text((P, (-30, 6, -4, 28))), Reason.OUTSIDE, P, 0),
    ("no width", boxes_text((P, (4, 6, 4, 28))), Reason.EMPTY_BOX, P, 0),
    ("no width once rounded", boxes_text((P, (4.1, 6, 4.4, 28))), Reason.EMPTY_BOX, P, 0),
    ("swapped x", boxes_text((P, (30, 6, 4, 28))), Reason.SWAPPED, P, 0),
    ("swapped y", boxes_text((P, (4, 28, 30, 6))), Reason.SWAPPED, P, 0),
    ("no unique_id", replaced(f"<unique_id>{P}</unique_id>", ""), Reason.NO_ID, "", 0),
    ("unknown polyp", boxes_text((f"{VIDEO}_9", FINE)), Reason.UNKNOWN_POLYP, f"{VIDEO}_9", 0),
    ("another video", boxes_text(("002-010_1", FINE)), Reason.OTHER_VIDEO, "002-010_1", 0),
    ("box twice", boxes_text((P, FINE), (P, (5, 6, 31, 28))), Reason.DUPLICATE_BOX, P, 1),
    ("clipped", boxes_text((P, (-4, 6, 30, 99))), Note.CLIPPED, P, 1),
    ("float", boxes_text((P, (4.4, 6.0, 29.6, 28))), Note.ROUNDED, P, 1),
]


@pytest.mark.parametrize(
    ("fault", "reason", "item", "left"), [f[1:] for f in XML_FAULTS], ids=[f[0] for f in XML_FAULTS]
)
def test_a_fault_in_an_annotation(tmp_path, fault, reason, item, left):
    root = write_real_colon(tmp_path / "root")
    file = root / "001-001_annotations" / "001-001_1.xml"
    fault(file)
    rows, counts, events = index(open_real_colon(root), tmp_path / "out")
    where = "001-001_frames/001-001_1.jpg" if reason is Reason.OTHER_FRAME_SIZE else "001-001_annotations/001-001_1.xml"
    assert events == [(where, item or "", str(reason))]
    assert counts["files"] == 12
    assert sum(row["image_path"].endswith("001-001_1.jpg") for row in rows) == left
    assert len(rows) == 10 + left


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-300])


IMAGE_FAULTS = [
    ("missing", Path.unlink, Reason.MISSING_FRAME),
    ("zero bytes", text(""), Reason.EMPTY_FRAME),
    ("truncated", cut, Reason.TRUNCATED_FRAME),
    ("header only", lambda path: path.write_bytes(path.read_bytes()[:30]), Reason.TRUNCATED_FRAME),
    ("no image", text("GIF? no"), Reason.UNREADABLE_FRAME),
    ("grey", lambda path: write_image(path, mode="L"), Reason.NOT_RGB),
    ("CMYK", lambda path: write_image(path, mode="CMYK"), Reason.NOT_RGB),
    ("a folder", lambda path: path.unlink() or path.mkdir(), Reason.UNREADABLE_FRAME),
]


@pytest.mark.parametrize("verify", ["decode", "header"])
@pytest.mark.parametrize(("fault", "reason"), [f[1:] for f in IMAGE_FAULTS], ids=[f[0] for f in IMAGE_FAULTS])
def test_a_fault_in_a_frame(tmp_path, fault, reason, verify):
    root = write_real_colon(tmp_path / "root")
    fault(root / "001-001_frames" / "001-001_3.jpg")
    rows, counts, events = index(open_real_colon(root, verify=verify), tmp_path / "out")
    dropped = [event for event in events if event[2] != Note.FRAME_COUNT]
    assert dropped == [("001-001_frames/001-001_3.jpg", "", str(reason))]
    assert (len(rows), counts["frames with boxes"]) == (9, 10)  # the frame has two polyps


def test_damage_in_the_middle_of_a_frame_needs_decoding(tmp_path):
    path = tmp_path / "frame.jpg"
    write_image(path)
    path.write_bytes(path.read_bytes()[:-600] + b"\xff\xd9")
    assert check_frame(path, "header") == (64, 48)
    data = path.read_bytes()
    path.write_bytes(data[:-2])
    with pytest.raises(RefusedError, match="truncated"):
        check_frame(path, "decode")
    assert check_frame(path, "none") == (64, 48)


def test_without_verification_no_frame_is_needed(tmp_path, real_colon):
    root = write_real_colon(tmp_path / "root")
    for path in root.glob("*_frames/*"):
        path.unlink()
    rows, _, events = index(open_real_colon(root, verify="none"), tmp_path / "out")
    assert events == []
    assert rows == index(open_real_colon(real_colon), tmp_path / "out2")[0]


LESION_FAULTS = [
    ("range", {P: "8-9mm"}, Reason.SIZE_TEXT),
    ("junk", {P: "large"}, Reason.SIZE_TEXT),
    ("upper bound", {P: "<5"}, Reason.SIZE_TEXT),
    ("zero", {P: "0"}, Reason.SIZE_TEXT),
    ("negative", {P: "-5"}, Reason.SIZE_TEXT),
    ("empty", {P: ""}, Reason.NO_SIZE),
    ("NA", {P: "NA"}, Reason.NO_SIZE),
]


@pytest.mark.parametrize(("sizes", "reason"), [f[1:] for f in LESION_FAULTS], ids=[f[0] for f in LESION_FAULTS])
def test_a_fault_in_a_size_drops_every_box_of_the_polyp(tmp_path, sizes, reason):
    root = write_real_colon(tmp_path / "root")
    write_lesions(root, {**REAL_SIZES, **sizes})
    rows, counts, events = index(open_real_colon(root), tmp_path / "out")
    assert counts["dropped"] == {str(reason): 3}
    assert [event[:2] for event in events[:3]] == [(f"001-001_annotations/001-001_{t}.xml", P) for t in (1, 2, 3)]
    assert counts["notes"] == {str(Note.NO_BOX): 1}
    assert {row["polyp_id"] for row in rows} == {"001-001_2", "002-010_1"}


@pytest.mark.parametrize(("again", "left"), [("4", 11), ("5", 8)])
def test_a_lesion_twice(tmp_path, again, left):
    root = write_real_colon(tmp_path / "root")
    with (root / "lesion_info.csv").open("a") as file:
        file.write(f"{P},{VIDEO},{again},rectum,AD\n,{VIDEO},3,rectum,AD\n")
    rows, counts, events = index(open_real_colon(root), tmp_path / "out")
    assert events[:2] == [
        ("lesion_info.csv", "line 5", str(Reason.DUPLICATE_POLYP)),
        ("lesion_info.csv", "line 6", str(Reason.MALFORMED_LINE)),
    ]
    assert len(rows) == left
    assert counts["dropped"].get(str(Reason.CONFLICTING_SIZES), 0) == 11 - left


def test_files_that_do_not_match(tmp_path):
    root = write_real_colon(tmp_path / "root")
    (root / "001-001_annotations" / "001-001_0.xml").rename(root / "001-001_annotations" / "001-001_77.xml")
    for name in ("._001-001_1.xml", "002-010_1.xml", "Thumbs.db"):
        (root / "001-001_annotations" / name).write_bytes(b"\x00")
    write_image(root / "002-010_frames" / "002-010_99.jpg")
    (root / "003-001_frames").mkdir()
    rows, counts, events = index(open_real_colon(root), tmp_path / "out")
    assert len(rows) == 11
    assert counts["dropped"] == {str(Reason.FILE_NAME): 1}
    assert set(events[1:]) == {
        ("001-001_annotations/001-001_77.xml", "", str(Note.NO_FRAME)),
        ("001-001_frames/001-001_0.jpg", "", str(Note.NO_ANNOTATION)),
        ("002-010_frames/002-010_99.jpg", "", str(Note.NO_ANNOTATION)),
        ("002-010_frames", "", str(Note.FRAME_COUNT)),
        ("003-001_annotations", "", str(Note.NO_FOLDER)),
    }


def test_real_colon_as_it_should_be(real_colon, tmp_path):
    rows, counts, events = index(open_real_colon(real_colon), tmp_path)
    assert events == []
    assert [counts[k] for k in ("files", "frames with boxes", "frames without lesion")] == [12, 10, 2]
    assert [counts[k] for k in ("rows", "frames", "polyps", "videos", "synthetic")] == [11, 10, 3, 2, False]
    both = [row for row in rows if row["image_path"] == "001-001_frames/001-001_3.jpg"]
    assert both[1] == {
        "dataset": "real_colon",
        "video_id": "001-001",
        "patient_id": "001-001",
        "polyp_id": "001-001_2",
        "frame_id": "3",
        "image_path": "001-001_frames/001-001_3.jpg",
        "mask_path": None,
        "width": 64,
        "height": 48,
        "xmin": 36,
        "ymin": 20,
        "xmax": 60,
        "ymax": 44,
        "size_mm": 6.5,
        "size_censored": False,
        "synthetic": False,
        "histology": "AD",
        "site": "rectum",
    }
    assert (both[0]["polyp_id"], both[0]["size_mm"]) == (P, 4.0)


def test_unicode_paths_and_a_folder_of_annotations_by_its_other_name(tmp_path, real_colon):
    root = write_real_colon(tmp_path / "колоноскопия Ünï 大腸")
    (root / "001-001_annotations").rename(root / "001-001_annotation")
    for folder in ("annotations", "frames"):
        (root / f"002-010_{folder}").rename(root / f"été-1_{folder}")
        for path in list((root / f"été-1_{folder}").iterdir()):
            path.rename(path.with_name(path.name.replace("002-010", "été-1")))
    for path in (root / "été-1_annotations").iterdir():
        path.write_text(path.read_text().replace("002-010", "été-1"), encoding="utf-8")
    (root / "lesion_info.csv").write_text((root / "lesion_info.csv").read_text().replace("002-010", "été-1"))
    (root / "video_info.csv").unlink()
    rows, _, events = index(open_real_colon(root), tmp_path / "öut")
    assert events == []
    assert len(rows) == 11
    assert rows[4]["image_path"] == "été-1_frames/été-1_5.jpg"
    assert read_index(tmp_path / "öut")[1] == {"real_colon": root}


def test_synthetic_and_patients(tmp_path):
    root = write_real_colon(tmp_path / "root")
    (root / "SYNTHETIC.json").write_text("{}")
    write_csv(tmp_path / "patients.csv", ("video_id", "patient_id"), [("002-010", "p7")])
    rows, counts, _ = index(open_real_colon(root, patients=read_patients(tmp_path / "patients.csv")), tmp_path / "out")
    assert all(row["synthetic"] for row in rows)
    assert counts["synthetic"]
    assert {row["patient_id"] for row in rows} == {"001-001", "p7"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("video_id\na\n", r"expected columns \['patient_id'\], found \['video_id'\]"),
        ("video_id,patient_id\na,\n", "line 2: expected a video_id and a patient_id"),
        ("video_id,patient_id\na,1\na,2\n", "line 3: expected one patient of video 'a', found '1' and '2'"),
        ("", r"expected columns \[.*\], found \[\]"),
    ],
)
def test_patients_that_cannot_be_read(tmp_path, content, message):
    (tmp_path / "patients.csv").write_text(content)
    with pytest.raises(ValueError, match=rf"patients.csv.*{message}"):
        read_patients(tmp_path / "patients.csv")


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        (lambda r: (r / "lesion_info.csv").unlink(), FileNotFoundError, "lesion_info.csv: no such file"),
        (
            lambda r: write_csv(r / "lesion_info.csv", ("id", "size"), []),
            ValueError,
            r"\['unique_object_id', 'size \[mm",
        ),
        (lambda r: (r / "lesion_info.csv").write_bytes(b"unique_object_id,size [mm]\n\xff\n"), ValueError, "UTF-8"),
        (lambda r: write_csv(r / "video_info.csv", ("age",), []), ValueError, "'num_frames'"),
        (lambda r: (r / "001-001_annotation").mkdir(), ValueError, "found 001-001_annotation"),
        (lambda r: [p.rename(f"{p}_old") for p in r.glob("*_annotations")], FileNotFoundError, "found no folder named"),
    ],
)
def test_real_colon_that_cannot_be_opened(tmp_path, fault, error, message):
    root = write_real_colon(tmp_path / "root", frames=1)
    fault(root)
    with pytest.raises(error, match=message):
        open_real_colon(root)
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        open_real_colon(tmp_path / "nowhere")


@pytest.mark.parametrize("layout", ["parts", "flat", "renamed"])
def test_sun_as_it_should_be(tmp_path, layout):
    root = write_sun(tmp_path / "root", layout=layout)
    rows, counts, events = index(open_sun(root), tmp_path / "out")
    assert events == []
    assert [counts[k] for k in ("files", "frames with boxes", "rows", "polyps", "images")] == [3, 12, 12, 3, 12]
    assert [row["polyp_id"] for row in rows[::4]] == ["1", "2", "10"]
    last = rows[-1]
    assert (root / last["image_path"]) == sun_image(root, "10", 4, layout).resolve()
    assert (last["dataset"], last["video_id"], last["patient_id"], last["frame_id"]) == ("sun", "10", "10", "4")
    assert [last[k] for k in ("xmin", "ymin", "xmax", "ymax", "width", "height")] == [7, 5, 37, 30, 64, 48]
    assert (last["size_mm"], last["size_censored"], rows[0]["size_censored"]) == (15.0, True, False)


N = sun_name("1", 2)
# What line 2 of case 1 becomes; reason, item and rows left of that frame.
SUN_FAULTS = [
    ("no box", N, Reason.MALFORMED_LINE, 0),
    ("four numbers", f"{N} 1,2,30,40", Reason.MALFORMED_LINE, 0),
    ("class 7", f"{N} 1,2,30,40,7", Reason.MALFORMED_LINE, 0),
    ("no name", "1,2,30,40,0", Reason.MALFORMED_LINE, 0),
    ("a path", f"../{N} 1,2,30,40,0", Reason.MALFORMED_LINE, 0),
    ("not UTF-8", b"\xff\xfe 1,2,30,40,0", Reason.MALFORMED_LINE, 0),
    ("words", f"{N} a,b,c,d,0", Reason.COORDINATE, 0),
    ("class 1", f"{N} 1,2,30,40,1", Reason.NOT_POLYP, 0),
    ("outside", f"{N} -30,2,-3,40,0", Reason.OUTSIDE, 0),
    ("empty", f"{N} 3,2,3,40,0", Reason.EMPTY_BOX, 0),
    ("swapped", f"{N} 30,2,3,40,0", Reason.SWAPPED, 0),
    ("second box", f"{N} 1,2,30,40,0 2,2,30,40,0", Reason.DUPLICATE_BOX, 1),
    ("second box is no polyp", f"{N} 1,2,30,40,0 2,2,30,40,1", Reason.NOT_POLYP, 1),
    ("first box is no polyp", f"{N} 2,2,30,40,1 1,2,30,40,0", Reason.NOT_POLYP, 1),
    ("second box malformed", f"{N} 1,2,30,40,0 2,2,30", Reason.MALFORMED_LINE, 1),
    ("repeated name", f"{N} 1,2,30,40,0\n{N} 4,2,30,40,0", Reason.DUPLICATE_BOX, 1),
    ("signed", f"{N} -1,+2,30,40,0", Note.CLIPPED, 1),
    ("float", f"{N} 1.4,2,30,40,0", Note.ROUNDED, 1),
]


@pytest.mark.parametrize(("line", "reason", "left"), [f[1:] for f in SUN_FAULTS], ids=[f[0] for f in SUN_FAULTS])
def test_a_fault_in_a_line_of_sun(tmp_path, line, reason, left):
    root = write_sun(tmp_path / "root")
    file = root / "sundatabase_positive_part1" / "annotation_txt" / "case1.txt"
    lines = [text.encode() for text in sun_lines("1", 4)]
    lines[1] = line if isinstance(line, bytes) else line.encode()
    file.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join([*lines, b"", b""]))
    rows, counts, events = index(open_sun(root), tmp_path / "out")
    events = [event for event in events if event[2] != Note.NO_ANNOTATION]
    item = "line 3" if "\n" in str(line) else "line 2"
    assert events == [("sundatabase_positive_part1/annotation_txt/case1.txt", item, str(reason))]
    assert sum(row["image_path"].endswith(N) for row in rows) == left
    assert len(rows) == 11 + left
    assert counts["polyps"] == 3


@pytest.mark.parametrize(("fault", "reason"), [f[1:] for f in IMAGE_FAULTS], ids=[f[0] for f in IMAGE_FAULTS])
def test_a_fault_in_a_frame_of_sun(tmp_path, fault, reason):
    root = write_sun(tmp_path / "root")
    fault(sun_image(root, "1", 2))
    rows, counts, events = index(open_sun(root), tmp_path / "out")
    file = f"case1/{N}" if reason is Reason.MISSING_FRAME else f"sundatabase_positive_part1/case1/{N}"
    assert events == [(file, "line 2", str(reason))]
    assert (len(rows), counts["frames with boxes"]) == (11, 12)


def test_other_faults_of_sun(tmp_path):
    root = write_sun(tmp_path / "root")
    annotations = root / "sundatabase_positive_part1" / "annotation_txt"
    (annotations / "case2.txt").write_bytes(b"")
    (annotations / "case3.txt").write_text(f"{sun_name('3', 1)} 1,2,30,40,0\n")
    (annotations / "case10.txt").write_text(f"{sun_lines('10', 1)[0]}\nframe.jpg 1,2,30,40,0\n")
    write_image(root / "sundatabase_positive_part2" / "case44" / sun_name("44", 1))
    with (root / "metadata" / "sun_dataset_labels.csv").open("a") as file:
        file.write("ten,3mm,\n")
    rows, _, events = index(open_sun(root), tmp_path / "out")
    assert len(rows) == 5
    prefix = "sundatabase_positive_part1/annotation_txt"
    assert [event for event in events if event[2] not in (Note.NO_ANNOTATION, Note.NO_BOX)] == [
        ("sun_dataset_labels.csv", "line 5", str(Reason.MALFORMED_LINE)),
        (f"{prefix}/case2.txt", "", str(Reason.EMPTY_FILE)),
        (f"{prefix}/case3.txt", "line 1", str(Reason.UNKNOWN_POLYP)),
        ("case10/frame.jpg", "line 2", str(Reason.FILE_NAME)),
        ("sundatabase_positive_part2/case44", "", str(Note.NO_FOLDER)),
    ]
    assert sum(event[2] == Note.NO_ANNOTATION for event in events) == 3  # of case 10


def test_sun_that_cannot_be_opened(tmp_path):
    root = write_sun(tmp_path / "root", frames=1)
    with pytest.raises(FileNotFoundError, match=r"other.csv: no such file.*columns ID, Size"):
        open_sun(root, sizes=tmp_path / "other.csv")
    write_csv(tmp_path / "sizes.csv", ("ID", "mm"), [])
    with pytest.raises(ValueError, match=r"expected columns \['Size'\], found \['ID', 'mm'\]"):
        open_sun(root, sizes=tmp_path / "sizes.csv")
    (root / "annotation_txt").mkdir()
    (root / "annotation_txt" / "case01.txt").write_text("")
    with pytest.raises(ValueError, match="expected one annotation file for case 1"):
        open_sun(root)
    with pytest.raises(FileNotFoundError, match="found no annotation_txt/case"):
        open_sun(write_real_colon(tmp_path / "real", frames=1), sizes=root / "metadata" / "sun_dataset_labels.csv")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("6", Size(6.0, False)),
        ("6mm", Size(6.0, False)),
        (" 6.5 mm ", Size(6.5, False)),
        ("6.0", Size(6.0, False)),
        ("15mm-", Size(15.0, True)),
        ("15-", Size(15.0, True)),
        ("15+", Size(15.0, True)),
        (">=15", Size(15.0, True)),
        ("\u226515 MM", Size(15.0, True)),
        (">15mm", Size(15.0, True)),
        ("\uff11\uff15\u339c\uff5e", Size(15.0, True)),  # full width, as a Japanese table may have it
    ],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "reason", "message"),
    [
        ("8-9mm", Reason.SIZE_TEXT, "a range"),
        ("8mm-9mm", Reason.SIZE_TEXT, "a range"),
        ("8 to 9", Reason.SIZE_TEXT, "a range"),
        ("8\u20139", Reason.SIZE_TEXT, "a range"),
        ("6,5", Reason.SIZE_TEXT, "not a size"),
        ("1.5cm", Reason.SIZE_TEXT, "not a size"),
        ("<=5", Reason.SIZE_TEXT, "not a size"),
        ("-5mm", Reason.SIZE_TEXT, "not a size"),
        ("1e1", Reason.SIZE_TEXT, "not a size"),
        ("inf", Reason.SIZE_TEXT, "not a size"),
        ("0mm", Reason.SIZE_TEXT, r"not in \(0, 200\] mm"),
        ("6000", Reason.SIZE_TEXT, r"not in \(0, 200\] mm"),
        ("", Reason.NO_SIZE, "the size is ''"),
        ("NaN", Reason.NO_SIZE, "NaN"),
    ],
)
def test_sizes_refused(text, reason, message):
    with pytest.raises(RefusedError, match=message) as caught:
        parse_size(text)
    assert caught.value.reason is reason


def test_the_table_of_sizes_with_a_byte_order_mark_and_short_rows(tmp_path):
    path = tmp_path / "sizes.csv"
    path.write_bytes(b"\xef\xbb\xbfID, Size\r\n1,3mm\r\n2\r\n")
    table = read_sizes(path, "ID", "Size")
    assert table.size("1") == Size(3.0, False)
    for polyp, reason in (("2", Reason.NO_SIZE), ("3", Reason.UNKNOWN_POLYP)):
        with pytest.raises(RefusedError) as caught:
            table.size(polyp)
        assert caught.value.reason is reason


coordinates = st.floats(-200, 200, allow_nan=False).map(lambda value: round(value, 2))


@settings(max_examples=100, deadline=None)
@given(st.tuples(coordinates, coordinates, coordinates, coordinates))
def test_a_fitted_box_is_inside_and_keeps_the_pixels_of_the_frame(corners):
    xmin, ymin, xmax, ymax = corners
    texts = [repr(value) for value in corners]
    swapped = xmin > xmax or ymin > ymax
    assume(swapped or (xmax - xmin > 1 and ymax - ymin > 1))
    if swapped or xmax < 0.5 or ymax < 0.5 or xmin >= 63.5 or ymin >= 47.5:
        with pytest.raises(RefusedError, match=Reason.SWAPPED if swapped else Reason.OUTSIDE):
            fit_box(texts, 64, 48)
        return
    box, _ = fit_box(texts, 64, 48)
    assert 0 <= box.xmin < box.xmax <= 64
    assert 0 <= box.ymin < box.ymax <= 48
    assert abs(box.xmin - min(max(xmin, 0), 64)) <= 0.5
    assert abs(box.ymax - min(max(ymax, 0), 48)) <= 0.5


def test_halves_are_rounded_up():
    assert fit_box(["0.5", "1.5", "2.5", "+3e0"], 64, 48) == (Box(1, 2, 3, 3), [Note.ROUNDED])


def test_an_annotation():
    parsed = parse_annotation(xml_text([(P, (1, 2, " 3.5 ", 4)), (P, FINE)], (1920, 1080)).encode())
    assert (parsed.width, parsed.height) == (1920, 1080)
    assert parsed.objects[0] == VocObject(P, ("1", "2", "3.5", "4"))
    assert len(parsed.objects) == 2


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 500))
def test_no_bytes_do_more_than_be_refused(junk, at):
    for data in (junk, (text := xml_text([(P, FINE)]).encode())[:at] + junk + text[at:]):
        with contextlib.suppress(RefusedError):
            parse_annotation(data)
        boxes = parse_lines(data, "case1.txt", part := Part())
        assert all(len(box.corners) == 4 for found in boxes.values() for box in found)
        assert all(event.reason is Reason.MALFORMED_LINE for event in part.events)
