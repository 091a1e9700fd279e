"""Penalties and summaries against hand-worked values."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy import Mlp, batch, new_state

import fsg_jax as fsg
from fsg_jax.gates import penalties
from fsg_jax.gates.functions import SQUASHINGS


class TwoGates(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(fsg.Gate(name="second")(fsg.Gate(name="first")(x)))


def test_l1_and_entropy_by_hand():
    values = jnp.array([0.5, 0.25, 1.0])
    np.testing.assert_allclose(penalties.l1(values), 1.75)
    by_hand = np.log(2) - 0.25 * np.log(0.25) - 0.75 * np.log(0.75)
    np.testing.assert_allclose(penalties.entropy(values), by_hand, atol=1e-5)


def test_expected_l0_is_the_published_shift():
    np.testing.assert_allclose(penalties.expected_l0(jnp.array([0.0])), 1 / (1 + np.exp(-1.5986)), rtol=1e-4)
    draws = fsg.squash(jnp.full(100_000, -1.0), "hard_concrete", key=jax.random.key(0), train=True)
    expected = penalties.expected_l0(jnp.full(100_000, -1.0)) / 100_000
    np.testing.assert_allclose(jnp.mean(draws > 0), expected, atol=0.005)


def test_entropy_has_a_finite_gradient_at_closed_gates():
    grads = jax.grad(lambda g: penalties.entropy(fsg.squash(g, "hard_sigmoid")))(jnp.array([-9.0, 0.5, 9.0]))
    assert jnp.isfinite(grads).all()
    assert grads[1] < 0


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_gate_penalty_sums_over_all_gates(reduction):
    state = new_state()
    values = next(iter(fsg.gate_values(state).values()))
    penalty = fsg.gate_penalty("l1", 0.5, reduction=reduction)
    np.testing.assert_allclose(penalty(state.gates, state.gate_kinds), 0.5 * getattr(jnp, reduction)(values), rtol=1e-6)


def test_a_penalty_knows_the_step_and_single_gates():
    state = fsg.init_state(TwoGates(), optax.sgd(0.0), jax.random.key(0), jnp.ones((2, 4)))
    values = fsg.gate_values(state)
    only = fsg.gate_penalty("l1", 2.0, gates="first|third")
    np.testing.assert_allclose(only(state.gates, state.gate_kinds), 2 * values["first"].sum(), rtol=1e-6)
    rising = fsg.gate_penalty("l1", lambda step: 0.5 * step)
    total = sum(v.sum() for v in values.values())
    np.testing.assert_allclose(rising(state.gates, state.gate_kinds, 3), 1.5 * total, rtol=1e-6)
    step = fsg.make_train_step(fsg.losses.squared_error, "none", inputs="image", penalty=rising)
    data, seen = {"image": jnp.ones((2, 4)), "target": jnp.ones(2)}, []
    for _ in range(3):
        state, metrics = step(state, data)
        seen.append(float(metrics["penalty"]))
    np.testing.assert_allclose(seen, [0.5 * t * float(total) for t in (1, 2, 3)], rtol=1e-5)
    with pytest.raises(ValueError, match=r"gates.*'first', 'second'.*'thrid'"):
        fsg.gate_penalty("l1", 1.0, gates="thrid")(state.gates, state.gate_kinds)


def test_a_penalty_of_two_arguments_will_do():
    step = fsg.make_train_step(fsg.losses.cross_entropy, penalty=lambda gates, kinds: jnp.float32(3))
    assert step(new_state(), batch())[1]["penalty"] == 3


class TestSelection:
    @pytest.mark.parametrize("kind", SQUASHINGS)
    def test_hard_gates_are_the_selected_ones_exactly(self, kind):
        gate, x = fsg.Gate(kind=kind, logits_init=lambda key, shape: jnp.linspace(-2.0, 2.0, *shape)), jnp.ones((1, 8))
        variables = gate.init(jax.random.key(0), x)
        chosen = fsg.selected(variables, 0.6, kinds=kind)[""]
        assert 0 < chosen.sum() < 8
        hard = gate.apply(fsg.harden(variables, 0.6, kinds=kind), x)
        np.testing.assert_array_equal(hard, chosen[None].astype(jnp.float32))

    def test_a_state_keeps_everything_else(self):
        state = new_state(ema_decay=0.9)
        hard = fsg.harden(state)
        jax.tree.map(np.testing.assert_array_equal, (hard.params, hard.opt_state), (state.params, state.opt_state))
        jax.tree.map(np.testing.assert_array_equal, hard.ema["gates"], hard.gates)
        values = fsg.gate_values(state)["gate"]
        np.testing.assert_array_equal(fsg.gate_values(hard)["gate"], (values >= 0.5).astype(jnp.float32))

    def test_a_kind_without_0_or_1_is_refused(self):
        variables = fsg.Gate(kind=jnp.arctan).init(jax.random.key(0), jnp.ones((1, 3)))
        with pytest.raises(ValueError, match="0 and 1"):
            fsg.harden(variables, kinds=jnp.arctan)

    def test_values_of_plain_variables(self):
        state = new_state()
        logits = state.gates["gate"]["logits"]
        for kinds, want in ((None, jax.nn.sigmoid(logits)), ({"gate": "relu"}, jax.nn.relu(logits))):
            np.testing.assert_allclose(fsg.gate_values(state.variables, kinds)["gate"], want, rtol=1e-6)
        with pytest.raises(ValueError, match=r"differences at .*'gate'"):
            fsg.gate_values(state.variables, {"gat": "relu"})


def test_bad_penalties_are_named():
    with pytest.raises(ValueError, match="l2"):
        fsg.gate_penalty("l2", 1.0)
    with pytest.raises(ValueError, match="reduction"):
        fsg.gate_penalty("l1", 1.0, reduction="median")
    with pytest.raises(ValueError, match="finite"):
        fsg.gate_penalty("l1", float("nan"))
    with pytest.raises(ValueError, match="sigmoid"):
        penalties.expected_l0(jnp.zeros(2), "sigmoid")


def test_summary_by_hand():
    state = new_state(Mlp(width=4))
    gates = {"gate": {"logits": jnp.array([-10.0, 10.0, 0.0, 10.0])}}
    summary = fsg.gate_summary(state.replace(variables=state.variables | {"gates": gates}))["gate"]
    np.testing.assert_allclose(summary["mean"], 0.625, atol=1e-4)
    assert (summary["open"], summary["closed"]) == (0.5, 0.25)
    np.testing.assert_allclose(summary["entropy"], np.log(2) / 4, atol=1e-3)


def test_summary_of_an_ungated_model_is_empty():
    assert fsg.gate_summary(new_state(Mlp(gate=None))) == {}
