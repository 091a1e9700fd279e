"""Frames of an epoch: as many of every polyp, seeded, whatever the order of rows."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsg_jax.data.batches import BatchOrder
from fsg_jax.endoscopy.index.sampling import epoch_length, rows_by_polyp, sample_epoch, sample_fixed
from tests.polyp_tables import cohort, polyp_rows, table_of

FRAMES = (100, 5, 1, 2)
TABLE = table_of([row for i, count in enumerate(FRAMES) for row in polyp_rows(str(i), 3.0, range(count))])
POLYPS = rows_by_polyp(TABLE)
counts = st.lists(st.integers(1, 30), min_size=1, max_size=8)


def polyps_of(frames):
    ends = np.cumsum(frames)
    return [np.arange(end - count, end) for count, end in zip(frames, ends, strict=True)]


def test_rows_by_polyp_are_in_natural_order():
    rows = polyp_rows("10", 3.0, (10, 9)) + polyp_rows("2", 3.0, (1,)) + polyp_rows("10", 3.0, (100,))
    assert [rows.tolist() for rows in rows_by_polyp(table_of(rows))] == [[2], [1, 0, 3]]
    assert [rows.tolist() for rows in rows_by_polyp(table_of(rows), np.array([3, 1]))] == [[1, 3]]
    assert rows_by_polyp(table_of(rows), np.array([], int)) == []


@settings(max_examples=50, deadline=None)
@given(counts, st.integers(1, 12), st.integers(0, 2**32 - 1), st.integers(0, 5), st.booleans())
def test_an_epoch_has_distinct_rows_of_every_polyp(frames, wanted, seed, epoch, skip):
    polyps = polyps_of([*frames, 2])
    rows = sample_epoch(polyps, wanted, seed, epoch, skip_single_frame=skip)
    assert len(set(rows.tolist())) == len(rows) == epoch_length(polyps, wanted, skip_single_frame=skip)
    for polyp in polyps:
        drawn = np.isin(rows, polyp).sum()
        assert drawn == (0 if skip and len(polyp) == 1 else min(wanted, len(polyp)))


def test_lengths_are_those_of_the_reference_if_single_frames_are_skipped():
    assert epoch_length(POLYPS, 10) == 18
    assert epoch_length(POLYPS, 10, skip_single_frame=True) == 17


def test_an_epoch_is_a_function_of_seed_and_epoch():
    first = sample_epoch(POLYPS, 10, seed=3, epoch=1)
    np.testing.assert_array_equal(first, sample_epoch(POLYPS, 10, seed=3, epoch=1))
    for seed, epoch in ((3, 0), (3, 2), (2, 1), (4, 1), (1, 3)):
        other = sample_epoch(POLYPS, 10, seed, epoch)
        assert set(other.tolist()) != set(first.tolist())


def test_the_draw_never_changes():
    assert sample_epoch(POLYPS, 3, seed=0, epoch=0).tolist() == [83, 107, 104, 105, 63, 103, 106, 100, 51]


def test_every_frame_is_drawn_as_often():
    drawn = np.concatenate([sample_epoch(POLYPS, 10, 0, epoch) for epoch in range(400)])
    of_first = np.bincount(drawn, minlength=108)[POLYPS[0]]
    assert of_first.sum() == 4000
    assert 15 <= of_first.min() <= of_first.max() <= 70  # binomial(400, 0.1): mean 40, std 6


def test_an_epoch_is_shuffled_across_polyps():
    long = polyps_of([50, 50])
    second = np.isin(sample_epoch(long, 50, 0, 0), long[1])
    assert 10 < second[:50].sum() < 40


@settings(max_examples=20, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(0, 9))
def test_order_of_rows_never_changes_the_frames(shuffle, epoch):
    rows = cohort()
    ours = table_of(rows)
    shuffle.shuffle(rows)
    theirs = table_of(rows)
    for sample in (partial(sample_epoch, seed=1, epoch=epoch), sample_fixed):
        drawn = [table.take(sample(rows_by_polyp(table), frames_per_polyp=2)) for table in (ours, theirs)]
        assert drawn[0].to_pylist() == drawn[1].to_pylist()


@settings(max_examples=50, deadline=None)
@given(counts, st.integers(1, 12))
def test_the_fixed_rows_are_evenly_spaced_in_time(frames, wanted):
    polyps = polyps_of(frames)
    rows = sample_fixed(polyps, wanted)
    assert len(rows) == epoch_length(polyps, wanted)
    for polyp in polyps:
        steps = np.diff(rows[np.isin(rows, polyp)])
        assert len(steps) == 0 or (steps.min() >= 1 and steps.max() - steps.min() <= 1)


def test_the_fixed_rows_are_known():
    polyps = polyps_of([10, 1, 2])
    assert sample_fixed(polyps, 3).tolist() == [1, 5, 8, 10, 11, 12]
    assert sample_fixed(polyps, 1).tolist() == [5, 10, 12]
    assert sample_fixed(polyps, 1, skip_single_frame=True).tolist() == [5, 12]
    np.testing.assert_array_equal(sample_fixed(polyps, None), np.arange(13))


def test_epochs_as_an_order_of_batches():
    order = BatchOrder(partial(sample_epoch, POLYPS, 10, 5), epoch_length(POLYPS, 10), 6)
    rows = np.concatenate([order.rows(step) for step in range(3, 6)])
    np.testing.assert_array_equal(rows, sample_epoch(POLYPS, 10, 5, epoch=1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((POLYPS, 0, 0, 0), "frames_per_polyp: expected an integer >= 1, found 0"),
        ((POLYPS, 2, -1, 0), "seed: expected an integer from 0"),
        ((POLYPS, 2, 0, -1), "epoch: expected an integer >= 0, found -1"),
        (([], 2, 0, 0), "expected at least one with frames, found none among 0"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        sample_epoch(*arguments)


def test_nothing_but_single_frames_to_skip():
    with pytest.raises(ValueError, match="found none among 2"):
        sample_fixed(polyps_of([1, 1]), None, skip_single_frame=True)
