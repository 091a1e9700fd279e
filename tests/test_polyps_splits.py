"""Folds and roles: nothing is in two of them, whatever the order of rows and files."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedKFold

from fsg_jax.endoscopy.index.folds import GROUPS, SIZE_GROUPS, Folds, SplitError, group_counts, make_folds, size_group
from fsg_jax.endoscopy.index.roles import Roles, Shared, roles
from fsg_jax.endoscopy.index.schema import COLUMNS, natural_order, polyp_keys, sort_index
from fsg_jax.endoscopy.index.split_files import read_folds, write_folds
from tests.polyp_tables import cases, cohort, polyp_rows, table_of

TABLE = table_of(cohort())


def values(table, rows, *columns):
    return {tuple(table.column(name)[int(row)].as_py() for name in columns) for row in rows}


@pytest.mark.parametrize(
    ("size", "group"), [(0.5, 0), (5.0, 0), (np.nextafter(5, 6), 1), (9.999, 1), (10.0, 2), (15.0, 2)]
)
def test_size_groups(size, group):
    assert size_group(size) == group


@settings(max_examples=25, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from(sorted(GROUPS)), st.integers(0, 3))
def test_order_of_rows_and_datasets_never_changes_a_role(shuffle, group, seed):
    rows = cohort()
    shuffle.shuffle(rows)
    table = table_of(rows)
    folds, same = make_folds(TABLE, 6, group, seed), make_folds(table, 6, group, seed)
    assert folds == same
    fold = seed % 6
    for ours, theirs in zip(roles(TABLE, folds, fold)[:3], roles(table, same, fold)[:3], strict=True):
        assert TABLE.take(ours).to_pylist() == table.take(theirs).to_pylist()


@pytest.mark.parametrize("group", sorted(GROUPS))
def test_roles_are_a_partition_that_keeps_groups_together(group):
    folds = make_folds(TABLE, 6, group)
    tested = []
    for fold in range(6):
        parts = roles(TABLE, folds, fold)
        np.testing.assert_array_equal(np.sort(np.concatenate(parts[:3])), np.arange(TABLE.num_rows))
        for column in ("polyp_id", GROUPS[group]):
            train, validation, test = (values(TABLE, part, "dataset", column) for part in parts[:3])
            assert not train & validation | train & test | validation & test
        following = roles(TABLE, folds, (fold + 1) % 6)
        np.testing.assert_array_equal(parts.validation, following.test)
        tested += parts.test.tolist()
    assert sorted(tested) == list(range(TABLE.num_rows))


def test_patients_stay_together_and_polyps_alone_do_not():
    apart = [make_folds(TABLE, 6, "polyp", seed) for seed in range(9)]
    first, second = ("sun", "1"), ("sun", "2")
    assert any(folds.fold_of[first] != folds.fold_of[second] for folds in apart)
    kept = [make_folds(TABLE, 6, "patient", seed) for seed in range(9)]
    assert all(folds.fold_of[first] == folds.fold_of[second] for folds in kept)


def test_what_polyps_in_two_roles_share_is_counted():
    rows = polyp_rows("9_1", 3.0, range(4), video_id="9") + polyp_rows("9_2", 12.0, range(2, 6), video_id="9")
    table = table_of(rows + cases([3, 4, 6]))
    fold_of = {("sun", "9_1"): 0, ("sun", "9_2"): 1, ("sun", "1"): 2, ("sun", "2"): 2, ("sun", "3"): 2}
    assert roles(table, Folds(3, "polyp", fold_of), 0).shared == Shared(patients=1, videos=1, frames=2)
    with pytest.raises(SplitError, match=r"fold 0: expected every video in one role, found 1 in two: sun 9$"):
        roles(table, Folds(3, "video", fold_of), 0)
    assert roles(table, make_folds(table, 3, "patient"), 0).shared == Shared(0, 0, 0)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([2.0, 5.0, 7.5, 10.0]), min_size=24, max_size=40), st.integers(3, 6))
def test_folds_of_lone_polyps_are_stratified(sizes, num_folds):
    table = table_of(cases(sizes, frames=range(1)))
    for group in ("polyp", "video"):
        counts = group_counts(table, make_folds(table, num_folds, group))
        for name in SIZE_GROUPS if group == "polyp" else ():
            polyps = [count.polyps for count in counts if count.size_group == name]
            assert max(polyps) - min(polyps) <= 1
        assert sum(count.polyps for count in counts) == len(sizes)


def test_grouped_folds_have_a_like_share_of_every_size():
    table = table_of(cases([3.0, 7.0, 12.0] * 12, frames=range(1)))
    counts = group_counts(table, make_folds(table, 6, "patient"))
    assert [count.polyps for count in counts] == [2] * 18


def test_folds_by_polyp_are_those_of_the_reference():
    sizes = {key: size for key, size in zip(polyp_keys(TABLE), TABLE.column("size_mm").to_pylist(), strict=True)}
    numbered = sorted((key for key in sizes if key[0] == "sun"), key=lambda key: int(key[1]))
    keys = numbered + sorted(key for key in sizes if key[0] == "real_colon")
    labels = ["Dim" if sizes[key] <= 5 else "Small" if sizes[key] < 10 else "Large" for key in keys]
    expected = {}
    for fold, (_, test) in enumerate(StratifiedKFold(6, shuffle=True, random_state=1).split(keys, labels)):
        expected |= {keys[i]: fold for i in test}
    assert make_folds(TABLE, 6, "polyp", seed=1).fold_of == expected


def test_names_of_sun_cases_do_not_change_the_folds_of_the_reference():
    sizes = [3.0, 7.0, 12.0] * 5
    folds, padded = (
        make_folds(
            table_of([row | {"polyp_id": name.format(int(row["polyp_id"]))} for row in cases(sizes)]), 3, "polyp"
        )
        for name in ("{}", "case{:03d}")
    )
    assert padded.fold_of == {("sun", f"case{int(key[1]):03d}"): fold for key, fold in folds.fold_of.items()}


def test_a_polyp_in_two_videos_joins_them():
    rows = cases([3.0, 4.0, 7.0, 12.0, 3.0, 3.0])
    rows += polyp_rows("1", 3.0, range(5, 7), video_id="2") + polyp_rows("3", 7.0, range(5, 7), video_id="2")
    folds = make_folds(table_of(rows), 3, "video")
    assert len({folds.fold_of["sun", polyp] for polyp in "123"}) == 1
    for fold in range(3):
        roles(table_of(rows), folds, fold)


def test_one_video_name_in_two_datasets_is_two_videos():
    rows = [row for name in ("real_colon", "sun") for row in cases([3.0] * 3, dataset=name)]
    folds = make_folds(table_of(rows), 6, "video")
    assert sorted(folds.fold_of.values()) == list(range(6))


def test_censored_sizes_count_by_their_bound():
    rows = cases([3.0] * 6) + polyp_rows("7", 15.0, size_censored=True) + polyp_rows("8", 5.0, size_censored=True)
    counts = group_counts(table_of(rows), make_folds(table_of(rows), 3))
    assert [sum(c.polyps for c in counts if c.size_group == name) for name in SIZE_GROUPS] == [7, 0, 1]


def test_counts_of_polyps_and_frames():
    table = table_of(
        polyp_rows("1_1", 3.0, range(4), video_id="1")
        + polyp_rows("1_2", 4.0, range(2, 6), video_id="1")
        + polyp_rows("1_3", 10.0, range(1), video_id="1")
        + cases([6.0, 6.0])[3:]
    )
    fold_of = {("sun", f"1_{i}"): 0 for i in (1, 2, 3)} | {("sun", "2"): 1}
    counts = group_counts(table, Folds(3, "video", fold_of))
    assert counts[0] == (0, "<= 5 mm", 2, 6)
    assert [count[2:] for count in counts[1:]] == [(0, 0), (1, 1), (0, 0), (1, 3), (0, 0), (0, 0), (0, 0), (0, 0)]


def test_natural_order_is_that_of_the_index_and_ties_are_broken_by_the_box():
    index = sort_index(TABLE)
    np.testing.assert_array_equal(natural_order(index), np.arange(index.num_rows))
    rows = polyp_rows("1", 3.0, range(12)) + polyp_rows("1", 3.0, range(12), xmin=1)
    random.Random(0).shuffle(rows)
    table = table_of(rows)
    ordered = table.take(natural_order(table)).to_pylist()
    assert [(int(row["frame_id"]), row["xmin"]) for row in ordered] == [(t, x) for t in range(12) for x in (1, 3)]


@pytest.mark.parametrize(
    ("sizes", "options", "message"),
    [
        ([3.0] * 5, {}, "num_folds: expected at most 5, a fold for every patient group, found 6"),
        ([3.0, 7.0, 12.0] * 2, {}, "at most 2, as there are 2 of <= 5 mm, 2 of 5 to 10 mm, 2 of >= 10 mm, found 6"),
        ([3.0] * 6 + [None], {}, "size of sun 7: expected mm above 0 to stratify folds by, found None"),
        ([3.0] * 6 + [float("nan")], {}, "size of sun 7: .* found nan"),
        ([3.0] * 6, {"group": "case"}, "group: expected one of 'patient', 'video', 'polyp', found 'case'"),
        ([3.0] * 6, {"num_folds": 2}, "num_folds: expected an integer >= 3, found 2"),
        ([3.0] * 6, {"seed": -1}, "seed: expected an integer from 0 to 4294967295, found -1"),
    ],
)
def test_folds_that_cannot_be_made(sizes, options, message):
    with pytest.raises(ValueError, match=message):
        make_folds(table_of(cases(sizes)), **options)


def test_a_polyp_of_two_sizes():
    with pytest.raises(SplitError, match="size of sun 1: expected one, found 3 and 4 mm"):
        make_folds(table_of(cases([3.0] * 6) + polyp_rows("1", 4.0)))


def test_roles_that_cannot_be_given():
    table = table_of(cases([3.0] * 6))
    folds = make_folds(table, 3)
    with pytest.raises(ValueError, match="fold: expected an integer from 0 to 2, found 3"):
        roles(table, folds, 3)
    with pytest.raises(SplitError, match="every polyp, found none for 1: sun 7"):
        roles(table_of(cases([3.0] * 7)), folds, 0)
    lacking = {key: 0 if fold == 1 else fold for key, fold in folds.fold_of.items()}
    with pytest.raises(SplitError, match="fold 0: expected rows in every role, found none for 'validation'"):
        roles(table, Folds(3, "patient", lacking), 0)
    with pytest.raises(ValueError, match="fold of sun 1: expected an integer from 0 to 2, found 3"):
        Folds(3, "patient", {("sun", "1"): 3})


def test_roles_of_an_index_without_sizes():
    table = table_of([row | {"size_mm": None} for row in cases([3.0] * 6)])
    fold_of = {("sun", str(i + 1)): i % 3 for i in range(6)}
    assert isinstance(roles(table, Folds(3, "video", fold_of), 1), Roles)


@pytest.mark.parametrize("group", sorted(GROUPS))
def test_folds_come_back_from_their_file(tmp_path, group):
    folds = make_folds(TABLE, 4, group)
    write_folds(folds, tmp_path / "splits.csv")
    assert read_folds(tmp_path / "splits.csv") == folds
    assert sorted(path.name for path in tmp_path.iterdir()) == ["splits.csv", "splits.csv.sha256"]
    lines = (tmp_path / "splits.csv").read_text().splitlines()
    assert lines[0] == "dataset,polyp_id,fold,num_folds,group"
    assert lines[1].startswith("real_colon,001-001_1,")
    assert len(lines) == 1 + 50


def test_a_file_with_the_three_columns_only(tmp_path):
    path = tmp_path / "ünïcode ids.csv"
    path.write_text('\ufefffold,dataset,polyp_id,remark\n 0,sun,"a, b",x\n1.0,sun,ß 2,\n2,sun,3,\n', encoding="utf-8")
    fold_of = {("sun", "a, b"): 0, ("sun", "ß 2"): 1, ("sun", "3"): 2}
    assert read_folds(path) == Folds(3, "polyp", fold_of)
    assert read_folds(path, num_folds=4, group="patient") == Folds(4, "patient", fold_of)
    write_folds(Folds(3, "polyp", fold_of), tmp_path / "again.csv")
    assert read_folds(tmp_path / "again.csv").fold_of == fold_of


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dataset,polyp_id\nsun,1\n", r"expected columns \['fold'\], found \['dataset', 'polyp_id'\]"),
        ("dataset,polyp_id,fold\n", "expected a row for every polyp, found none"),
        ("dataset,polyp_id,fold\nsun,1,0\nsun,2,one\n", "line 3: fold: expected an integer >= 0, found 'one'"),
        ("dataset,polyp_id,fold\nsun,1,-1\n", "line 2: fold: expected an integer >= 0, found '-1'"),
        ("dataset,polyp_id,fold\nsun,1,0\nsun,1,1\n", "line 3: expected each polyp once, found sun 1 again"),
        ("dataset,polyp_id,fold\nsun,1,1\n", "num_folds: expected an integer >= 3, found 2"),
        ("dataset,polyp_id,fold\nsun,1\n", "line 2: expected 3 cells, found fewer"),
        ("dataset,polyp_id,fold\nsun,1,2,3\n", "line 2: expected 3 cells, found more"),
        ("dataset,polyp_id,fold\nsun,\0,\xff".encode("latin-1"), "expected a CSV in UTF-8"),
        (
            "dataset,polyp_id,fold,group\nsun,1,2,video\nsun,2,1,polyp\n",
            r"group: expected one value in all rows, found \['polyp', 'video'\]",
        ),
        ("dataset,polyp_id,fold,group\nsun,1,2,case\n", "group: expected one of .* found 'case'"),
        ("", r"expected columns .*, found \[\]"),
    ],
)
def test_damaged_files_of_folds(tmp_path, text, message):
    path = tmp_path / "splits.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message) as caught:
        read_folds(path)
    assert str(path) in str(caught.value)


def test_no_file_of_folds(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"splits\.csv"):
        read_folds(tmp_path / "splits.csv")


def test_an_index_has_the_columns_of_the_test_tables():
    assert TABLE.column_names == list(COLUMNS)
