"""Damaged and edited indexes, folds, caches and depth.json are refused or read as they were, never as others."""

import csv
import dataclasses
import hashlib
import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from experiments.endoscopy import seal, split
from experiments.endoscopy.cohort import load_cohort
from experiments.endoscopy.polyp_config import PolypData
from experiments.errors import UserError, run_main
from fsg_jax.endoscopy.frames.decode import FrameError, open_image
from fsg_jax.endoscopy.frames.depth_maps import DEPTH_INFO, read_depth_info
from fsg_jax.endoscopy.frames.frame_cache import CachedSource, CacheError, Manifest, build_cache
from fsg_jax.endoscopy.frames.source import FrameSource
from fsg_jax.endoscopy.index.folds import Folds, make_folds
from fsg_jax.endoscopy.index.schema import METADATA, is_sealed, read_index, write_index
from fsg_jax.endoscopy.index.split_files import import_audit, import_official, read_folds, seal_folds, write_folds
from fsg_jax.endoscopy.readers.reports import Event, Note, Reason, harmless, write_reports
from tests.polyp_frames import make_set
from tests.polyp_tables import cases, cohort, table_of

TABLE = table_of(cohort())
ROOTS = {"sun": "/data/sun", "real_colon": "/data/real"}
HUGE = str(2**70)


@pytest.fixture
def index(tmp_path):
    path = tmp_path / "index.parquet"
    write_index(TABLE, path, ROOTS)
    return path


@pytest.fixture
def splits(tmp_path):
    write_folds(make_folds(TABLE), tmp_path / "splits.csv")
    return tmp_path / "splits.csv"


def flips(content: bytes, count: int, seed: int = 0):
    """The content with one bit turned round, `count` times at other places."""
    for bit in np.random.default_rng(seed).choice(8 * len(content), count, replace=False).tolist():
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        yield bytes(damaged)


def attempt(read, *args):
    """What `read` returns and "", or None and the message of its ValueError."""
    try:
        return read(*args), ""
    except ValueError as error:
        return None, str(error)


def test_an_index_with_a_flipped_bit_is_refused_or_the_same(index):
    table, roots = read_index(index)
    refused = 0
    for content in flips(index.read_bytes(), 300):
        index.write_bytes(content)
        found, message = attempt(read_index, index)
        refused += bool(message)
        if message:
            assert str(index) in message
        else:
            assert found[0].equals(table)
            assert found[1] == roots
            assert is_sealed(index)
    assert refused > 150


def set_values(name, change):
    def edit(table):
        values = [change(value) for value in table.column(name).to_pylist()]
        place = table.column_names.index(name)
        return table.set_column(place, table.field(name), pa.array(values, table.field(name).type))

    return edit


def move_roots(table):
    found = json.loads(table.schema.metadata[METADATA])
    found["roots"]["sun"] = "/elsewhere"
    return table.replace_schema_metadata({METADATA: json.dumps(found)})


