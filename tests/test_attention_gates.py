"""Data-dependent gates: formulae by hand, layouts, sizes, errors. For timm see test_parity_timm.py."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsg_jax.gates.channel_attention import EfficientChannelAttention, SqueezeExcite

GATES = [SqueezeExcite, EfficientChannelAttention]


def _images(channels: int, seed: int = 1) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (2, 3, 5, channels))


def test_squeeze_excite_formula(key):
    x = _images(32)
    y, variables = SqueezeExcite().init_with_output(key, x)
    p = jax.tree.map(np.asarray, variables["params"])
    pooled = np.asarray(x).mean((1, 2))
    hidden = np.maximum(pooled @ p["fc1"]["kernel"] + p["fc1"]["bias"], 0)
    s = 1 / (1 + np.exp(-(hidden @ p["fc2"]["kernel"] + p["fc2"]["bias"])))
    np.testing.assert_allclose(y, np.asarray(x) * s[:, None, None, :], rtol=1e-5, atol=1e-6)


def test_efficient_channel_attention_formula(key):
    x = _images(8)
    y, variables = EfficientChannelAttention().init_with_output(key, x)
    kernel = np.asarray(variables["params"]["conv"]["kernel"]).ravel()
    pooled = np.asarray(x).mean((1, 2))
    logits = np.stack([np.correlate(row, kernel, "same") for row in pooled])
    s = 1 / (1 + np.exp(-logits))
    np.testing.assert_allclose(y, np.asarray(x) * s[:, None, None, :], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("channels", "hidden"), [(8, 8), (64, 8), (128, 8), (192, 16), (256, 16), (512, 32), (768, 48)]
)
def test_squeeze_excite_width(key, channels, hidden):
    x = jax.ShapeDtypeStruct((1, 2, channels), jnp.float32)
    shapes = jax.eval_shape(SqueezeExcite(reduction=16).init, key, x)["params"]
    assert shapes["fc1"]["kernel"].shape == (channels, hidden)
    assert shapes["fc2"]["kernel"].shape == (hidden, channels)
    assert shapes["fc1"]["bias"].shape == (hidden,)
    assert shapes["fc2"]["bias"].shape == (channels,)


@pytest.mark.parametrize(
    ("channels", "size"), [(1, 3), (16, 3), (64, 3), (128, 5), (256, 5), (512, 5), (1024, 5), (2048, 7)]
)
def test_efficient_channel_attention_kernel_size(key, channels, size):
    x = jax.ShapeDtypeStruct((1, 2, channels), jnp.float32)
    shapes = jax.eval_shape(EfficientChannelAttention().init, key, x)
    assert jax.tree.map(lambda leaf: leaf.shape, shapes) == {"params": {"conv": {"kernel": (size, 1, 1)}}}


@pytest.mark.parametrize("gate", GATES)
def test_same_gate_for_images_tokens_and_channels_first(key, gate):
    x = _images(16)
    y, variables = gate().init_with_output(key, x)
    tokens = gate().apply(variables, x.reshape(2, 15, 16))
    np.testing.assert_allclose(tokens.reshape(x.shape), y, rtol=1e-6)
    first = gate(axis=1).apply(variables, jnp.moveaxis(x, -1, 1))
    np.testing.assert_allclose(jnp.moveaxis(first, 1, -1), y, rtol=1e-6)
    alone = gate().apply(variables, x.mean((1, 2)))
    assert alone.shape == (2, 16)


@pytest.mark.parametrize("gate", GATES)
def test_only_params_and_no_effect_of_train(key, gate):
    x = _images(16)
    y, variables = gate().init_with_output(key, x)
    assert set(variables) == {"params"}
    np.testing.assert_array_equal(gate().apply(variables, x, train=True), y)
    with_all, state = gate().apply(variables, x, mutable=True)
    assert set(state) == {"params"}
    np.testing.assert_array_equal(with_all, y)


@pytest.mark.parametrize("gate", GATES)
def test_bfloat16_input_keeps_its_dtype(key, gate):
    x = _images(16).astype(jnp.bfloat16)
    y, variables = gate().init_with_output(key, x)
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("gate", GATES)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 9), size=st.floats(0.1, 30))
def test_factor_is_one_per_example_and_channel_between_0_and_1(gate, seed, size):
    x = size * (jnp.abs(_images(12, seed)) + 0.5)
    y, _ = gate().init_with_output(jax.random.key(seed), x)
    factor = np.asarray(y / x)
    assert np.all((factor >= 0) & (factor <= 1))
    np.testing.assert_allclose(factor, np.broadcast_to(factor[:, :1, :1], factor.shape), rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("axis", [0, -3, 3])
@pytest.mark.parametrize("gate", GATES)
def test_impossible_axis(key, gate, axis):
    with pytest.raises(ValueError, match=f"axis: .*found {axis}"):
        gate(axis=axis).init(key, jnp.ones((2, 4, 8)))


@pytest.mark.parametrize(
    ("gate", "argument"),
    [
        (functools.partial(SqueezeExcite, reduction=0), "reduction"),
        (functools.partial(EfficientChannelAttention, gamma=0), "gamma"),
    ],
)
def test_impossible_constants(key, gate, argument):
    module: nn.Module = gate()
    with pytest.raises(ValueError, match=f"{argument}: expected a finite number > 0, found 0"):
        module.init(key, jnp.ones((2, 4, 8)))
