"""Models of NNX in the step: equal to linen's on the same network, with random streams of their own."""

import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import fsg_jax as fsg

TX = fsg.routed(params=optax.sgd(0.1, momentum=0.9), gates=optax.adam(0.05))


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, mask_key, train=False):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(nn.Dense(6, name="first")(x))
        x = nn.Dropout(0.5, deterministic=not train)(x, rng=jax.random.wrap_key_data(mask_key[0]) if train else None)
        return nn.Dense(3, name="second")(fsg.Gate(name="gate")(x))


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.first, self.second = nnx.Linear(4, 6, rngs=rngs), nnx.Linear(6, 3, rngs=rngs)
        self.norm, self.drop = nnx.BatchNorm(6, momentum=0.9, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
        self.gate = fsg.nnx.Gate(6, rngs=rngs)

    def __call__(self, x, mask_key):
        x = self.drop(self.norm(self.first(x)), rngs=jax.random.wrap_key_data(mask_key[0]))
        return self.second(self.gate(x))


class Streams(nnx.Module):
    """Dropout and a stochastic gate that draw from the model's own streams."""

    def __init__(self, rngs, **gate):
        self.first, self.second = nnx.Linear(4, 6, rngs=rngs), nnx.Linear(6, 3, rngs=rngs)
        self.drop, self.gate = nnx.Dropout(0.5, rngs=rngs), fsg.nnx.Gate(6, rngs=rngs, **gate)

    def __call__(self, x):
        return self.second(self.gate(self.drop(self.first(x))))


KEY_DATA = jnp.broadcast_to(jax.random.key_data(jax.random.key(5))[None], (8, 2))
DATA = {"image": jnp.sin(jnp.arange(32.0)).reshape(8, 4), "mask": KEY_DATA, "label": jnp.arange(8) % 3}


def test_the_step_equals_that_of_linen():
    """With BatchNorm, dropout, averages, and evaluation."""
    linen = fsg.init_state(Linen(), TX, jax.random.key(0), DATA["image"], KEY_DATA, ema_decay=0.9)
    module = Nnx(nnx.Rngs(1))
    for name, leaves in linen.params.items():
        for leaf, value in leaves.items():
            getattr(getattr(module, name), leaf)[...] = value
    module.gate.logits[...] = linen.gates["gate"]["logits"]
    state = fsg.nnx.init_state(module, TX, ema_decay=0.9)
    step = fsg.make_train_step(fsg.losses.cross_entropy, inputs=("image", "mask"))
    nnx_step = fsg.nnx.make_train_step(fsg.losses.cross_entropy, inputs=("image", "mask"))
    layout = jax.tree.map(lambda x: (x.shape, x.dtype, x.aval.weak_type), state)
    for _ in range(3):
        linen, metrics = step(linen, DATA)
        state, nnx_metrics = nnx_step(state, DATA)
    assert jax.tree.map(lambda x: (x.shape, x.dtype, x.aval.weak_type), state) == layout
    assert nnx_step._cache_size() == 1
    for variables, expected in ((state.variables, linen.variables), (state.ema, linen.ema)):
        got = {name: variables[name] for name in expected}
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, expected)
    np.testing.assert_allclose(nnx_metrics["loss"], metrics["loss"], rtol=1e-6)
    evaluate = fsg.make_eval_step(fsg.losses.cross_entropy, inputs=("image", "mask"))
    np.testing.assert_allclose(evaluate(state, DATA)["loss"], evaluate(linen, DATA)["loss"], rtol=1e-5)
    merged = fsg.nnx.merge(state)
    merged.eval()
    expected = linen.model.apply(linen.variables, DATA["image"], KEY_DATA)
    np.testing.assert_allclose(merged(DATA["image"], KEY_DATA), expected, atol=1e-5)


def test_both_passes_see_the_same_draws_and_the_next_step_others():
    """With gates that do not move, the main pass of sequential repeats the gate pass, and so equals joint."""
    still = fsg.routed(params=optax.sgd(0.1), gates=optax.sgd(0.0))
    states = [fsg.nnx.init_state(Streams(nnx.Rngs(0), kind="hard_concrete"), still) for _ in range(2)]
    losses = []
    for routing, state in zip(("sequential", "joint"), states, strict=True):
        step, seen = fsg.nnx.make_train_step(fsg.losses.cross_entropy, routing), []
        for _ in range(2):
            state, metrics = step(state, DATA)
            seen.append(float(metrics["loss"]))
        losses.append(seen)
    np.testing.assert_allclose(*losses, rtol=1e-6)
    frozen = fsg.nnx.init_state(Streams(nnx.Rngs(0)), fsg.routed(params=optax.sgd(0.0), gates=None))
    frozen, first = step(frozen, DATA)
    _, second = step(frozen, DATA)
    assert first["loss"] != second["loss"]


def test_gates_are_found_selected_and_saved(tmp_path):
    state = fsg.nnx.init_state(Streams(nnx.Rngs(0), temperature=lambda step: 0.5**step), TX)
    state, _ = fsg.nnx.make_train_step(fsg.losses.cross_entropy)(state, DATA)
    logits = state.gates["gate"]["logits"]
    np.testing.assert_allclose(fsg.gate_values(state)["gate"], jax.nn.sigmoid(2 * logits), rtol=1e-5)
    hard = fsg.gate_values(fsg.harden(state))["gate"]
    np.testing.assert_array_equal(hard, fsg.selected(state)["gate"].astype(jnp.float32))
    checkpointer = fsg.Checkpointer(tmp_path / "checkpoints")
    checkpointer.save(state)
    checkpointer.wait()
    restored = checkpointer.restore(state).state
    checkpointer.close()
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), restored, state))


def test_what_is_not_right_is_said():
    module = Streams(nnx.Rngs(0))
    module.eval()
    with pytest.warns(UserWarning, match=r"'drop'.*evaluation mode"):
        fsg.nnx.init_state(module, TX)
    with pytest.raises(ValueError, match=r"6 channels.*\(2, 5\)"):
        fsg.nnx.Gate(6, rngs=nnx.Rngs(0))(jnp.ones((2, 5)))

    class Mute(nnx.Module):
        def __init__(self):
            self.logits = fsg.nnx.GateLogits(jnp.zeros(4))

        def __call__(self, x):
            return x * jnp.exp(self.logits[...])[None]

    with pytest.raises(ValueError, match=r"gate_kinds.*''"):
        fsg.nnx.init_state(Mute(), fsg.routed(gates=optax.adam(0.1)))
    state = fsg.nnx.init_state(Mute(), fsg.routed(gates=optax.adam(0.1)), gate_kinds={"": jnp.exp})
    np.testing.assert_array_equal(fsg.gate_values(state)[""], 1)


def test_a_frozen_batch_norm_uses_its_running_statistics():
    tx = fsg.routed(
        labels={"frozen": "(params|batch_stats)/norm/.*"}, frozen=None, params=optax.sgd(0.1), gates=optax.adam(0.1)
    )
    state = fsg.nnx.init_state(Nnx(nnx.Rngs(0)), tx)
    before = jax.tree.map(np.asarray, state.batch_stats)
    state, metrics = fsg.nnx.make_train_step(fsg.losses.cross_entropy, inputs=("image", "mask"))(state, DATA)
    jax.tree.map(np.testing.assert_array_equal, state.batch_stats, before)
    assert set(metrics["grad_norm"]) == {"params", "gates"}


def test_nnx_is_imported_when_it_is_used():
    code = "import sys, fsg_jax; print('flax.nnx' in sys.modules); fsg_jax.nnx.Gate; print('flax.nnx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split() == [
        "False",
        "True",
    ]