EDITS = {
    "width": set_values("width", lambda width: width + 32),
    "size": set_values("size_mm", lambda size: None if size == 3 else size),
    "polyp": set_values("polyp_id", lambda text: "1" if text == "2" else text),
    "mask": set_values("mask_path", lambda path: "m.png"),
    "empty mask": set_values("mask_path", lambda path: ""),
    "flag": set_values("synthetic", lambda flag: False),
    "shorter": lambda table: table.slice(1),
    "longer": lambda table: pa.concat_tables([table, table.slice(0, 1)]),
    "swapped": lambda table: table.rename_columns(
        [{"xmin": "ymin", "ymin": "xmin"}.get(name, name) for name in table.column_names]
    ).replace_schema_metadata(table.schema.metadata),
    "roots": move_roots,
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_index_is_refused_until_it_is_sealed_anew(index, edit, capsys):
    edited = EDITS[edit](pq.read_table(index))
    pq.write_table(edited, index)
    with pytest.raises(ValueError, match="damaged or was edited") as caught:
        read_index(index)
    assert f"python -m experiments.seal {index}" in str(caught.value)
    seal.main([str(index.parent)])
    assert capsys.readouterr().out == f"sealed {index.parent}\n"
    found, _ = read_index(index)
    assert sorted(map(str, found.to_pylist())) == sorted(map(str, edited.select(found.column_names).to_pylist()))
    assert is_sealed(index)


@pytest.mark.parametrize("options", [{"row_group_size": 7}, {"compression": "zstd"}, {"use_dictionary": False}])
def test_the_same_index_written_in_another_way_is_the_same(index, options):
    before = read_index(index)
    pq.write_table(pq.read_table(index), index, **options)
    assert read_index(index)[0].equals(before[0])
    assert is_sealed(index)


def test_an_index_that_lost_its_roots_in_another_program(index, tmp_path, capsys):
    pq.write_table(pq.read_table(index).replace_schema_metadata({"pandas": "{}"}), index)
    with pytest.raises(ValueError, match=r"experiments\.seal .*index\.parquet --root DATASET=FOLDER"):
        read_index(index)
    with pytest.raises(ValueError, match=r"roots: expected the folder of every dataset, found none for \['real_"):
        seal.main([str(index)])
    with pytest.raises(UserError, match="--root: expected DATASET=FOLDER with a folder that exists, found 'sun=/nope'"):
        seal.main([str(index), "--root", "sun=/nope"])
    seal.main([str(index), "--root", f"sun={tmp_path}", f"real_colon={tmp_path}"])
    assert read_index(index)[1] == {"sun": tmp_path, "real_colon": tmp_path}


@pytest.mark.parametrize(
    "metadata",
    [
        {"roots": {"sun": 1}},
        {"roots": ["sun"]},
        {"roots": None},
        {},
        [],
        {"roots": ROOTS, "sha257": "0" * 64},
        {"roots": ROOTS, "sha256": None},
        {"roots": ROOTS, "sha256": "0" * 64},
    ],
)
def test_metadata_that_is_none_of_an_index(index, metadata):
    pq.write_table(pq.read_table(index).replace_schema_metadata({METADATA: json.dumps(metadata)}), index)
    with pytest.raises(ValueError, match=r"index\.parquet"):
        read_index(index)


def test_a_column_twice(index):
    table = pq.read_table(index)
    pq.write_table(table.append_column("xmin", table.column("ymin")), index)
    with pytest.raises(ValueError, match=r"expected each column once, found \['xmin'\] again"):
        read_index(index)


def test_folders_named_like_a_partition_add_no_column(tmp_path):
    folder = tmp_path / "dataset=kvasir" / "width=3"
    folder.mkdir(parents=True)
    write_index(TABLE, folder / "index.parquet", ROOTS)
    assert set(read_index(folder)[0].column("dataset").to_pylist()) == set(ROOTS)


# Folds.


def rewrite(path, change):
    """The CSV as a program writes it after `change` of its rows, each a dict."""
    with path.open(newline="") as file:
        rows = [change(index, row) for index, row in enumerate(csv.DictReader(file))]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


RESAVED = {
    "decimals": lambda i, row: row | {"fold": f"{row['fold']}.0", "num_folds": f"{row['num_folds']}.0"},
    "index column": lambda i, row: {"Unnamed: 0": i, "": i} | row,
    "decimal ids": lambda i, row: row | ({"polyp_id": f"{row['polyp_id']}.0"} if row["dataset"] == "sun" else {}),
    "spaces": lambda i, row: {name: f" {value} " for name, value in row.items()},
    "other order": lambda i, row: dict(reversed(row.items())),
    "more columns": lambda i, row: row | {"remark": "=1+1"},
}


@pytest.mark.parametrize("change", RESAVED)
def test_the_same_folds_written_in_another_way_are_the_same(splits, index, change, capsys):
    folds = read_folds(splits)
    rewrite(splits, RESAVED[change])
    assert read_folds(splits) == folds
    split.main([str(index), "--out", str(splits)])
    assert "are in" in capsys.readouterr().out.splitlines()[-1]
    splits.with_name("splits.csv.sha256").unlink()
    assert read_folds(splits) == folds


FOLD_EDITS = {
    "another fold": lambda i, row: row | {"fold": (int(row["fold"]) + (i == 7)) % 6},
    "another polyp": lambda i, row: row | ({"polyp_id": "99"} if row["polyp_id"] == "9" else {}),
    "another group": lambda i, row: row | {"group": "polyp"},
    "another number": lambda i, row: row | {"num_folds": 7},
    "no group": lambda i, row: {name: row[name] for name in ("dataset", "polyp_id", "fold")},
}


@pytest.mark.parametrize("edit", FOLD_EDITS)
def test_edited_folds_are_refused_until_they_are_sealed_anew(splits, edit, capsys):
    before = read_folds(splits)
    rewrite(splits, FOLD_EDITS[edit])
    with pytest.raises(ValueError, match="damaged or was edited") as caught:
        read_folds(splits)
    assert f"python -m experiments.seal {splits}" in str(caught.value)
    seal.main([str(splits)])
    assert read_folds(splits) != before


def test_folds_with_a_flipped_bit_are_refused_or_the_same(splits):
    folds, refused = read_folds(splits), 0
    for content in flips(splits.read_bytes(), 300):
        splits.write_bytes(content)
        found, message = attempt(read_folds, splits)
        refused += bool(message)
        assert str(splits) in message if message else found == folds
    assert refused > 250


def test_the_seal_is_what_sha256sum_says(splits):
    digest = hashlib.sha256(splits.read_bytes()).hexdigest()
    assert splits.with_name("splits.csv.sha256").read_text() == f"{digest}  splits.csv\n"


@pytest.mark.parametrize("content", [b"", b"\xff" * 70, b"0" * 64, b"x" * 70, b"0" * 5000, b"0" * 64 + b" splits.csv"])
def test_a_damaged_seal(splits, content):
    splits.with_name("splits.csv.sha256").write_bytes(content)
    with pytest.raises(ValueError, match=r"splits\.csv"):
        read_folds(splits)
    seal_folds(splits)
    assert read_folds(splits) == make_folds(TABLE)


def test_folds_killed_before_they_had_their_name(splits, tmp_path):
    splits.unlink()
    write_folds(make_folds(TABLE, seed=2), splits)
    assert read_folds(splits) == make_folds(TABLE, seed=2)


@pytest.mark.parametrize("sealed", [True, False])
def test_a_run_records_what_is_unverified(index, splits, sealed):
    if not sealed:
        table = pq.read_table(index)
        pq.write_table(table.replace_schema_metadata({METADATA: json.dumps({"roots": ROOTS})}), index)
        splits.with_name("splits.csv.sha256").unlink()
    config = PolypData(index=(index,), splits=splits, validation_frames=None)
    assert load_cohort(config).info["data"]["unverified"] == ([] if sealed else [str(index), str(splits)])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (f"sun,1,{HUGE}", "line 2: fold: expected an integer from 0 to 1000, found 118059"),
        (f"sun,1,{'9' * 5000}", "line 2: fold: expected an integer from 0 to 1000"),
        ("sun,1,1001", "line 2: fold: expected an integer from 0 to 1000, found 1001"),
        (f"sun,1,0,{HUGE}", "num_folds: expected an integer from 0 to 1000"),
        ("sun,1,0,1001.0", "num_folds: expected an integer from 0 to 1000"),
        ("sun,1,0,six", "num_folds: expected an integer >= 0, found 'six'"),
        ("sun,1,0.5", "fold: expected an integer >= 0, found '0.5'"),
        ("sun,1,٣", "fold: expected an integer >= 0"),
    ],
)
def test_folds_out_of_range(tmp_path, row, message):
    path = tmp_path / "splits.csv"
    header = "dataset,polyp_id,fold,num_folds" if row.count(",") == 3 else "dataset,polyp_id,fold"
    path.write_text(f"{header}\n{row}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=rf"splits\.csv.*{message}"):
        read_folds(path)
    with pytest.raises(ValueError, match="num_folds: expected at most 1000, found 1180591620717411303424"):
        Folds(2**70, "polyp", {})


def test_lists_with_decimals_join_every_polyp_and_frame(tmp_path):
    table = table_of(cases([3.0, 4.0, 12.0]))
    rows = [
        f"{i},SUN,{row['polyp_id']}.0,{row['frame_id']}.0,{i % 9 // 3}.0,3" for i, row in enumerate(table.to_pylist())
    ]
    (tmp_path / "o.csv").write_text("\n".join(["Unnamed: 0,database,unique_id,frame_id,kfold_id,x", *rows]))
    found = import_official(tmp_path / "o.csv", table)
    assert found.folds.fold_of == {("sun", "1"): 0, ("sun", "2"): 1, ("sun", "3"): 2}
    assert set(found.report.values()) == {0}
    rows = [f"{i},{i + 1}.0,{int(i == 2)}.0,sun,{i}.0" for i in range(3)]
    (tmp_path / "a.csv").write_text("\n".join([",video_id,label,dataset,fold", *rows]))
    found = import_audit(tmp_path / "a.csv", table)
    assert found.folds.fold_of == {("sun", "1"): 0, ("sun", "2"): 1, ("sun", "3"): 2}
    assert set(found.report.values()) == {0}


# The cache of frames.


@pytest.fixture
def cache(tmp_path):
    table, roots = make_set(tmp_path / "frames", ((64, 48),) * 3)
    source = FrameSource(table, roots, 8)
    build_cache(source, tmp_path / "cache", compression="none")
    return tmp_path / "cache", source


@pytest.mark.slow
def test_a_cache_with_a_flipped_bit_is_refused_or_the_same(cache):
    folder, source = cache
    (shard,) = folder.glob("shard-*")
    content = shard.read_bytes()
    used = len(content[: 2**16].rstrip(b"\0"))  # the records; zeros and the footer follow
    refused = 0
    for head in flips(content[:used], 300):
        shard.write_bytes(head + content[used:])
        cached = CachedSource(folder, source)
        for row in range(3):
            found, message = attempt(cached.__getitem__, row)
            refused += bool(message)
            if message:
                assert str(shard) in message
            else:
                assert all(np.array_equal(found[name], value) for name, value in source[row].items())
    assert refused > 200


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("rows", value) for value in (2**70, -1, 1.5, None, True, "3", 2**24 + 1)),
        *(("size", value) for value in (2**70, 0, None, 2**13 + 1, 7)),
        *(("shard_size", value) for value in (0, 2**70, None, -1)),
        *(("compression", value) for value in ("", None, [], "gzip")),
        *((name, value) for name in ("keep_aspect", "depth") for value in (0, None, "no")),
        *(("rows_sha256", value) for value in (None, 3)),
        *(("format", value) for value in (None, 1, 3, "2", [])),
        ("more", 1),
    ],
)
def test_values_of_a_manifest(cache, name, value):
    folder, _ = cache
    file = folder / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))
    with pytest.raises(CacheError, match=r"manifest\.json|shard-00000"):
        CachedSource(folder)[0]


