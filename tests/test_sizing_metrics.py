"""Metrics, aggregation, intervals and baselines of sizing against hand-worked numbers, scikit-learn and SciPy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sklearn_metrics

from fsg_jax.endoscopy import sizing

D, S, L = 0, 1, 2
TRUTH = np.array([D, D, D, S, S, L])
PREDICTED = np.array([D, S, D, S, L, L])
GOLDEN = (
    "balanced_accuracy",
    "legacy_specificity",
    "legacy_balanced_performance",
    "precision_weighted",
    "recall_weighted",
    "f1_weighted",
    "balanced_accuracy",
    "accuracy",
)


def test_tri_class_golden_values():
    found = sizing.classification_metrics(TRUTH, PREDICTED, sizing.TRI_CLASS)
    expected = [0.722222, 0.666667, 0.694444, 0.75, 0.666667, 0.677778, 0.722222, 0.666667]
    np.testing.assert_allclose([found[name] for name in GOLDEN], expected, atol=1e-6)
    # TN / (TN + FP) is 3/3, 3/4 and 4/5.
    assert found["specificity"] == pytest.approx(0.85)
    assert [found[f"sensitivity_{name}"] for name in sizing.TRI_CLASS.classes] == pytest.approx([2 / 3, 0.5, 1])


def test_binary_golden_values():
    truth, predicted = (TRUTH == L).astype(int), (PREDICTED == L).astype(int)
    found = sizing.classification_metrics(truth, predicted, sizing.BINARY_10)
    expected = [0.9, 0.75, 0.825, 0.916667, 0.833333, 0.851852, 0.9, 0.833333]
    np.testing.assert_allclose([found[name] for name in GOLDEN], expected, atol=1e-6)
    assert found["specificity"] == pytest.approx(0.9)


def test_regression_golden_values():
    truth, predicted = np.array([3.0, 5, 6, 10, 15]), np.array([4, 5.5, 5, 9, 20])
    found = sizing.regression_metrics(truth, predicted)
    assert found["mae"] == pytest.approx(1.7)
    assert found["rmse"] ** 2 == pytest.approx(5.65)
    assert found["rmse"] == pytest.approx(2.376973, abs=1e-6)
    assert found["bias"] == pytest.approx(0.9)
    assert found["percentage_error"] == pytest.approx(-10)
    assert found["absolute_percentage_error"] == pytest.approx((100 / 3 + 10 + 100 / 6 + 10 + 100 / 3) / 5)
    assert found["within_1mm"] == 0.2
    assert found["within_2mm"] == 0.8
    both = sizing.correlations(truth, predicted)
    assert both["pearson"] == pytest.approx(stats.pearsonr(truth, predicted).statistic)
    assert both["spearman"] == pytest.approx(stats.spearmanr(truth, predicted).statistic)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(2, 9), st.integers(2, 9)), min_size=3, max_size=12))
def test_correlations_match_scipy(pairs):
    truth, predicted = np.array(pairs, float).T
    if np.ptp(truth) and np.ptp(predicted):
        found = sizing.correlations(truth, predicted)
        assert found["pearson"] == pytest.approx(stats.pearsonr(truth, predicted).statistic, abs=1e-9)
        assert found["spearman"] == pytest.approx(stats.spearmanr(truth, predicted).statistic, abs=1e-9)


def test_correlations_without_meaning_are_nan():
    for truth, predicted in (([3.0, 4, 5], [7.0, 7, 7]), ([3.0, 3, 3], [1.0, 2, 3]), ([1.0, 2], [1.0, 2])):
        assert np.isnan(list(sizing.correlations(np.array(truth), np.array(predicted)).values())).all()


def test_a_diverged_prediction_is_not_hidden():
    found = sizing.regression_metrics(np.array([3.0, 4.0]), np.array([3.0, np.nan]))
    assert np.isnan(list(found.values())).all()


@pytest.mark.parametrize("bad", [[], [np.nan, 1.0], [0.0, 1.0], [np.inf, 1.0]])
def test_bad_truth(bad):
    with pytest.raises(ValueError, match="truth: expected"):
        sizing.regression_metrics(np.array(bad), np.zeros(len(bad)))


LABELS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=20)


@settings(max_examples=40, deadline=None)
@given(LABELS)
def test_class_metrics_match_scikit_learn(pairs):
    truth, predicted = np.array(pairs).T
    found = sizing.classification_metrics(truth, predicted, sizing.TRI_CLASS)
    assert found["accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(truth, predicted))
    for name, score in (("f1", "f1_score"), ("precision", "precision_score"), ("recall", "recall_score")):
        for average in ("macro", "weighted"):
            expected = getattr(sklearn_metrics, score)(truth, predicted, average=average, zero_division=0)
            assert found[f"{name}_{average}"] == pytest.approx(expected)
    present = [(predicted[truth == k] == k).mean() for k in range(3) if (truth == k).any()]
    assert found["balanced_accuracy"] == pytest.approx(np.mean(present))
    usable = [k for k in range(3) if 0 < (truth == k).sum() < len(truth)]
    others = [(predicted[truth != k] != k).mean() for k in usable]
    assert found["specificity"] == pytest.approx(np.mean(others) if others else np.nan, nan_ok=True)


def test_confusion_matrix_keeps_classes_that_do_not_occur():
    found = sizing.confusion_matrix(np.array([0, 0]), np.array([0, 1]), sizing.TRI_CLASS)
    np.testing.assert_array_equal(found, [[1, 1, 0], [0, 0, 0], [0, 0, 0]])
    with pytest.raises(ValueError, match="predicted: expected classes 0 to 2, found 0 to 3"):
        sizing.confusion_matrix(np.array([0, 0]), np.array([0, 3]), sizing.TRI_CLASS)
    with pytest.raises(ValueError, match="at least one class"):
        sizing.classification_metrics(np.array([], int), np.array([], int), sizing.TRI_CLASS)


POLYPS = ["sun/case10", "sun/case2", "sun/case10", "sun/case2", "sun/case10"]


def test_aggregation_is_by_polyp_in_natural_order():
    sizes = np.array([12.0, 4, 12, 4, 12])
    found = sizing.aggregate_sizes(POLYPS, sizes, np.array([1.0, 5, 30, 6, 11]))
    assert found.polyp == ["sun/case2", "sun/case10"]
    np.testing.assert_allclose(found.size_mm, [4, 12])
    np.testing.assert_array_equal(found.num_frames, [2, 3])
    np.testing.assert_allclose(found.predicted_mm, [5.5, 11])
    np.testing.assert_allclose(found.low_mm, [5.25, 6])
    chances = {"p_large": np.array([0.9, 0.1, 0.6, 0.3, 0.3])}
    polyps, size_mm, frames, means = sizing.aggregate_probabilities(POLYPS, sizes, chances)
    assert polyps == found.polyp
    np.testing.assert_allclose(size_mm, [4, 12])
    np.testing.assert_array_equal(frames, [2, 3])
    np.testing.assert_allclose(means["p_large"], [0.2, 0.6])


def test_aggregation_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"one size of polyp 'sun/case2', found \[4.0, 5.0\]"):
        sizing.aggregate_sizes(POLYPS, np.array([12.0, 4, 12, 5, 12]), np.ones(5))
    with pytest.raises(ValueError, match="columns: expected 5 rows as polyp has, found"):
        sizing.aggregate_sizes(POLYPS, np.ones(4), np.ones(4))
    with pytest.raises(ValueError, match="at least one row"):
        sizing.aggregate_sizes([], np.ones(0), np.ones(0))


def mae(truth, predicted):
    return np.abs(truth - predicted).mean()


def frames(polyps=12, per_polyp=6, seed=0):
    """Frames whose errors are shared by the frames of a polyp."""
    rng = np.random.default_rng(seed)
    polyp = np.repeat([f"case{index}" for index in range(polyps)], per_polyp)
    truth = np.repeat(rng.uniform(2, 15, polyps), per_polyp)
    error = np.repeat(rng.normal(0, 2, polyps), per_polyp) + rng.normal(0, 0.5, polyps * per_polyp)
    return truth, truth + error, polyp


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_one_row_per_polyp_is_the_bootstrap_of_scipy(method):
    truth, predicted, polyp = frames(polyps=9, per_polyp=1)
    found = sizing.bootstrap(mae, (truth, predicted), polyp, n_resamples=200, method=method, seed=3)
    expected = stats.bootstrap(
        (np.abs(truth - predicted),), np.mean, n_resamples=200, method=method, rng=np.random.default_rng(3)
    )
    assert found.value == pytest.approx(mae(truth, predicted))
    assert found[1:] == pytest.approx(tuple(expected.confidence_interval))


@pytest.mark.parametrize("method", ["percentile", "bca"])
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 99), copies=st.integers(2, 5))
def test_more_frames_of_the_same_polyps_do_not_narrow_the_interval(method, seed, copies):
    truth, predicted, polyp = frames(seed=seed)
    options = {"n_resamples": 150, "method": method, "seed": seed}
    once = sizing.bootstrap(mae, (truth, predicted), polyp, **options)
    again = sizing.bootstrap(mae, [np.tile(x, copies) for x in (truth, predicted)], np.tile(polyp, copies), **options)
    assert again == pytest.approx(once)
    # As if every frame were a polyp of its own: what the interval must not do.
    naive = sizing.bootstrap(mae, (truth, predicted), np.arange(len(polyp)), **options)
    assert naive.high - naive.low < once.high - once.low


def test_copies_of_the_frames_of_one_polyp_leave_a_metric_per_polyp_as_it_is():
    truth, predicted, polyp = frames()
    extra = np.flatnonzero(polyp == "case3").repeat(7)
    rows = np.concatenate([np.arange(len(polyp)), extra])

    def interval(rows):
        found = sizing.aggregate_sizes(polyp[rows].tolist(), truth[rows], predicted[rows])
        return sizing.bootstrap(mae, (found.size_mm, found.predicted_mm), found.polyp, n_resamples=100)

    assert interval(rows) == pytest.approx(interval(np.arange(len(polyp))))


def test_the_order_of_rows_does_not_matter():
    truth, predicted, polyp = frames()
    order = np.random.default_rng(1).permutation(len(polyp))
    plain = sizing.bootstrap(mae, (truth, predicted), polyp, n_resamples=100)
    shuffled = sizing.bootstrap(mae, (truth[order], predicted[order]), polyp[order], n_resamples=100)
    assert shuffled == pytest.approx(plain)


def test_a_metric_may_be_a_vector():
    truth, predicted, polyp = frames()
    both = sizing.bootstrap(
        lambda t, p: list(sizing.regression_metrics(t, p).values()), (truth, predicted), polyp, n_resamples=100
    )
    alone = sizing.bootstrap(mae, (truth, predicted), polyp, n_resamples=100)
    assert (both.value[0], both.low[0], both.high[0]) == pytest.approx(alone)


def test_paired_difference_is_tighter_than_two_intervals():
    truth, predicted, polyp = frames(polyps=30)
    better = truth + 0.8 * (predicted - truth)
    options = {"n_resamples": 300, "seed": 1}
    found = sizing.paired_difference(mae, truth, better, predicted, polyp, **options)
    assert found.value == pytest.approx(-0.2 * mae(truth, predicted))
    assert found.low < found.value < found.high < 0
    single = sizing.bootstrap(mae, (truth, predicted), polyp, **options)
    assert found.high - found.low < single.high - single.low
    assert sizing.paired_difference(mae, truth, predicted, predicted, polyp, **options) == (0, 0, 0)


def test_the_interval_covers():
    """Of 100 samples of 25 polyps with a known mean error, about 95 intervals hold it."""
    rng = np.random.default_rng(0)
    held = 0
    for sample in range(100):
        error = np.repeat(rng.normal(1.0, 1.0, 25), 3)
        polyp = np.repeat(np.arange(25), 3)
        found = sizing.bootstrap(np.mean, (error,), polyp, n_resamples=200, seed=sample)
        held += found.low <= 1.0 <= found.high
    assert 86 <= held <= 99


def test_without_an_interval_the_ends_are_nan():
    truth, predicted = np.array([3.0, 3.0]), np.array([4.0, 5.0])
    found = sizing.bootstrap(mae, (truth, predicted), ["a", "a"])
    assert found.value == 1.5
    assert np.isnan(found[1:]).all()
    equal = sizing.bootstrap(np.mean, (np.ones(5),), np.arange(5), method="bca", n_resamples=20)
    assert np.isnan(equal[1:]).all()


def test_few_resamples_without_a_value_are_left_out():
    def large(truth):  # the mean of the large, of which a few or most resamples have none
        return truth[truth > 10].mean() if (truth > 10).any() else np.nan

    def interval(large_ones):
        truth = np.r_[np.full(20 - large_ones, 3.0), np.linspace(11, 15, large_ones)]
        return sizing.bootstrap(large, (truth,), np.arange(20), n_resamples=400)

    many, one = interval(4), interval(1)
    assert 11 <= many.low < many.high <= 15
    assert np.isnan(one[1:]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_resamples": 0}, "n_resamples: expected an integer >= 1, found 0"),
        ({"confidence": 1.0}, "confidence: expected"),
        ({"method": "basic"}, "method: expected one of 'percentile', 'bca', found 'basic'"),
        ({"polyp": ["a"]}, "columns: expected 1 rows"),
        ({"polyp": []}, "at least one row and one column"),
    ],
)
def test_bad_bootstrap_arguments(options, message):
    arguments = {"polyp": ["a", "b"]} | options
    with pytest.raises(ValueError, match=message):
        sizing.bootstrap(np.mean, (np.ones(2),), **arguments)


def test_mean_baseline_counts_polyps():
    predict = sizing.fit_mean(np.array([4.0, 4, 4, 10]), ["a", "a", "a", "b"])
    np.testing.assert_allclose(predict(np.array([0.1, 0.9])), [7, 7])


def test_box_area_baseline_recovers_a_power_law():
    area = np.array([0.01, 0.02, 0.04, 0.08, 0.3])
    size = 20 * area**0.5
    polyp = [f"case{index}" for index in range(5)]
    predict = sizing.fit_box_area(size, area, polyp)
    np.testing.assert_allclose(predict(np.array([0.05, 0.5])), 20 * np.sqrt([0.05, 0.5]), rtol=1e-9)
    isotonic = sizing.fit_box_area(size, area, polyp, "isotonic")
    np.testing.assert_allclose(isotonic(np.array([0.001, 0.02, 0.9])), size[[0, 1, 4]], rtol=1e-9)


@pytest.mark.parametrize("kind", ["linear", "isotonic"])
def test_box_area_baseline_gives_every_polyp_one_weight(kind):
    area, size = np.array([0.02, 0.03, 0.1, 0.2]), np.array([4.0, 4.0, 9.0, 8.0])
    polyp = np.array(["a", "a", "b", "c"])
    rows = np.array([0, 1, 2, 2, 2, 3])  # polyp b three times over
    once = sizing.fit_box_area(size, area, polyp.tolist(), kind)
    more = sizing.fit_box_area(size[rows], area[rows], polyp[rows].tolist(), kind)
    np.testing.assert_allclose(more(area), once(area), rtol=1e-9)


def test_baselines_refuse_bad_input():
    box = np.array([[0, 0, 10, 20]])
    np.testing.assert_allclose(sizing.relative_area(box, np.array([100]), np.array([50])), [0.04])
    for broken in ([[5, 0, 5, 20]], [[0, 0, 200, 200]]):
        with pytest.raises(ValueError, match=r"area: expected shares of the frame in \(0, 1\]"):
            sizing.relative_area(np.array(broken), np.array([100]), np.array([50]))
    with pytest.raises(ValueError, match="size_mm: expected finite sizes"):
        sizing.fit_mean(np.array([4.0, np.nan]), ["a", "b"])
    with pytest.raises(ValueError, match="kind: expected one of 'linear', 'isotonic', found 'cubic'"):
        sizing.fit_box_area(np.ones(2), np.ones(2), ["a", "b"], "cubic")


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_balanced_accuracy_is_that_of_scikit_learn():
    draw = np.random.default_rng(0)
    for _ in range(20):
        truth, predicted = draw.integers(0, 5, 30), draw.integers(0, 6, 30)
        expected = sklearn_metrics.balanced_accuracy_score(truth, predicted)
        np.testing.assert_allclose(sizing.balanced_accuracy(truth, predicted), expected)
    assert np.isnan(sizing.balanced_accuracy(truth[:0], truth[:0]))
