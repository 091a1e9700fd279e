"""Stratified splits and the digits."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsg_jax.data import ImageDataset, load_digits, split_test, stratified_holdout


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_holdout_is_a_stratified_partition(data):
    labels = np.array(data.draw(st.lists(st.integers(0, 5), min_size=2, max_size=60)))
    size = data.draw(st.integers(1, len(labels) - 1))
    train, held = stratified_holdout(labels, size, seed=data.draw(st.integers(0, 9)))
    np.testing.assert_array_equal(np.sort(np.concatenate([train, held])), np.arange(len(labels)))
    assert len(held) == size
    assert (np.diff(train) > 0).all()
    assert (np.diff(held) > 0).all()
    for label in np.unique(labels):
        quota = size * np.mean(labels == label)
        assert np.floor(quota) <= np.sum(labels[held] == label) <= np.ceil(quota)


@pytest.mark.parametrize("size", [5000, 4970])
def test_holdout_of_balanced_classes_differs_by_at_most_one(size):
    labels = np.repeat(np.arange(100), 500)
    counts = np.bincount(labels[stratified_holdout(labels, size)[1]], minlength=100)
    assert counts.sum() == size
    assert counts.max() - counts.min() <= 1


def test_holdout_never_changes():
    labels = np.arange(50_000) % 100
    held = [stratified_holdout(labels, 5000, seed=seed)[1] for seed in (0, 1)]
    assert held[0][:8].tolist() == [10, 16, 20, 21, 25, 34, 45, 56]
    assert hashlib.sha256(held[0].astype("<i8").tobytes()).hexdigest().startswith("a306831b20fcd876f0f4c1a7f69126bd")
    assert not np.array_equal(held[0], held[1])


def test_the_largest_remainders_get_the_rows_left_over():
    labels = np.repeat([0, 1, 2], [10, 6, 4])  # quotas of 7: 3.5, 2.1, 1.4
    assert np.bincount(labels[stratified_holdout(labels, 7)[1]]).tolist() == [4, 2, 1]


@pytest.mark.parametrize("size", [-1, 0, 10, 11])
def test_holdout_size_out_of_range(size):
    with pytest.raises(ValueError, match=f"size: expected an integer from 1 to 9, found {size}"):
        stratified_holdout(np.zeros(10, int), size)


def test_digits():
    sklearn = pytest.importorskip("sklearn.datasets").load_digits()
    digits = load_digits()
    assert digits.images.shape == (1797, 8, 8, 1)
    assert digits.class_names == tuple("0123456789")
    np.testing.assert_array_equal(digits.labels, sklearn.target)
    scaled = {int(v): int(digits.images[..., 0][sklearn.images == v].max()) for v in range(17)}
    assert scaled == {v: round(v * 255 / 16) for v in range(17)}


def test_digits_train_and_test_are_a_fixed_partition():
    pytest.importorskip("sklearn")
    parts = load_digits("train"), load_digits("test")
    assert [len(part) for part in parts] == [1438, 359]
    whole = sorted(image.tobytes() for image in load_digits().images)
    assert sorted(image.tobytes() for part in parts for image in part.images) == whole
    counts = np.bincount(parts[1].labels)
    assert counts.min() >= 34
    assert counts.max() <= 37
    np.testing.assert_array_equal(parts[1].images, load_digits("test").images)


def test_digits_unknown_split():
    with pytest.raises(ValueError, match="split: expected one of 'all', 'train', 'test', found 'validation'"):
        load_digits("validation")


def test_split_test_of_too_small_a_share():
    dataset = ImageDataset(np.zeros((4, 1, 1, 1), np.uint8), np.zeros(4, np.int32), ("a",))
    assert [len(part) for part in split_test(dataset, fraction=0.25)] == [3, 1]
    with pytest.raises(ValueError, match="size: expected an integer from 1 to 3, found 0"):
        split_test(dataset, fraction=0.01)
