"""The convolution with gradients in its own layout against JAX's."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fsg_jax as fsg
from fsg_jax.models.convolution import LAYOUT, conv_general_dilated
from fsg_jax.models.efficientnet import Stage
from fsg_jax.models.winograd import convolve_winograd

JAX = partial(jax.lax.conv_general_dilated, dimension_numbers=LAYOUT)
OURS = partial(conv_general_dilated, dimension_numbers=LAYOUT)


def value_and_gradients(conv, x, kernel, strides, padding, **options):
    @jax.jit
    def both(x, kernel):
        y, pull = jax.vjp(lambda x, kernel: conv(x, kernel, strides, padding, **options), x, kernel)
        return y, *pull(jnp.asarray(np.cos(np.arange(y.size)).reshape(y.shape), jnp.float32))

    return both(x, kernel)


def padded_first(x, kernel, strides, padding, **options):
    """JAX's, which errs where images are cropped at their start and padded at their end (openxla/xla#48713)."""
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    (top, bottom), (left, right) = ((int(low), int(high)) for low, high in padding)
    x = x[:, max(-top, 0) :, max(-left, 0) :]
    x = jnp.pad(x, [(0, 0), (max(top, 0), bottom), (max(left, 0), right), (0, 0)])
    return JAX(x, kernel, strides, "VALID", **options)


