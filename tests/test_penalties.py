"""Penalties and summaries against hand-worked values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import Mlp, new_state

import fsg_jax as fsg
from fsg_jax.gates import penalties


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
