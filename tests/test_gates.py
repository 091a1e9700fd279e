"""Gates: equations, gradients, initialisation, errors, NNX."""

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads
from toy import Mlp, new_state

import fsg_jax as fsg
from fsg_jax.gates.functions import SQUASHINGS, sample_hard_concrete, squash
from fsg_jax.gates.gate import he, xavier

REFERENCE = {
    "sigmoid": lambda g: 1 / (1 + np.exp(-g)),
    "hard_sigmoid": lambda g: np.clip(g + 3, 0, 6) / 6,
    "relu": lambda g: np.maximum(g, 0),
    "straight_through": lambda g: (g > 0).astype(float),
    "hard_concrete": lambda g: np.clip(1.2 / (1 + np.exp(-g)) - 0.1, 0, 1),
}
SMOOTH = np.array([-2.5, -1.1, -0.3, 0.4, 1.2, 2.0])


@pytest.mark.parametrize("kind", sorted(SQUASHINGS))
def test_values_equal_the_equation_in_float64(kind):
    g = np.linspace(-8, 8, 41)
    np.testing.assert_allclose(squash(jnp.float32(g), kind), REFERENCE[kind](g), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["sigmoid", "hard_sigmoid", "relu", "hard_concrete"])
def test_gradient_equals_finite_differences(kind):
    x = jax.random.normal(jax.random.key(1), (5, 6))
    check_grads(
        lambda g, x: x * squash(jnp.asarray(g), kind)[None],
        (jnp.float32(SMOOTH), x),
        order=1,
        modes=("rev",),
        eps=1e-2,
        rtol=1e-2,
    )


def test_module_gradient_equals_finite_differences():
    x = jax.random.normal(jax.random.key(1), (2, 3, 4))
    variables = fsg.Gate(axis=1).init(jax.random.key(0), x)
    check_grads(
        lambda v: fsg.Gate(axis=1).apply(jax.tree.map(jnp.asarray, v), x),
        (variables,),
        order=1,
        modes=("rev",),
        eps=1e-2,
        rtol=1e-2,
    )


def test_straight_through_is_binary_forward_and_sigmoid_backward():
    g = jnp.float32(np.linspace(-6, 6, 101))
    assert set(np.unique(squash(g, "straight_through"))) == {0.0, 1.0}
    got = jax.vmap(jax.grad(lambda g: squash(g, "straight_through")))(g)
    np.testing.assert_allclose(got, jax.vmap(jax.grad(jax.nn.sigmoid))(g), rtol=1e-6)


def test_hard_concrete_draws_have_the_published_mass_at_zero_and_one():
    draws = sample_hard_concrete(jnp.zeros(200_000), jax.random.key(0))
    np.testing.assert_allclose([jnp.mean(draws == 0), jnp.mean(draws == 1)], [0.168, 0.168], atol=0.004)
    nonzero = jnp.mean(draws > 0)
    np.testing.assert_allclose(nonzero, jax.nn.sigmoid(2 / 3 * math.log(11)), atol=0.004)


def test_hard_concrete_is_random_in_training_only():
    x = jnp.ones((2, 50))
    gate = fsg.Gate(kind="hard_concrete")
    variables = gate.init(jax.random.key(0), x)
    first, again, other = (gate.apply(variables, x, train=True, rngs={"gates": jax.random.key(k)}) for k in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    np.testing.assert_array_equal(gate.apply(variables, x), gate.apply(variables, x))


@pytest.mark.parametrize(("channels", "std"), [(64, 0.175412), (512, 0.062439), (768, 0.050998)])
def test_xavier_has_the_reference_standard_deviation(channels, std):
    draws = jax.vmap(lambda k: xavier(k, (channels,)))(jax.random.split(jax.random.key(0), 2000))
    np.testing.assert_allclose(jnp.std(draws), std, rtol=0.01)


@pytest.mark.parametrize(("channels", "std"), [(64, 0.176777), (1536, 0.036084)])
def test_he_has_the_reference_standard_deviation(channels, std):
    draws = jax.vmap(lambda k: he(k, (channels,)))(jax.random.split(jax.random.key(0), 2000))
    np.testing.assert_allclose(jnp.std(draws), std, rtol=0.01)


@pytest.mark.parametrize("kind", sorted(SQUASHINGS))
def test_open_starts_near_one_and_can_still_close(kind):
    logit = SQUASHINGS[kind].open_logit
    assert squash(jnp.float32(logit), kind) >= 0.98
    slope = jax.grad(lambda g: squash(g, kind, key=jax.random.key(3), train=False))(jnp.float32(logit))
    assert slope > 0 or kind == "hard_concrete"


def test_hard_concrete_open_has_a_gradient_in_training():
    def mean(g):
        return jnp.mean(squash(jnp.full(1000, g), "hard_concrete", key=jax.random.key(0), train=True))

    assert jax.grad(mean)(jnp.float32(SQUASHINGS["hard_concrete"].open_logit)) > 0


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_gates_one_axis_of_any_rank(data):
    shape = tuple(data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=5)))
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    y, variables = fsg.Gate(axis=axis).init_with_output(jax.random.key(0), x)
    values = np.asarray(jax.nn.sigmoid(variables["gates"]["logits"]))
    expected = np.moveaxis(np.moveaxis(x, axis, -1) * values, -1, axis)
    np.testing.assert_allclose(y, expected, rtol=1e-6)


