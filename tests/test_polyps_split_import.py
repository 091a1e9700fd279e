"""Published folds are joined by key, and the command that writes folds."""

import csv
import random
from pathlib import Path

import pytest

from experiments.endoscopy import split
from experiments.errors import UserError
from fsg_jax.endoscopy.index.folds import SplitError, make_folds
from fsg_jax.endoscopy.index.roles import roles
from fsg_jax.endoscopy.index.schema import sort_index, write_index
from fsg_jax.endoscopy.index.split_files import import_audit, import_official, keep_listed, read_folds, write_folds
from fsg_jax.endoscopy.readers.reference_lists import LIST_COLUMNS, export_lists
from tests.polyp_tables import cases, cohort, polyp_rows, table_of

TABLE = sort_index(table_of(cohort()))
HEADER = (*LIST_COLUMNS, "gt_group", "kfold_id")


def official_rows(folds, names=("REALC", "SUN"), pad=True):
    """What the reference's split makes of the cohort, its SUN frames padded with zeros or not."""
    for row in TABLE.to_pylist():
        database = names[row["dataset"] == "sun"]
        frame = f"{int(row['frame_id']):03d}" if pad else row["frame_id"]
        box = [row[name] for name in ("xmin", "xmax", "ymin", "ymax", "width", "height")]
        key = database, row["polyp_id"], frame
        yield [*key, *box, "$PATH/x.jpg", row["size_mm"], "Dim", folds.fold_of[row["dataset"], row["polyp_id"]]]


def write_list(path: Path, rows, header=HEADER) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


@pytest.fixture(scope="module")
def folds():
    return make_folds(TABLE, 6, "polyp")


@pytest.fixture
def audit(tmp_path):
    """The videos of the cohort, labels by their first polyp, dealt to five folds."""
    videos = {}
    for row in TABLE.to_pylist():
        videos.setdefault((row["dataset"], row["video_id"]), row["size_mm"])
    rows = [[video, int(size > 5), dataset, i % 5] for i, ((dataset, video), size) in enumerate(videos.items())]
    return rows, tmp_path / "fold_assignments.csv"


def write_audit(rows, path):
    return write_list(path, rows, ("video_id", "label", "dataset", "fold"))


@pytest.mark.parametrize(("pad", "names"), [(True, ("REALC", "SUN")), (False, ("my REAL part", "SUN2"))])
def test_the_official_list_is_joined_by_key_in_any_order(tmp_path, folds, pad, names):
    rows = list(official_rows(folds, names, pad))
    random.Random(3).shuffle(rows)
    found = import_official(write_list(tmp_path / "list.csv", rows), TABLE)
    assert found.folds == folds
    assert found.unlisted == ()
    assert set(found.report.values()) == {0}


def test_our_own_lists_with_folds_come_back(tmp_path, folds):
    rows = []
    for path in export_lists(TABLE, tmp_path / "lists"):
        for row in list(csv.reader(path.read_text().splitlines()))[1:]:
            rows.append([*row, "Dim", folds.fold_of[{"REALC": "real_colon"}.get(row[0], "sun"), row[1]]])
    assert import_official(write_list(tmp_path / "list.csv", rows), TABLE).folds == folds


def test_what_list_and_index_do_not_share_is_counted(tmp_path, folds):
    rows = [row for row in official_rows(folds) if row[:3] != ["SUN", "3", "001"]]
    rows += [["SUN", "77", "1", *rows[-1][3:]], ["SUN", "4", "99", *rows[-1][3:-1], folds.fold_of["sun", "4"]], rows[0]]
    for row in rows:
        row[10] = 199.0 if row[:2] == ["SUN", "5"] else row[10]
    report = import_official(write_list(tmp_path / "list.csv", rows), TABLE).report
    assert report == {
        "listed polyps that the index lacks": 1,
        "listed frames that the index lacks": 2,
        "frames of the index that the list lacks": 1,
        "rows of the list that repeat a frame": 1,
        "polyps of another size in the list": 1,
        "polyps dropped, not in the list": 0,
    }