@pytest.mark.parametrize(
    ("kernel", "padding"),
    [((3, 3), ((0, 0), (-1, 1))), ((3, 3), ((-1, 1), (0, 0))), ((2, 2), ((2, 0), (0, 2))), ((1, 2), ((0, 3), (3, 0)))],
)
def test_images_that_are_cropped_or_padded_beyond_the_kernel(kernel, padding):
    rng = np.random.default_rng(0)
    x, w = (jnp.float32(rng.normal(size=shape)) for shape in ((2, 6, 6, 3), (*kernel, 3, 4)))
    got, expected = (value_and_gradients(conv, x, w, (1, 1), padding) for conv in (OURS, padded_first))
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@settings(max_examples=15, deadline=None)
@given(
    batch=st.integers(1, 6),
    size=st.tuples(st.integers(3, 9), st.integers(3, 9)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.one_of(
        st.sampled_from(["SAME", "VALID"]), st.tuples(*[st.tuples(st.integers(-1, 2), st.integers(0, 2))] * 2)
    ),
    depthwise=st.booleans(),
)
def test_values_and_gradients_are_those_of_jax(batch, size, kernel, strides, padding, depthwise):
    rng = np.random.default_rng(sum(size))  # NumPy's: each shape of JAX's would be compiled
    channels, options = ((1, 3), {"feature_group_count": 3}) if depthwise else ((3, 4), {})
    x, w = (jnp.float32(rng.normal(size=shape)) for shape in ((batch, *size, 3), (*kernel, *channels)))
    got, expected = (value_and_gradients(conv, x, w, strides, padding, **options) for conv in (OURS, padded_first))
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
@pytest.mark.parametrize("size", [(2, 2), (1, 3)])
def test_a_kernel_larger_than_the_image(size, strides, groups):
    rng = np.random.default_rng(0)
    x, w = (jnp.float32(rng.normal(size=shape)) for shape in ((2, *size, 3), (5, 5, 3 // groups, 3)))
    options = {"feature_group_count": groups}
    got, expected = (value_and_gradients(conv, x, w, strides, "SAME", **options) for conv in (OURS, padded_first))
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    run = partial(value_and_gradients, OURS, strides=strides, padding="SAME", **options)
    assert "conv_general_dilated" not in str(jax.make_jaxpr(run)(x, w))


@pytest.mark.parametrize("strides", [(1, 1), (2, 1)])
def test_few_pixels_and_many_channels(strides):
    rng = np.random.default_rng(0)
    x, w = (jnp.float32(rng.normal(size=shape)) for shape in ((2, 5, 4, 256), (3, 3, 256, 256)))
    w /= 48
    got, expected = (value_and_gradients(conv, x, w, strides, "SAME") for conv in (OURS, JAX))
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)
    assert "conv_general_dilated" not in str(jax.make_jaxpr(lambda x, w: OURS(x, w, strides, "SAME"))(x, w))
    x, w = x.astype(jnp.bfloat16), w.astype(jnp.bfloat16)
    rounded, exact = OURS(x, w, strides, "SAME"), OURS(x.astype(jnp.float32), w.astype(jnp.float32), strides, "SAME")
    assert rounded.dtype == jnp.bfloat16
    difference = jnp.abs(rounded.astype(jnp.float32) - exact)
    assert (difference <= jnp.finfo(jnp.bfloat16).eps * jnp.abs(exact)).all(), "sums are of float32, rounded once"


def in_float64(x, kernel, padding):
    """The convolution of stride 1 as its definition says."""
    x = np.pad(np.float64(x), [(0, 0), *padding, (0, 0)])
    size = [n - 2 for n in x.shape[1:3]]
    taps = ((i, j, x[:, i : i + size[0], j : j + size[1]]) for i in range(3) for j in range(3))
    return sum(np.einsum("bhwc,cd->bhwd", part, np.float64(kernel[i, j])) for i, j, part in taps)


@settings(max_examples=8, deadline=None)
@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    padding=st.tuples(*[st.tuples(st.integers(1, 3), st.integers(1, 3))] * 2),
    channels=st.tuples(st.integers(1, 4), st.integers(1, 4)),
)
def test_fewer_multiplications_give_the_same_sums(size, padding, channels):
    rng = np.random.default_rng(sum(size))
    x, w = (np.float32(rng.normal(size=shape)) for shape in ((2, *size, channels[0]), (3, 3, *channels)))
    y = convolve_winograd(jnp.asarray(x), jnp.asarray(w), padding)
    np.testing.assert_allclose(y, in_float64(x, w, padding), rtol=0, atol=2e-5)


@pytest.mark.parametrize("padding", ["SAME", "VALID", ((0, 2), (2, 1))])
@pytest.mark.parametrize("size", [(8, 8), (9, 7)])
def test_many_channels_have_fewer_multiplications(size, padding):
    """No more rounding than in JAX's convolution, and as few in the gradient of the images."""
    rng = np.random.default_rng(0)
    x, w = (np.float32(rng.normal(size=shape)) for shape in ((2, *size, 128), (3, 3, 128, 128)))
    w /= 34
    got, expected = (value_and_gradients(conv, x, w, (1, 1), padding) for conv in (OURS, JAX))
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    pads = jax.lax.padtype_to_pads(size, (3, 3), (1, 1), padding) if isinstance(padding, str) else padding
    exact = in_float64(x, w, pads)
    ours, theirs = (np.sqrt(np.mean((y[0] - exact) ** 2)) for y in (got, expected))
    assert ours < 2 * theirs
    run = partial(value_and_gradients, OURS, strides=(1, 1), padding=padding)
    assert str(jax.make_jaxpr(run)(x, w)).count("conv_general_dilated[") == 1, "that of the kernel's gradient"


@pytest.mark.parametrize(
    ("dtype", "strides", "padding"),
    [
        (jnp.bfloat16, (1, 1), "SAME"),
        (jnp.float32, (2, 2), "SAME"),
        (jnp.float32, (1, 1), ((1, -1), (1, 1))),
    ],
)
def test_and_others_have_not(dtype, strides, padding):
    x, w = jnp.ones((1, 8, 8, 128), dtype), jnp.ones((3, 3, 128, 128), dtype)
    program = jax.make_jaxpr(lambda x, w: OURS(x, w, strides, padding))
    assert "conv_general_dilated" in str(program(x, w))
    assert "conv_general_dilated" in str(program(x[..., :64], w[:, :, :64]))


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("shape", [(0, 5, 5, 3), (2, 2, 5, 3)])
def test_no_pixels_have_gradients_of_0(shape, groups):
    x, w = jnp.ones(shape), jnp.ones((3, 3, 3 // groups, 3))
    y, *gradients = value_and_gradients(OURS, x, w, (1, 1), "VALID", feature_group_count=groups)
    assert y.size == 0
    jax.tree.map(np.testing.assert_array_equal, gradients, [jnp.zeros_like(x), jnp.zeros_like(w)])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_depthwise_sums_are_of_float32(dtype):
    """Every result is the one of float32, rounded once."""
    keys = jax.random.split(jax.random.key(0), 3)
    x, w = jax.random.normal(keys[0], (8, 9, 9, 4), dtype), jax.random.normal(keys[1], (5, 5, 1, 4), dtype)
    g = jax.random.normal(keys[2], (8, 5, 5, 4), dtype)

    @partial(jax.jit, static_argnums=0)
    def value_and_gradients(dtype):
        conv = partial(OURS, window_strides=(2, 2), padding="SAME", feature_group_count=4)
        y, pull = jax.vjp(conv, x.astype(dtype), w.astype(dtype))
        return y, *pull(g.astype(dtype))

    for got, exact in zip(value_and_gradients(dtype), value_and_gradients(jnp.float32), strict=True):
        assert got.dtype == dtype
        difference = jnp.abs(got.astype(jnp.float32) - exact)
        assert (difference <= jnp.finfo(dtype).eps * jnp.abs(exact)).all()


@pytest.mark.parametrize(
    "options", [{"rhs_dilation": (2, 2)}, {"feature_group_count": 3, "rhs_dilation": (2, 2)}, {"precision": "highest"}]
)
def test_others_are_left_to_jax(options):
    groups = options.get("feature_group_count", 1)
    keys = jax.random.split(jax.random.key(0))
    x, w = jax.random.normal(keys[0], (2, 7, 7, 3)), jax.random.normal(keys[1], (3, 3, 3 // groups, 6))
    got, expected = (value_and_gradients(conv, x, w, (1, 1), "SAME", **options) for conv in (OURS, JAX))
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    jax.jvp(lambda x: OURS(x, w, (1, 1), "SAME", **options), (x,), (x,))  # which ours does not have


STAGES = (Stage(1, 4, 1, 3, 1), Stage(2, 8, 2, 5, 2))
NETWORKS = {"resnet18": {"width": 4}, "efficientnet_lite0": {"stages": STAGES, "stem_features": 4, "features": 8}}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_learns_alike(name):
    def after_a_step(conv):
        model = fsg.create_model(name, num_classes=5, gate=fsg.Gate, conv=conv, **NETWORKS[name])
        images = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))
        tx = fsg.routed(params=optax.sgd(0.1), gates=optax.adam(1e-2))
        state = fsg.init_state(model, tx, jax.random.key(0), images)
        step = fsg.make_train_step(fsg.losses.cross_entropy)
        return step(state, {"image": images, "label": jnp.arange(4)})[0].variables

    ours = after_a_step(partial(nn.Conv, conv_general_dilated=conv_general_dilated))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), ours, after_a_step(nn.Conv))