def test_keeps_the_input_dtype_and_float32_logits():
    y, variables = fsg.Gate().init_with_output(jax.random.key(0), jnp.ones((2, 3), jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    assert variables["gates"]["logits"].dtype == jnp.float32
    assert set(variables) == {"gates"}


def test_gate_in_a_model_of_ones_own_leaves_its_params_alone():
    class Net(nn.Module):
        gated: bool

        @nn.compact
        def __call__(self, x):
            x = nn.Dense(8)(x)
            if self.gated:
                x = fsg.Gate()(x)
            return nn.Dense(3)(x)

    x = jnp.ones((2, 4))
    gated, plain = (Net(g).init(jax.random.key(0), x) for g in (True, False))
    jax.tree.map(np.testing.assert_array_equal, gated["params"], plain["params"])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"kind": "sigmoyd"}, "sigmoid"),
        ({"logits_init": "xaviar"}, "xavier"),
        ({"axis": 2}, "axis: .*found 2"),
        ({"axis": -3}, "axis: .*found -3"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        fsg.Gate(**kwargs).init(jax.random.key(0), jnp.ones((2, 3)))


def test_logits_of_another_width_are_named():
    variables = fsg.Gate().init(jax.random.key(0), jnp.ones((2, 3)))
    with pytest.raises(ValueError, match=r"\(2, 4\).*\(3,\)"):
        fsg.Gate().apply(variables, jnp.ones((2, 4)))


def test_stochastic_gate_without_a_key():
    with pytest.raises(ValueError, match="key: expected one"):
        squash(jnp.zeros(3), "hard_concrete", train=True)


def test_a_bridged_gate_has_the_variable_type_of_an_nnx_one():
    logits_type = fsg.nnx.GateLogits
    gate = nnx.bridge.ToNNX(fsg.Gate(), rngs=nnx.Rngs(0))
    x = jnp.ones((2, 5))
    nnx.bridge.lazy_init(gate, x)
    state = nnx.to_pure_dict(nnx.state(gate))
    np.testing.assert_allclose(gate(x), x * jax.nn.sigmoid(state["logits"])[None], rtol=1e-6)
    leaves = jax.tree.leaves(nnx.state(gate), is_leaf=lambda v: isinstance(v, nnx.Variable))
    assert logits_type in {type(leaf) for leaf in leaves}


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint8, jnp.bool_])
@pytest.mark.parametrize("gate", [fsg.Gate, fsg.SqueezeExcite, fsg.EfficientChannelAttention])
def test_integers_are_refused(gate, dtype):
    with pytest.raises(ValueError, match=f"floating-point values, found {jnp.dtype(dtype)}"):
        gate().init(jax.random.key(0), jnp.ones((2, 4), dtype))


@pytest.mark.parametrize("kind", [k for k in SQUASHINGS if k != "sigmoid"])
def test_the_default_init_is_open_and_alive(kind):
    gate, x = fsg.Gate(kind=kind), jnp.ones((1, 6))
    variables = gate.init(jax.random.key(0), x)
    np.testing.assert_allclose(gate.apply(variables, x), 1, atol=0.025)
    slopes = jax.grad(lambda v: jnp.sum(gate.apply(v, x)))(variables)["gates"]["logits"]
    assert np.all(np.abs(slopes) > 0.01)


def test_the_default_init_of_sigmoid_and_functions_is_xavier():
    x, key = jnp.ones((1, 6)), jax.random.key(0)
    wanted = fsg.Gate(logits_init="xavier").init(key, x)
    for kind in ("sigmoid", jnp.tanh):
        jax.tree.map(np.testing.assert_array_equal, fsg.Gate(kind=kind).init(key, x), wanted)


def test_a_dead_init_is_refused_or_warned_of():
    for init in ("xavier", "he"):
        with pytest.raises(ValueError, match=r"logits_init.*'relu'.*'open'"):
            fsg.Gate(kind="relu", logits_init=init).init(jax.random.key(0), jnp.ones((1, 6)))
    gate = partial(fsg.Gate, kind="relu", logits_init=lambda key, shape: jnp.linspace(-1.0, 1.0, *shape))
    with pytest.warns(UserWarning, match="3 of 6 of 'gate'"):
        new_state(Mlp(gate=gate))


def test_a_temperature_divides_the_logits():
    gate, x = fsg.Gate(temperature=0.25), jnp.ones((1, 6))
    variables = gate.init(jax.random.key(0), x)
    np.testing.assert_allclose(gate.apply(variables, x)[0], jax.nn.sigmoid(4 * variables["gates"]["logits"]), rtol=1e-6)
    opened = fsg.Gate(kind="hard_concrete", temperature=0.25)
    np.testing.assert_allclose(opened.apply(opened.init(jax.random.key(0), x), x), 0.98, atol=1e-3)
    with pytest.raises(ValueError, match="temperature"):
        fsg.Gate(temperature=0.0).init(jax.random.key(0), x)


def test_logits_of_bfloat16_are_squashed_and_drawn_in_float32():
    logits = jnp.linspace(-3, 3, 7).astype(jnp.bfloat16)
    assert squash(logits).dtype == jnp.float32
    draws = squash(jnp.zeros(10_000, jnp.bfloat16), "hard_concrete", key=jax.random.key(0), train=True)
    assert np.all(np.isfinite(draws))
    np.testing.assert_allclose(jnp.mean(draws), 0.5, atol=0.02)