def test_polyps_that_the_list_lacks_are_an_error_or_dropped(tmp_path, folds):
    path = write_list(tmp_path / "list.csv", [row for row in official_rows(folds) if row[1] not in ("2", "10")])
    with pytest.raises(
        SplitError, match=r"expected a fold for every polyp, found none for 2: sun 2, sun 10 \(drop_unlisted"
    ):
        import_official(path, TABLE)
    found = import_official(path, TABLE, drop_unlisted=True)
    assert found.unlisted == (("sun", "2"), ("sun", "10"))
    assert found.report["polyps dropped, not in the list"] == 2
    kept = keep_listed(TABLE, found.folds)
    assert len(kept) == len(TABLE) - 6
    assert roles(kept, found.folds, 0).test.size


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[0].__setitem__(-1, (rows[0][-1] + 1) % 6), r"expected one fold for .*, found \d and \d"),
        (lambda rows: rows[4].__setitem__(-1, "x"), "line 6: kfold_id: expected an integer >= 0, found 'x'"),
        (
            lambda rows: rows[4].__setitem__(0, "CVC"),
            "line 6: database: expected a name with REAL or SUN in it, found 'CVC'",
        ),
        (lambda rows: rows.pop(0) and rows[0].pop(), "line 2: expected 13 cells, found fewer"),
        (lambda rows: rows[3].append(""), "line 5: expected 13 cells, found more"),
        (lambda rows: [row.__setitem__(-1, 1) for row in rows], "num_folds: expected an integer >= 3, found 2"),
    ],
)
def test_official_lists_that_are_refused(tmp_path, folds, change, message):
    rows = sorted(official_rows(folds), key=lambda row: row[1] != "2")  # a polyp with three frames first
    change(rows)
    with pytest.raises(ValueError, match=message):
        import_official(write_list(tmp_path / "list.csv", rows), TABLE)


def test_an_official_list_without_its_columns(tmp_path):
    with pytest.raises(ValueError, match=r"expected columns \['kfold_id'\], found"):
        import_official(write_list(tmp_path / "list.csv", [["SUN", "1", "1"]], HEADER[:3]), TABLE)


def test_the_audit_is_joined_by_video_in_any_order(audit):
    rows, path = audit
    expected = import_audit(write_audit(rows, path), TABLE)
    random.Random(1).shuffle(rows)
    found = import_audit(write_audit(rows, path), TABLE)
    assert found == expected
    assert (found.folds.num_folds, found.folds.group) == (5, "video")
    listed = {(dataset, video): fold for video, _, dataset, fold in rows}
    for row in TABLE.to_pylist():
        assert found.folds.fold_of[row["dataset"], row["polyp_id"]] == listed[row["dataset"], row["video_id"]]
    assert found.report["videos whose label differs from our sizes (5 mm)"] == 0
    for fold in range(5):
        roles(TABLE, found.folds, fold)


def test_labels_of_the_audit_are_compared_where_the_polyps_agree(tmp_path):
    rows = cases([5.0, 5.5, 12.0]) + polyp_rows("4_1", 3.0, video_id="4") + polyp_rows("4_2", 7.0, video_id="4")
    listed = [["1", 1, "sun", 0], ["2", 0, "sun", 1], ["case003", 1, "sun", 2], ["4", 0, "sun", 0], ["9", 0, "sun", 1]]
    report = import_audit(write_audit(listed, tmp_path / "audit.csv"), table_of(rows)).report
    assert report == {
        "listed videos that the index lacks": 1,
        "videos of the index that the list lacks": 0,
        "videos whose label differs from our sizes (5 mm)": 2,
        "videos with polyps on both sides of 5 mm, label not compared": 1,
        "polyps dropped, not in the list": 0,
    }


def test_videos_that_the_audit_lacks(audit):
    rows, path = audit
    write_audit([row for row in rows if row[0] != "001-003"], path)
    with pytest.raises(SplitError, match=r"found none for 2: real_colon 001-003_1, real_colon 001"):
        import_audit(path, TABLE)
    found = import_audit(path, TABLE, drop_unlisted=True)
    assert found.report["videos of the index that the list lacks"] == 1
    assert found.unlisted == (("real_colon", "001-003_1"), ("real_colon", "001-003_2"))


