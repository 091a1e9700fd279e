"""Scaling, size classes, losses and targets against the numbers of the specification and NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsg_jax.endoscopy import sizing
from fsg_jax.training.losses import smooth_l1

SIZES = np.array([2, 3, 5, 6, 9, 10, 15, 20], np.float32)
SCALED = [-0.846154, -0.743590, -0.538462, -0.435897, -0.128205, -0.025641, 0.487179, 1.0]


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_scale_golden_values(array):
    scaled = sizing.mm_to_unit(array(SIZES))
    assert isinstance(scaled, type(array(SIZES)))
    np.testing.assert_allclose(scaled, SCALED, atol=1e-6)
    np.testing.assert_allclose(sizing.unit_to_mm(scaled), SIZES, rtol=1e-6)
    np.testing.assert_allclose(sizing.mm_to_unit(array(np.float32([25]))), [1.5128205], rtol=1e-6)


def test_unscale_clamps_to_the_range_asked_for():
    scaled = sizing.mm_to_unit(np.float32([-3, 25, 40]))
    np.testing.assert_allclose(sizing.unit_to_mm(scaled), [0.5, 22, 22], rtol=1e-6)
    np.testing.assert_allclose(sizing.unit_to_mm(scaled, (1.0, 30.0)), [1, 25, 30], rtol=1e-6)
    np.testing.assert_allclose(sizing.unit_to_mm(scaled, None), [-3, 25, 40], rtol=1e-5)
    with pytest.raises(ValueError, match=r"clamp_mm: expected .* ascending order, found \(5, 5\)"):
        sizing.unit_to_mm(scaled, (5, 5))


def test_scaling_widens_half_precision():
    assert sizing.mm_to_unit(jnp.asarray(SIZES, jnp.bfloat16)).dtype == jnp.float32
    assert sizing.mm_to_unit(SIZES.astype(np.float64)).dtype == np.float64


EDGES = np.array([5.0, 5.0001, 9.999, 10.0, 0.5, 30.0], np.float32)


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
@pytest.mark.parametrize(
    ("name", "expected"),
    [("tri_class", [0, 1, 1, 2, 0, 2]), ("binary_10", [0, 0, 0, 1, 0, 1]), ("binary_5", [0, 1, 1, 1, 0, 1])],
)
def test_classes_at_the_thresholds(name, expected, array):
    scheme = sizing.get_scheme(name)
    np.testing.assert_array_equal(sizing.class_of(array(EDGES), scheme), expected)
    np.testing.assert_array_equal(jax.jit(lambda x: sizing.class_of(x, scheme))(EDGES), expected)


def test_predictions_may_be_cut_elsewhere():
    predicted = np.array([4.75, 4.76, 9.99, 10.0])
    cut = sizing.class_of(predicted, sizing.TRI_CLASS, sizing.REFERENCE_CUTS_MM)
    np.testing.assert_array_equal(cut, [0, 1, 1, 2])
    np.testing.assert_array_equal(sizing.class_of(predicted, sizing.TRI_CLASS), [0, 0, 1, 2])
    with pytest.raises(ValueError, match="cuts_mm: expected 2 finite sizes"):
        sizing.class_of(predicted, sizing.TRI_CLASS, (5.0,))


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_nan_is_of_no_class(array):
    sizes = array(np.array([4.0, np.nan], np.float32))
    with pytest.raises(ValueError, match="1 of 2 sizes are NaN"):
        sizing.class_of(sizes, sizing.TRI_CLASS)
    np.testing.assert_array_equal(jax.jit(lambda x: sizing.class_of(x, sizing.TRI_CLASS))(sizes), [0, 3])


def test_bad_schemes_are_refused():
    with pytest.raises(ValueError, match=r"unknown class scheme 'binary10'.*did you mean 'binary_10'"):
        sizing.get_scheme("binary10")
    for thresholds in [(5.0, 5.0), (5.0, float("nan")), (10.0, 5.0)]:
        with pytest.raises(ValueError, match="thresholds: expected 2 finite sizes in ascending order"):
            sizing.make_scheme(thresholds)
    with pytest.raises(ValueError, match="at least one"):
        sizing.make_scheme(())
    with pytest.raises(ValueError, match="closed: expected 1"):
        dataclasses.replace(sizing.BINARY_5, closed=())


def regression(outputs, sizes, **options):
    batch = {"size_mm": jnp.asarray(sizes, jnp.float32)}
    return sizing.weighted_regression_loss(**options)(jnp.asarray(outputs, jnp.float32)[:, None], batch)


def test_weights_act_in_millimetres():
    # 5 mm off is 10 / 19.5 scaled: smooth L1 0.1315. Sizes below, at and above both thresholds.
    sizes = np.array([4.0, 5.0, 7.0, 10.0, 15.0])
    outputs = sizing.mm_to_unit(sizes + 5)
    expected = 0.131492 * np.array([1, 1, 3, 5, 5])
    np.testing.assert_allclose(regression(outputs, sizes, weight1=3.0, weight2=5.0), expected, rtol=1e-4)
    expected = 0.131492 * np.array([1, 1, 5, 10, 10])
    np.testing.assert_allclose(regression(outputs, sizes), expected, rtol=1e-4)
    np.testing.assert_allclose(regression(sizing.mm_to_unit(np.array([20.0])), [5.0]), [1.0384615], rtol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.floats(0.5, 40), st.floats(-3, 3)), min_size=8, max_size=8))
def test_the_reference_switch_is_plain_smooth_l1(pairs):
    sizes, outputs = (np.array(values, np.float32) for values in zip(*pairs, strict=True))
    found = regression(outputs, sizes, weight1=3.0, weight2=5.0, reference_inert_weights=True)
    plain = smooth_l1(jnp.asarray(outputs), {"target": jnp.asarray(sizing.mm_to_unit(sizes))})
    np.testing.assert_allclose(found, plain, rtol=1e-5, atol=1e-6)


def test_the_reference_switch_weights_beyond_59_and_108_mm():
    sizes = np.array([58.0, 60.0, 108.0])
    found = regression(sizing.mm_to_unit(sizes) + 2, sizes, weight1=3.0, weight2=5.0, reference_inert_weights=True)
    np.testing.assert_allclose(found, [1.5, 4.5, 7.5], rtol=1e-5)


def test_terms_of_the_regression_loss():
    outputs, sizes = np.array([0.5, -2.0]), np.array([3.0, 3.0])
    error = outputs - sizing.mm_to_unit(sizes)
    smooth = np.where(np.abs(error) < 1, error**2 / 2, np.abs(error) - 0.5)
    expected = 0.25 * np.abs(error) + 0.5 * error**2 + 2 * smooth
    np.testing.assert_allclose(regression(outputs, sizes, alpha=0.25, beta=0.5, gamma=2.0), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -1.0}, "alpha: expected a finite number >= 0"),
        ({"weight2": float("nan")}, "weight2: expected"),
        ({"gamma": 0.0}, "expected one of them above 0"),
        ({"threshold1": 10.0}, "expected them ascending"),
    ],
)
def test_bad_loss_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        sizing.weighted_regression_loss(**options)


@pytest.mark.parametrize("name", list(sizing.TARGETS))
def test_bad_batches_are_refused(name):
    task = sizing.make_target(name)
    outputs = jnp.zeros((2, task.num_outputs))
    with pytest.raises(ValueError, match="batch: expected the key 'size_mm'"):
        task.loss(outputs, {"target": jnp.zeros(2)})
    with pytest.raises(ValueError, match=r"size_mm: expected shape \(2,\), found \(2, 1\)"):
        task.loss(outputs, {"size_mm": jnp.ones((2, 1))})
    with pytest.raises(ValueError, match=r"outputs: expected shape \(batch, \d\)"):
        task.loss(jnp.zeros((2, 4)), {"size_mm": jnp.ones(2)})


def test_cross_entropy_of_the_size_class():
    logits = np.array([[1.0, 2.0, -1.0], [0.0, 0.5, 3.0]], np.float32)
    found = sizing.size_cross_entropy(sizing.TRI_CLASS)(jnp.asarray(logits), {"size_mm": np.float32([5, 10])})
    expected = -np.log(np.exp(logits) / np.exp(logits).sum(1, keepdims=True))[[0, 1], [0, 2]]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("scheme", [sizing.TRI_CLASS, (5.0, 9.99999)])
def test_ordinal_loss_is_a_sum_of_binary_decisions(scheme):
    logits = np.array([[1.0, -2.0], [0.3, 0.1], [2.0, 1.0]], np.float32)
    sizes = np.float32([5, 7, 10])
    above = np.array([[0, 0], [1, 0], [1, 1]])
    chance = 1 / (1 + np.exp(-logits))
    expected = -np.log(np.where(above, chance, 1 - chance)).sum(1)
    found = sizing.ordinal_loss(scheme)(jnp.asarray(logits), {"size_mm": sizes})
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("name", list(sizing.TARGETS))
def test_a_task_learns_its_sizes(name):
    task = sizing.make_target(name)
    sizes = jnp.asarray([2.0, 4.0, 7.0, 8.0, 12.0, 18.0])
    outputs = jnp.zeros((6, task.num_outputs))
    for loss in (task.loss, task.gate_loss):
        values = jax.jit(loss)(outputs, {"size_mm": sizes})
        assert values.shape == (6,)
        assert np.isfinite(values).all()
        assert np.isnan(jax.jit(loss)(outputs, {"size_mm": sizes * jnp.nan})).all()
    step = jax.jit(lambda x: x - 0.15 * jax.grad(lambda x: task.loss(x, {"size_mm": sizes}).sum())(x))
    for _ in range(120):
        outputs = step(outputs)
    decoded = task.decode(outputs)
    if task.scheme is None:
        np.testing.assert_allclose(decoded["predicted_mm"], sizes, atol=1e-3)
        return
    assert tuple(decoded) == task.scheme.columns
    chances = np.stack(list(decoded.values()), 1)
    np.testing.assert_array_equal(chances.argmax(1), sizing.class_of(sizes, task.scheme))


@pytest.mark.parametrize("name", ["ordinal", "tri_class", "binary_5"])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999))
def test_decoded_chances_are_probabilities(name, seed):
    task = sizing.make_target(name)
    outputs = np.random.default_rng(seed).normal(0, 3, (5, task.num_outputs)).astype(np.float32)
    chances = np.stack(list(task.decode(outputs).values()), 1)
    assert chances.min() >= 0
    np.testing.assert_allclose(chances.sum(1), 1, rtol=1e-5)


def test_ordinal_chances_by_hand():
    # P(above 5 mm) = 0.5 and P(10 mm or more) = 0.2; the second row's 0.8 is cut to 0.5.
    logits = np.log(np.array([[0.5, 0.2], [0.5, 0.8]]) / np.array([[0.5, 0.8], [0.5, 0.2]])).astype(np.float32)
    chances = np.stack(list(sizing.make_target("ordinal").decode(logits).values()), 1)
    np.testing.assert_allclose(chances, [[0.5, 0.3, 0.2], [0.5, 0, 0.5]], atol=1e-6)


def test_task_options():
    batch = {"size_mm": jnp.asarray([7.0, 12.0])}
    outputs = jnp.zeros((2, 1))
    task = sizing.make_target("regression")
    np.testing.assert_allclose(task.gate_loss(outputs, batch) / task.loss(outputs, batch), [5 / 3, 2], rtol=1e-5)
    plain = sizing.weighted_regression_loss(alpha=1.0)
    assert sizing.make_target("regression", loss=plain).loss is plain
    assert sizing.make_target("regression", loss=plain).gate_loss is not plain
    classify = sizing.size_cross_entropy(sizing.BINARY_5)
    assert sizing.make_target("binary_5", loss=classify).gate_loss is classify
    wide = sizing.make_target("regression", clamp_mm=None).decode(sizing.mm_to_unit(np.float32([[40.0]])))
    np.testing.assert_allclose(wide["predicted_mm"], [40], rtol=1e-5)
    with pytest.raises(ValueError, match="unknown size target 'tri'"):
        sizing.make_target("tri")
