"""Losses and metrics against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsg_jax.training import losses, metrics


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def make_logits(count=6, classes=5, seed=0):
    return np.random.default_rng(seed).normal(0, 4, (count, classes)).astype(np.float32)


LABELS = np.array([0, 4, 2, 2, 1, 3])


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("kind", ["integer", "probability"])
def test_cross_entropy(smoothing, kind):
    logits = make_logits()
    mixed = np.random.default_rng(1).dirichlet(np.ones(5), 6)
    labels = LABELS if kind == "integer" else mixed.astype(np.float32)
    target = np.eye(5)[LABELS] if kind == "integer" else mixed
    target = (1 - smoothing) * target + smoothing / 5
    found = losses.make_cross_entropy(smoothing)(jnp.asarray(logits), {"label": labels})
    assert found.shape == (6,)
    np.testing.assert_allclose(found, -(target * log_softmax(logits)).sum(-1), rtol=2e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_cross_entropy_is_computed_in_float32(dtype):
    logits = jnp.asarray(make_logits(), dtype)
    for labels in (LABELS, np.eye(5, dtype=np.float32)[LABELS], jnp.eye(5, dtype=dtype)[LABELS]):
        found = losses.cross_entropy(logits, {"label": labels})
        assert found.dtype == jnp.float32
        expected = -log_softmax(logits.astype(jnp.float32))[np.arange(6), LABELS]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(offset=st.floats(-1e4, 1e4), seed=st.integers(0, 99))
def test_cross_entropy_ignores_an_offset_of_the_logits(offset, seed):
    logits = jnp.asarray(make_logits(seed=seed))
    plain = losses.cross_entropy(logits, {"label": LABELS})
    shifted = losses.cross_entropy(logits + np.float32(offset), {"label": LABELS})
    np.testing.assert_allclose(plain, shifted, atol=1e-2)


def test_gradient_of_the_smoothed_loss_is_softmax_minus_target():
    logits = jnp.asarray(make_logits())
    loss = losses.make_cross_entropy(0.2)
    gradient = jax.grad(lambda x: loss(x, {"label": LABELS}).sum())(logits)
    expected = np.exp(log_softmax(logits)) - (0.8 * np.eye(5)[LABELS] + 0.2 / 5)
    np.testing.assert_allclose(gradient, expected, atol=1e-5)


def test_a_label_beyond_the_classes_gives_nan():
    for loss in (losses.cross_entropy, losses.make_cross_entropy(0.1)):
        values = loss(jnp.zeros((2, 3)), {"label": np.array([2, 3])})
        np.testing.assert_array_equal(np.isnan(values), [False, True])


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, float("nan")])
def test_smoothing_range(smoothing):
    with pytest.raises(ValueError, match=r"label_smoothing: expected a number in \[0, 1\)"):
        losses.make_cross_entropy(smoothing)


@pytest.mark.parametrize(
    "label", [np.zeros(3, int), np.zeros(2, np.float32), np.zeros((2, 5), np.float32), np.zeros((2, 4), int)]
)
@pytest.mark.parametrize("function", [losses.cross_entropy, metrics.accuracy, metrics.top_k_accuracy(2)])
def test_labels_must_fit(function, label):
    with pytest.raises(ValueError, match=r"label: expected integers \(2,\) or probabilities \(2, 4\), found"):
        function(jnp.zeros((2, 4)), {"label": label})


@pytest.mark.parametrize("output_shape", [(4,), (4, 1)])
@pytest.mark.parametrize("target_shape", [(4,), (4, 1)])
@pytest.mark.parametrize(
    ("loss", "expected"),
    [(losses.squared_error, [0.25, 0, 1, 9]), (losses.smooth_l1, [0.125, 0, 0.5, 2.5])],
)
def test_regression_losses(output_shape, target_shape, loss, expected):
    targets = np.array([1.0, -2.0, 0.5, 4.0], np.float32)
    outputs = jnp.asarray(targets + np.array([0.5, 0, -1, 3], np.float32)).reshape(output_shape)
    found = loss(outputs, {"target": targets.reshape(target_shape)})
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    half = loss(outputs.astype(jnp.bfloat16), {"target": jnp.asarray(targets, jnp.bfloat16)})
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, expected, rtol=1e-6)


@pytest.mark.parametrize("shape", [(3,), (4, 2), (1,), ()])
def test_regression_shapes_are_not_broadcast(shape):
    with pytest.raises(ValueError, match=r"target: expected shape \(4,\) or \(4, 1\), found"):
        losses.squared_error(jnp.zeros((4, 1)), {"target": np.zeros(shape, np.float32)})


def test_accuracy_by_hand():
    outputs = jnp.asarray([[1.0, 2, 0], [3, 2, 1], [0, 0, 5]])
    np.testing.assert_array_equal(metrics.accuracy(outputs, {"label": np.array([1, 1, 2])}), [1, 0, 1])
    mixed = np.array([[0.3, 0.7, 0], [0.6, 0.4, 0], [0.5, 0.5, 0]], np.float32)
    np.testing.assert_array_equal(metrics.accuracy(outputs, {"label": mixed}), [1, 1, 0])


@settings(max_examples=10, deadline=None)
@given(k=st.integers(1, 5), seed=st.integers(0, 99))
def test_top_k_accuracy(k, seed):
    outputs = make_logits(seed=seed)
    best = np.argsort(-outputs, -1)[:, :k]
    expected = [float(label in row) for label, row in zip(LABELS, best, strict=True)]
    batch = {"label": LABELS}
    found = metrics.top_k_accuracy(k)(jnp.asarray(outputs), batch)
    np.testing.assert_array_equal(found, expected)
    if k == 1:
        np.testing.assert_array_equal(found, metrics.accuracy(jnp.asarray(outputs), batch))


def test_top_k_range():
    with pytest.raises(ValueError, match="k: expected an integer >= 1, found 0"):
        metrics.top_k_accuracy(0)
    with pytest.raises(ValueError, match="k: expected at most the 3 classes, found 4"):
        metrics.top_k_accuracy(4)(jnp.zeros((2, 3)), {"label": np.zeros(2, int)})