def test_a_manifest_of_many_shards_is_refused_at_once():
    good = Manifest(10, "0" * 64, 8, False, False, 5, "none")
    with pytest.raises(ValueError, match=f"shard_size: expected an integer from 256 to {2**63}, found 5"):
        dataclasses.replace(good, rows=2**24)


@pytest.mark.parametrize(
    "text", ['{"rows": 3, "rows": 4}', "[]", "{", "\ud800", '{"rows": "\\ud800"}', "[" * 10**5, "null"]
)
def test_a_manifest_that_is_no_object(cache, text):
    folder, _ = cache
    (folder / "manifest.json").write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(CacheError, match=r"manifest\.json is damaged"):
        CachedSource(folder)


def npy(shape: str, descr: str = "'<i8'") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00v\x00" + header.encode()


@pytest.mark.parametrize(
    "content",
    [npy("(1099511627776, 2)"), npy("(3, 2)", "'|O'") + b"\x80\x04N.", npy("(2, 2)") + bytes(32), b"\x93NUMPY"],
)
def test_a_list_of_files_that_is_none(cache, content):
    folder, source = cache
    (folder / "files.npy").write_bytes(content)
    with pytest.raises(CacheError, match=r"found one with a damaged files\.npy"):
        CachedSource(folder, source)


