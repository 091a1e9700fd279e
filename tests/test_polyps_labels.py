"""Histology and site: their spellings, tables as they should not be, indexes of before, codes in examples."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from experiments.endoscopy import index as command
from experiments.endoscopy import seal
from experiments.endoscopy.cohort import digest_of
from experiments.errors import UserError
from fsg_jax.endoscopy.frames.frame_cache import CachedSource, CacheError, build_cache
from fsg_jax.endoscopy.frames.source import FrameSource
from fsg_jax.endoscopy.index.label_codes import HISTOLOGIES, LABELS, SITES, label_codes
from fsg_jax.endoscopy.index.schema import COLUMNS, METADATA, read_index, sort_index, write_index
from fsg_jax.endoscopy.index.seals import table_digest
from fsg_jax.endoscopy.readers.indexing import build_index
from fsg_jax.endoscopy.readers.lesion_labels import parse_label
from fsg_jax.endoscopy.readers.real_colon import open_real_colon
from fsg_jax.endoscopy.readers.reports import Note
from fsg_jax.endoscopy.readers.sun import open_sun
from tests.polyp_files import REAL_SIZES, write_csv, write_real_colon, write_sun
from tests.polyp_frames import make_set
from tests.polyp_tables import cohort, polyp_rows, table_of

LESIONS = ("unique_object_id", "unique_video_name", "size [mm]", "site", "histology_class")
OWN = ("case", "histology", "site")


@pytest.fixture(scope="module")
def sun(tmp_path_factory) -> Path:
    return write_sun(tmp_path_factory.mktemp("sun"), frames=1)


@pytest.mark.parametrize("name", LABELS)
def test_every_value_spells_itself(name):
    assert [parse_label(name, value) for value in LABELS[name]] == list(LABELS[name])


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        *(("site", text, "cecum") for text in ("Caecum", "CECUM", " caecum ")),
        *(("site", text, "transverse") for text in ("trasnverse", "Transverse Colon", "colon transversum")),
        *(("site", text, "hepatic flexure") for text in ("Hepatic-flexure", "hepatic_flexure", "HEPATIC  FLEXURE")),
        *(("site", text, "splenic flexure") for text in ("splenic\u2011flexure", "left colic flexure")),
        *(("site", text, "sigmoid") for text in ("Sigma", "sigmoid colon", "\uff33igmoid")),
        ("site", "Ascending/colon", "ascending"),
        ("site", "descending", "descending"),
        *(("histology", text, "NO POLYP") for text in ("no polyp", "No_Polyp", "NOPOLYP")),
        *(("histology", text, "AD") for text in ("ad", "Adenoma", "Low-grade adenoma")),
        *(("histology", text, "SSL") for text in ("SSA/P", "Sessile serrated lesion")),
        ("histology", "Traditional serrated adenoma", "TSA"),
        *(("histology", text, None) for text in ("", "NA", "unknown", "-", " nan ")),
    ],
)
def test_spellings(name, text, value):
    assert parse_label(name, text) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(
            ("site", text)
            for text in ("colon", "left colon", "ascending?", "AD", "rectum, 12 cm", "терминальный", "\0")
        ),
        *(("histology", text) for text in ("AD?", "AD HP", "carcinoma", "serrated adenoma", "polyp", "cecum", "0")),
    ],
)
def test_what_is_no_spelling_is_not_guessed(name, text):
    with pytest.raises(ValueError, match=f"{name}: expected one of {LABELS[name][0]}, {LABELS[name][1]}.* found "):
        parse_label(name, text)


# REAL-Colon: what is wrong leaves a label unknown and is counted.


def indexed(layout, out: Path) -> tuple[dict, dict, list[tuple[str, str, str]]]:
    """Histology and site by polyp, the counts, and item, reason and detail of all notes."""
    counts = build_index(layout, out)
    labels = {row["polyp_id"]: (row["histology"], row["site"]) for row in read_index(out)[0].to_pylist()}
    with (out / "notes.csv").open(newline="", encoding="utf-8") as file:
        notes = [(row["item"], row["reason"], row["detail"]) for row in csv.DictReader(file)]
    assert counts["dropped"] == {}
    return labels, counts, notes


def lesions(root: Path, labels: list[tuple[str, str]], header: tuple[str, ...] = LESIONS, more=()) -> None:
    rows = [
        (polyp, polyp[:7], size, site, histology)
        for (polyp, size), (histology, site) in zip(REAL_SIZES.items(), labels, strict=True)
    ]
    write_csv(root / "lesion_info.csv", header, [*rows, *more])


def test_real_colon_maps_counts_and_leaves_out(tmp_path):
    root = write_real_colon(tmp_path / "root", frames=6)
    lesions(root, [("AD", "Caecum"), ("NO POLYP", "right colon"), ("", "rectum")])
    labels, counts, notes = indexed(open_real_colon(root), tmp_path / "out")
    assert labels == {"001-001_1": ("AD", "cecum"), "001-001_2": ("NO POLYP", None), "002-010_1": (None, "rectum")}
    assert counts["histology"] == {"AD": 1, "NO POLYP": 1, "not known": 1}
    assert counts["site"] == {"cecum": 1, "rectum": 1, "not known": 1}
    expected = f"one of {', '.join(SITES)}, or nothing"
    assert notes == [
        ("line 2", Note.LABEL_SPELLING, "'001-001_1': site 'Caecum' is 'cecum'"),
        ("line 3", Note.LABEL_UNKNOWN, f"'001-001_2': site: expected {expected}, found 'right colon'"),
        ("line 4", Note.LABEL_MISSING, "'002-010_1' has no histology"),
    ]
    assert counts["notes"] == {str(reason): 1 for _, reason, _ in notes}


@pytest.mark.parametrize(
    ("header", "absent"),
    [
        (LESIONS, []),
        (("\ufeffunique_object_id", " unique_video_name ", "size [mm]", "site ", "histology_class"), []),
        ((*LESIONS[:3], "location", "histology_extended"), ["histology_class", "site"]),
        ((*LESIONS[:4], "Histology_Class"), ["histology_class"]),
    ],
)
def test_real_colon_with_other_columns(tmp_path, header, absent):
    root = write_real_colon(tmp_path / "root", frames=4)
    lesions(root, [("HP", "sigmoid")] * 3, header)
    labels, counts, notes = indexed(open_real_colon(root), tmp_path / "out")
    expected = (None if "histology_class" in absent else "HP", None if "site" in absent else "sigmoid")
    assert set(labels.values()) == {expected}
    assert notes == [(name, Note.LABEL_COLUMN, "") for name in absent]
    assert counts["histology"] == ({"not known": 3} if absent else {"HP": 3})


def test_real_colon_lesions_of_two_rows(tmp_path):
    root = write_real_colon(tmp_path / "root", frames=4)
    again = [("001-001_1", "001-001", "4", "caecum", "AD"), ("001-001_1", "001-001", "4", "cecum", "HP")]
    lesions(root, [("HP", "cecum"), ("HP", "rectum"), ("HP", "rectum")], more=[*again, again[0]])
    layout = open_real_colon(root)
    assert [event[1:] for event in layout.labels.events] == [
        ("line 5", Note.LABEL_SPELLING, "'001-001_1': site 'caecum' is 'cecum'"),
        ("line 5", Note.LABEL_CONFLICT, "'001-001_1' has histology 'HP' and 'AD'"),
        ("line 7", Note.LABEL_SPELLING, "'001-001_1': site 'caecum' is 'cecum'"),
    ]
    assert layout.labels.of("001-001_1") == {"histology": None, "site": "cecum"}
    assert layout.labels.of("002-010_1") == {"histology": "HP", "site": "rectum"}


def test_an_index_that_an_earlier_version_had_begun_is_read_again(tmp_path):
    root, out = write_real_colon(tmp_path / "root", frames=3), tmp_path / "out"
    build_index(open_real_colon(root), out)
    part = out / "parts" / "001-001.00000.json"
    found = json.loads(part.read_text())
    for row in found["rows"]:
        del row["histology"], row["site"]
    part.write_text(json.dumps(found))
    assert build_index(open_real_colon(root), out)["files_read_now"] == 3
    assert read_index(out)[0].column("histology").null_count == 0


# SUN: a table of the user's own, in which what is wrong is an error.


def own(path: Path, *rows: tuple, header: tuple[str, ...] = OWN) -> Path:
    write_csv(path, header, rows)
    return path


def test_sun_with_a_table_of_the_users_own(sun, tmp_path):
    table = own(
        tmp_path / "own.csv",
        ("case1", "Low-grade adenoma", "caecum"),
        ("1.0", "AD", "cecum"),
        ("10", "", "rectum"),
        ("77", "HP", "rectum"),
    )
    labels, counts, notes = indexed(open_sun(sun, labels=table), tmp_path / "out")
    assert labels == {"1": ("AD", "cecum"), "2": (None, None), "10": (None, "rectum")}
    assert counts["histology"] == {"AD": 1, "not known": 2}
    assert notes == [
        ("line 2", Note.LABEL_SPELLING, "'1': histology 'Low-grade adenoma' is 'AD'"),
        ("line 2", Note.LABEL_SPELLING, "'1': site 'caecum' is 'cecum'"),
        ("line 4", Note.LABEL_MISSING, "'10' has no histology"),
        ("line 5", Note.LABEL_UNUSED, "'77'"),
        ("2", Note.LABEL_UNLISTED, ""),
    ]


def test_sun_without_a_table(sun, tmp_path):
    labels, counts, notes = indexed(open_sun(sun), tmp_path / "out")
    assert (set(labels.values()), notes) == ({(None, None)}, [])
    assert counts["site"] == {"not known": 3}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("1", "AD", "cecum"), ("2", "tubular", "cecum")], r"line 3: histology: expected one of AD, .*'tubular'"),
        ([("1", "AD", "colon")], r"line 2: site: expected one of cecum, .*found 'colon'"),
        ([("1", "AD", "cecum"), ("case01", "HP", "cecum")], r"of case 1, found .*'AD'.* in line 2 and .*'HP'.* line 3"),
        (
            [("1", "AD", "cecum"), ("1", "AD", "")],
            r"expected one histology and site of case 1, found .*None.* in line 3",
        ),
        ([("first", "AD", "cecum")], r"line 2: the ID is 'first'; expected the number of a case"),
        ([("", "AD", "cecum")], r"line 2: the ID is ''"),
        ([("77", "AD", "cecum")], r"expected some of case \['1', '2', '10'\] \.\.\., found \['77'\]"),
        ([], r"expected some of case .* found \[\]"),
        ([("1", "AD")], r"line 2: expected 3 cells, found fewer"),
        ([("1", "AD", "cecum", "x")], r"line 2: expected 3 cells, found more"),
    ],
)
def test_own_tables_that_are_refused(sun, tmp_path, rows, message):
    with pytest.raises(ValueError, match=rf"own\.csv.*{message}"):
        open_sun(sun, labels=own(tmp_path / "own.csv", *rows))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"expected columns \['case', 'histology', 'site'\], found \[\]"),
        (b"case,histology\n1,AD\n", r"expected columns \['site'\]"),
        (b"Case,Histology,Site\n1,AD,cecum\n", r"expected columns \['case', .*found \['Case', 'Histology', 'Site'\]"),
        (b"case,histology,site,site\n1,AD,cecum,cecum\n", "expected every column once, found 'site' twice"),
        ("case,histology,site\n1,AD,cæcum\n".encode("latin-1"), "expected a CSV in UTF-8"),
        ("case,histology,site\n1,AD,cecum\n".encode("utf-16"), "expected a CSV in UTF-8"),
        (b"case,histology,site\n1,A\0D,cecum\n", "found a NUL"),
        (b'case,histology,site\n1,"AD,cecum\n', "expected a CSV in UTF-8"),
    ],
)
def test_own_tables_that_are_none(sun, tmp_path, content, message):
    (tmp_path / "own.csv").write_bytes(content)
    with pytest.raises(ValueError, match=rf"own\.csv.*{message}"):
        open_sun(sun, labels=tmp_path / "own.csv")


def test_the_command(sun, tmp_path, monkeypatch, capsys):
    def call(*options: object) -> str:
        args = ["index", "sun", sun, "--out", tmp_path / "out", "--workers", 1, *options]
        monkeypatch.setattr(sys, "argv", [str(arg) for arg in args])
        command.main()
        return capsys.readouterr().out

    table = own(tmp_path / "own.csv", ("1", "NO POLYP", "sigma"), ("2", "HP", ""), ("10", "HP", "rectum"))
    lines = [line.split() for line in call("--labels", table).splitlines()]
    assert ["NO", "POLYP", "1"] in lines
    assert ["polyps", "by", "site"] in lines
    assert ["histology", "or", "site", "in", "another", "spelling", "1"] in lines
    assert "earlier version" not in call("--labels", table)
    with pytest.raises(UserError, match=r"labels: '.*' there, None now"):
        call()
    own(table, ("1", "AD", "sigma"))
    with pytest.raises(UserError, match="labels: "):
        call("--labels", table)
    own(table, ("1", "NO POLYP", "sigma"), ("2", "HP", ""), ("10", "HP", "rectum"))
    summary = tmp_path / "out" / "summary.json"
    old = {name: value for name, value in json.loads(summary.read_text()).items() if name not in LABELS}
    summary.write_text(json.dumps(old))
    assert "made by an earlier version, which did not read histology and site" in call("--labels", table)


# Indexes of before there were labels.


def old_index(path: Path, *, sealed: bool = True) -> pa.Table:
    """An index as earlier code wrote it: without the two columns, its seal over the others."""
    table = sort_index(table_of(cohort())).drop_columns(list(LABELS))
    roots = {"sun": "/data/sun", "real_colon": "/data/real"}
    metadata = {"roots": roots} | ({"sha256": table_digest(table, roots)} if sealed else {})
    pq.write_table(table.replace_schema_metadata({METADATA: json.dumps(metadata)}), path)
    return table


@pytest.mark.parametrize("sealed", [True, False])
def test_an_index_of_before_is_read_with_unknown_labels(tmp_path, sealed):
    old = old_index(tmp_path / "index.parquet", sealed=sealed)
    table, _ = read_index(tmp_path)
    assert table.column_names == list(COLUMNS)
    assert table.select(old.column_names).equals(old)
    assert all(table.column(name).null_count == len(table) for name in LABELS)
    assert set(label_codes(table, "site").tolist()) == {-1}


def test_the_seal_of_an_index_of_before_still_holds(tmp_path):
    path = tmp_path / "index.parquet"
    old_index(path)
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.column_names.index("xmin"), "xmin", table.column("ymin")), path)
    with pytest.raises(ValueError, match="damaged or was edited"):
        read_index(path)
    old_index(path)
    table = pq.read_table(path)
    labelled = table.append_column("histology", pa.array(["AD"] * len(table)))
    pq.write_table(labelled, path)
    with pytest.raises(ValueError, match=r"expected columns \['site'\]"):
        read_index(path)
    pq.write_table(labelled.append_column("site", pa.nulls(len(table), pa.string())), path)
    with pytest.raises(ValueError, match="damaged or was edited"):
        read_index(path)
    seal.main([str(path)])
    assert set(read_index(path)[0].column("histology").to_pylist()) == {"AD"}


def labelled_index(path: Path) -> None:
    rows = polyp_rows("1", 4.0, histology="AD", site="cecum") + polyp_rows("2", 4.0, histology=None, site="rectum")
    write_index(table_of(rows), path, {"sun": "/data/sun"})


def replace(table: pa.Table, name: str, values: list) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, pa.array(values, pa.string()))


@pytest.mark.parametrize(
    "edit",
    [
        lambda t: replace(t, "histology", ["HP"] * 3 + [None] * 3),
        lambda t: replace(t, "histology", ["AD"] * 6),
        lambda t: replace(t, "site", [None] * 6),
        lambda t: replace(replace(t, "histology", [None] * 6), "site", [None] * 6),
        lambda t: t.drop_columns(list(LABELS)),
    ],
)
def test_labels_are_sealed(tmp_path, edit):
    path = tmp_path / "index.parquet"
    labelled_index(path)
    pq.write_table(edit(pq.read_table(path)), path)
    with pytest.raises(ValueError, match="damaged or was edited"):
        read_index(path)


def test_labels_that_are_none(tmp_path):
    rows = polyp_rows("1", 4.0, histology="adenoma")
    with pytest.raises(ValueError, match=r"x\.parquet: histology: expected one of AD, .* found \['adenoma'\]"):
        write_index(table_of(rows), tmp_path / "x.parquet", {"sun": "/data/sun"})
    with pytest.raises(ValueError, match="name: expected one of 'histology', 'site', found 'sites'"):
        label_codes(table_of(rows), "sites")


def test_labels_are_part_of_what_a_run_is_of():
    def digest(**labels: str) -> str:
        rows = polyp_rows("1", 4.0, **labels)
        return digest_of(table_of(rows), np.zeros(len(rows), np.int8))

    assert digest() == "aba99abae0d41d45"  # as before there were labels: runs of then can go on
    others = [{"histology": "AD"}, {"histology": "HP"}, {"site": "cecum"}, {"site": "ascending"}]
    assert len({digest(), *(digest(**labels) for labels in others)}) == 5


# Examples.


def labelled_set(tmp_path: Path) -> tuple[pa.Table, dict[str, Path]]:
    table, roots = make_set(tmp_path / "frames", ((24, 16),) * 3)
    return replace(replace(table, "histology", ["NO POLYP", None, "AD"]), "site", [None, "rectum", "cecum"]), roots


def test_examples_carry_codes(tmp_path):
    table, roots = labelled_set(tmp_path)
    source = FrameSource(table, roots, 8)
    codes = [(source[row]["histology"], source[row]["site"]) for row in range(3)]
    assert codes == [(HISTOLOGIES.index("NO POLYP"), -1), (-1, SITES.index("rectum")), (0, 0)]
    assert {source[0][name].dtype for name in LABELS} == {np.dtype(np.int32)}
    build_cache(source, tmp_path / "cache")
    cached = CachedSource(tmp_path / "cache", source)
    assert [(cached[row]["histology"], cached[row]["site"]) for row in range(3)] == codes
    assert {cached[0][name].dtype for name in LABELS} == {np.dtype(np.int32)}
    other = FrameSource(replace(table, "site", ["sigmoid", "rectum", "cecum"]), roots, 8)
    with pytest.raises(CacheError, match="other frames, boxes, sizes or labels"):
        CachedSource(tmp_path / "cache", other)


def test_a_cache_of_before_is_refused(tmp_path):
    table, roots = labelled_set(tmp_path)
    build_cache(FrameSource(table, roots, 8), tmp_path / "cache")
    manifest = tmp_path / "cache" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 1}))
    with pytest.raises(
        CacheError, match=r"another version \(expected format 2, found 1\); delete the folder and build"
    ):
        CachedSource(tmp_path / "cache")


def test_codes_are_what_they_were():
    """They are in caches and checkpoints: values are only ever added at the end."""
    assert HISTOLOGIES == ("AD", "HP", "SSL", "TSA", "OTHER", "NO POLYP")
    assert SITES[:4] == ("cecum", "ascending", "hepatic flexure", "transverse")
    assert SITES[4:] == ("splenic flexure", "descending", "sigmoid", "rectum")
