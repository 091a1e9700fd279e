"""Agreement between runs: its numbers by enumeration, its chance level by simulation, what it refuses."""

from itertools import combinations, product

import numpy as np
import pytest

from fsg_jax.gates.agreement import agreement, top_channels


def sets(*members, channels=6):
    return [{"gate": np.isin(np.arange(channels), chosen)} for chosen in members]


def all_sets(size, channels=6):
    return [set(chosen) for chosen in combinations(range(channels), size)]


def jaccard(a, b):
    return len(a & b) / len(a | b) if a | b else 1.0


@pytest.mark.parametrize("sizes", [(2, 3), (3, 3, 2), (0, 2), (0, 0), (6, 4)])
def test_the_chance_level_is_that_of_all_sets(sizes):
    """Every choice of sets of these sizes, enumerated: mean, standard deviation and one-sided p-value."""
    means = [
        np.mean([jaccard(a, b) for a, b in combinations(chosen, 2)])
        for chosen in product(*(all_sets(size) for size in sizes))
    ]
    found = agreement(sets(*(list(range(size)) for size in sizes)), draws=4000).gates["gate"]
    np.testing.assert_allclose([found.chance, found.chance_std], [np.mean(means), np.std(means)], atol=1e-12)
    first = [set(range(size)) for size in sizes]
    observed = np.mean([jaccard(a, b) for a, b in combinations(first, 2)])
    assert found.jaccard == pytest.approx(observed)
    assert found.p_value == pytest.approx(np.mean(np.array(means) >= observed - 1e-9), abs=0.03)


def test_kappa_is_one_for_equal_sets_and_zero_by_chance():
    equal = agreement(sets([0, 1], [0, 1], [0, 1])).overall
    assert (equal.jaccard, equal.kappa, equal.sizes) == (1, 1, (2, 2, 2))
    every = [agreement(sets([0, 1], list(b)), draws=1).gates["gate"].kappa for b in all_sets(3)]
    assert np.mean(every) == pytest.approx(0, abs=1e-12)
    assert np.isnan(agreement(sets([], [])).gates["gate"].kappa)


def test_random_runs_do_not_agree_and_a_shared_choice_is_seen():
    rng = np.random.default_rng(0)
    p_values = [
        agreement([{"a": rng.random(64) < 0.4, "b": rng.random(32) < 0.5} for _ in range(3)], draws=200).overall.p_value
        for _ in range(100)
    ]
    assert 0.4 < np.mean(p_values) < 0.6
    assert np.mean(np.array(p_values) < 0.1) < 0.2
    common = rng.random(64) < 0.4
    noisy = [{"a": common ^ (rng.random(64) < 0.1)} for _ in range(3)]
    found = agreement(noisy).overall
    assert found.p_value < 0.002
    assert found.jaccard > found.chance + 5 * found.chance_std
    assert found.kappa > 0.5


def test_overall_is_the_mean_of_the_gates():
    rng = np.random.default_rng(1)
    runs = [{"a": rng.random(20) < 0.5, "b": rng.random(30) < 0.2} for _ in range(3)]
    found = agreement(runs)
    a, b = found.gates.values()
    assert found.overall.channels == 50
    assert found.overall.jaccard == pytest.approx((a.jaccard + b.jaccard) / 2)
    assert found.overall.chance_std == pytest.approx(np.hypot(a.chance_std, b.chance_std) / 2)
    assert found.overall.sizes == tuple(x + y for x, y in zip(a.sizes, b.sizes, strict=True))
    assert found == agreement(runs)


def test_top_channels_do_not_break_ties_by_place():
    found = top_channels({"a": np.array([0.1, 0.9, 0.5, 0.7]), "b": np.full(4, 0.5)}, 0.5)
    assert found["a"].tolist() == [False, True, False, True]
    assert found["b"].all()
    assert agreement([{"b": found["b"]}] * 2).overall.p_value == 1
    assert top_channels({"a": np.array([0.1, 0.9])}, 0.01)["a"].tolist() == [False, True]


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        (sets([0]), "two runs or more, found 1"),
        ([{}, {}], "a gate or more, found none"),
        (
            [*sets([0]), *sets([0], channels=5)],
            r"gate 'gate': expected booleans \(6,\) in every run, found bool \(5,\)",
        ),
        ([*sets([0]), {"gate": np.zeros(6)}], "found float64"),
        ([*sets([0]), {}], "found none in run 1"),
        ([*sets([0]), {**sets([0])[0], "b": np.ones(2, bool)}], r"others too: \['b'\]"),
    ],
)
def test_what_cannot_be_compared_is_refused(runs, message):
    with pytest.raises(ValueError, match=message):
        agreement(runs)


@pytest.mark.parametrize(("share", "values"), [(0, [1.0]), (1.1, [1.0]), (0.5, [np.nan])])
def test_top_channels_refuses(share, values):
    with pytest.raises(ValueError, match="expected"):
        top_channels({"a": np.array(values)}, share)