@pytest.mark.parametrize(
    "info",
    [
        {"model": 3, "larger_is": "nearer"},
        {"model": "m", "larger_is": ["nearer"]},
        {"model": "m", "larger_is": "nearer", "synthetic": "no"},
        {"model": "m", "larger_is": "nearer", "revision": 7},
        {"model": None, "larger_is": "farther"},
        {"larger_is": "farther", "more": "x" * 10**5},
    ],
)
def test_depth_json_of_other_types(tmp_path, info):
    (tmp_path / DEPTH_INFO).write_text(json.dumps(info))
    with pytest.raises(ValueError, match=r"depth\.json: expected") as caught:
        read_depth_info(tmp_path)
    assert len(str(caught.value)) < 500


def test_pipes_and_folders_are_refused_before_they_are_opened(tmp_path, cache, splits):
    folder, source = cache
    for path, read, error in (
        (tmp_path / "pipe.parquet", read_index, ValueError),
        (splits.with_name("splits.csv.sha256"), lambda path: read_folds(splits), ValueError),
        (tmp_path / DEPTH_INFO, lambda path: read_depth_info(tmp_path), ValueError),
        (tmp_path / "frame.jpg", lambda path: open_image(path, "").__enter__(), FrameError),
        (folder / "files.npy", lambda path: CachedSource(folder, source), CacheError),
        (folder / "shard-00000.arrayrecord", lambda path: CachedSource(folder), ValueError),
        (folder / "manifest.json", lambda path: CachedSource(folder), CacheError),
    ):
        path.unlink(missing_ok=True)
        os.mkfifo(path)
        with pytest.raises(error, match=f"{path.name}.*expected a regular file"):
            read(path)