def test_a_video_of_the_audit_in_two_folds(audit):
    rows, path = audit
    with pytest.raises(SplitError, match="expected one fold for sun 1, found"):
        import_audit(write_audit([*rows, ["1", 0, "sun", 4], ["1", 0, "sun", 3]], path), TABLE)


def test_a_polyp_in_two_videos_of_the_audit(tmp_path):
    rows = cases([3.0] * 3) + polyp_rows("1", 3.0, range(5, 7), video_id="2")
    listed = [[str(i + 1), 0, "sun", i] for i in range(3)]
    with pytest.raises(SplitError, match="expected one fold for sun 1, found 0 and 1"):
        import_audit(write_audit(listed, tmp_path / "audit.csv"), table_of(rows))


@pytest.fixture
def index(tmp_path):
    path = tmp_path / "index.parquet"
    write_index(TABLE, path, {"sun": "/data/sun", "real_colon": "/data/real"})
    return path


def run(capsys, *argv) -> list[str]:
    split.main([str(arg) for arg in argv])
    return capsys.readouterr().out.splitlines()


def test_command_makes_folds(index, tmp_path, capsys):
    out = tmp_path / "new" / "splits.csv"
    lines = run(capsys, index, "--out", out)
    assert read_folds(out) == make_folds(TABLE, 6, "patient", 1)
    assert lines[0] == "SYNTHETIC: the index has polyps that are made up"
    assert lines[8].split()[0] == "all"
    assert lines[8].split()[-3:-1] == ["50", "/"]
    assert lines[-1] == f"50 polyps, kept together by patient, written to {out}"
    assert not any("roles share" in line for line in lines)
    assert run(capsys, index, "--out", out)[-1] == f"50 polyps, kept together by patient, are in {out}"
    with pytest.raises(UserError, match="found other folds in"):
        run(capsys, index, "--out", out, "--seed", "2")


def test_command_tells_what_folds_by_polyp_share(index, tmp_path, capsys):
    lines = run(capsys, index, "--out", tmp_path / "splits.csv", "--group", "polyp")
    folds = make_folds(TABLE, 6, "polyp")
    shared = [roles(TABLE, folds, fold).shared for fold in range(6)]
    assert shared[0].videos > 0
    expected = [
        f"fold {fold}: roles share {found.patients} patients, {found.videos} videos and {found.frames} frames"
        for fold, found in enumerate(shared)
    ]
    assert [line for line in lines if "roles share" in line] == expected


def test_command_imports_folds(index, tmp_path, capsys, folds, audit):
    path = write_list(tmp_path / "list.csv", [row for row in official_rows(folds) if row[1] != "2"])
    lines = run(capsys, index, "--out", tmp_path / "a.csv", "--official", path, "--drop-unlisted")
    assert "dropped: sun 2" in lines
    assert ("sun", "2") not in read_folds(tmp_path / "a.csv").fold_of
    write_audit(*audit)
    run(capsys, index, "--out", tmp_path / "b.csv", "--audit", audit[1])
    assert read_folds(tmp_path / "b.csv") == import_audit(audit[1], TABLE).folds


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--official", "a.csv", "--audit", "b.csv"], "expected one of them, found both"),
        (["--official", "a.csv", "--seed", "3"], "--seed: expected it only for folds that are made"),
        (["--drop-unlisted"], "expected it with --official or --audit, found neither"),
    ],
)
def test_options_that_contradict_each_other(index, tmp_path, capsys, options, message):
    with pytest.raises(UserError, match=message):
        run(capsys, index, "--out", tmp_path / "splits.csv", *options)
    assert not (tmp_path / "splits.csv").exists()


def test_command_with_too_many_folds(index, tmp_path, capsys):
    with pytest.raises(ValueError, match=r"num_folds: expected at most .* found 60"):
        run(capsys, index, "--out", tmp_path / "splits.csv", "--folds", "60")


def test_folds_are_not_written_into_a_folder_that_is_a_file(index, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to the output folder"):
        run(capsys, index, "--out", tmp_path / "file" / "splits.csv")
    with pytest.raises(OSError, match="absent"):
        write_folds(make_folds(TABLE), tmp_path / "absent" / "splits.csv")