def test_one_error_line(index, capsys):
    pq.write_table(EDITS["width"](pq.read_table(index)), index)
    with pytest.raises(SystemExit, match="2"):
        run_main(lambda: split.main([str(index), "--out", str(index.with_name("s.csv"))]))
    error = capsys.readouterr().err
    assert error.startswith(f"error: {index} is damaged or was edited")
    assert error.count("\n") == 1
    assert not index.with_name("s.csv").exists()


@pytest.mark.parametrize(
    ("cell", "written"),
    [
        *((text, f"'{text}") for text in ("=1+1", "+cmd|x", "-x.jpg", "@a", "\tx", "\n=1", "-1.5x", "=-1", "-")),
        *((text, text) for text in ("-1.5", "+3", "-2e-05", "", "a=1", "1-2", "'=1", "line 3", " =1", "-.5")),
        ("\r=1", "\\r=1"),
        ("=\r1", "'=\\r1"),
    ],
)
def test_cells_for_people_are_no_formulas(tmp_path, cell, written):
    assert harmless(cell) == written
    write_reports([Event(cell, cell, Reason.FILE_NAME, cell), Event(cell, cell, Note.CLIPPED, cell)], tmp_path)
    for name in ("dropped.csv", "notes.csv"):
        with (tmp_path / name).open(newline="") as file:
            (row,) = list(csv.DictReader(file))
        assert [row["file"], row["item"], row["detail"]] == [written] * 3
