"""State and steps: accumulation, averaging, metrics, random draws, precision, evaluation."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy import Mlp, batch, new_state, train_step, two_optimizers

import fsg_jax as fsg


def copy(tree):
    return jax.tree.map(np.asarray, tree)


@pytest.mark.parametrize("routing", ["joint", "sequential"])
def test_accumulation_equals_the_whole_batch(routing):
    data = batch(size=12)
    whole, parts = new_state(), new_state()
    for _ in range(3):
        whole, metrics = train_step(routing)(whole, data)
        parts, part_metrics = train_step(routing, accumulate=3)(parts, data)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), whole.variables, parts.variables)
    np.testing.assert_allclose(metrics["loss"], part_metrics["loss"], rtol=1e-5)


def test_accumulation_runs_batch_norm_through_the_micro_batches_in_order():
    data = batch(size=8)
    state = new_state(Mlp(batch_norm=True), fsg.routed(params=optax.sgd(0.0), gates=optax.sgd(0.0)))
    twice = new_state(Mlp(batch_norm=True), fsg.routed(params=optax.sgd(0.0), gates=optax.sgd(0.0)))
    state, _ = train_step("sequential", accumulate=2)(state, data)
    for half in (slice(0, 4), slice(4, 8)):
        twice, _ = train_step("sequential")(twice, {k: v[half] for k, v in data.items()})
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
        state.variables["batch_stats"],
        twice.variables["batch_stats"],
    )


class TwoStreams(nn.Module):
    """The tiny model on the concatenation of two input streams."""

    @nn.compact
    def __call__(self, x, *, train: bool = False):
        return Mlp(batch_norm=True, name="mlp")(jnp.concatenate([x["left"], x["right"]], 1), train=train)


@pytest.mark.slow
def test_several_input_streams_are_one_image():
    """A dict of streams gives what their concatenation gives, micro-batches and evaluation included."""
    data = batch(size=12)
    streams = {**data, "image": {"left": data["image"][:, :1], "right": data["image"][:, 1:]}}
    plain = new_state(Mlp(batch_norm=True))
    variables = {k: {"mlp": v} for k, v in plain.variables.items()}
    empty = {"left": jnp.zeros((1, 1)), "right": jnp.zeros((1, 3))}
    nested = fsg.init_state(TwoStreams(), plain.tx, jax.random.key(0), empty, variables=variables)
    step = train_step("sequential", accumulate=3)
    plain, metrics = step(plain, data)
    nested, stream_metrics = step(nested, streams)
    np.testing.assert_allclose(metrics["loss"], stream_metrics["loss"], rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), plain.params, nested.params["mlp"]
    )
    evaluate = fsg.make_eval_step(fsg.losses.cross_entropy)
    a, b = evaluate(plain, data), evaluate(nested, streams)
    np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)
    assert b["count"] == 12


def test_a_batch_that_cannot_be_cut():
    with pytest.raises(ValueError, match=r"accumulate.*8.*3"):
        train_step("joint", accumulate=3)(new_state(), batch(size=8))


def test_averaged_variables_follow_the_formula():
    state = new_state(ema_decay=0.15)
    average = copy(state.variables)
    step = train_step("sequential")
    for t in range(1, 5):
        state, _ = step(state, batch(t))
        decay = min(0.15, (1 + t) / (10 + t))
        average = jax.tree.map(lambda a, v, d=decay: d * a + (1 - d) * np.asarray(v), average, state.variables)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), state.ema, average)
    plain = fsg.make_eval_step(fsg.losses.cross_entropy)(state, batch())
    averaged = fsg.make_eval_step(fsg.losses.cross_entropy, ema=True)(state, batch())
    assert plain["loss"] != averaged["loss"]


def test_averaging_is_asked_for():
    with pytest.raises(ValueError, match="ema_decay"):
        fsg.make_eval_step(fsg.losses.cross_entropy, ema=True)(new_state(), batch())
    with pytest.raises(ValueError, match=r"1\.5"):
        new_state(ema_decay=1.5)


def test_metrics_are_what_they_say():
    state, data = new_state(tx=fsg.routed(params=optax.sgd(0.0), gates=optax.sgd(0.0))), batch()
    logits = state.model.apply(state.variables, data["image"])
    gradient = jax.grad(
        lambda p: jnp.mean(
            fsg.losses.cross_entropy(state.model.apply(state.variables | {"params": p}, data["image"]), data)
        )
    )(state.params)
    values = jax.nn.sigmoid(state.gates["gate"]["logits"])
    state, metrics = train_step("sequential")(state, data)
    np.testing.assert_allclose(metrics["loss"], jnp.mean(fsg.losses.cross_entropy(logits, data)), rtol=1e-6)
    np.testing.assert_allclose(metrics["accuracy"], jnp.mean(jnp.argmax(logits, 1) == data["label"]), rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"]["params"], optax.tree.norm(gradient), rtol=1e-5)
    np.testing.assert_allclose(metrics["gates"]["mean"], jnp.mean(values), rtol=1e-6)


def test_penalty_is_reported():
    _, metrics = train_step("sequential", penalty=fsg.gate_penalty("l1", 2.0))(new_state(), batch())
    assert metrics["penalty"] > 0


@pytest.mark.slow
def test_randomness_depends_on_the_step_and_the_key_alone():
    model = Mlp(dropout=0.5)
    step = train_step("sequential")
    first, second = new_state(model), new_state(model)
    for _ in range(2):
        first, a = step(first, batch())
        second, b = step(second, batch())
        assert a["loss"] == b["loss"]
    frozen = fsg.routed(params=optax.sgd(0.0), gates=optax.sgd(0.0))
    still = new_state(model, frozen)
    still, a = train_step("joint")(still, batch())
    still, b = train_step("joint")(still, batch())
    assert a["loss"] != b["loss"]


def test_both_passes_of_sequential_see_the_same_draws():
    """With gates that do not move, the second pass repeats the first, dropout and stochastic gates included."""
    model = Mlp(dropout=0.5, gate=lambda name: fsg.Gate(kind="hard_concrete", name=name))
    tx = fsg.routed(params=optax.sgd(0.1), gates=optax.set_to_zero())
    joint, sequential = new_state(model, tx), new_state(model, tx)
    joint, a = train_step("joint")(joint, batch())
    sequential, b = train_step("sequential")(sequential, batch())
    np.testing.assert_array_equal(a["loss"], b["loss"])
    jax.tree.map(np.testing.assert_array_equal, joint.params, sequential.params)


def test_jit_equals_no_jit():
    a, b = new_state(), new_state()
    a, _ = train_step("sequential")(a, batch())
    b, _ = train_step("sequential", jit=False)(b, batch())
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a.variables, b.variables)


def test_the_state_is_donated():
    state = new_state()
    train_step("sequential")(state, batch())
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


def test_gated_and_ungated_start_from_the_same_weights():
    gated, plain = new_state(Mlp()), new_state(Mlp(gate=None))
    jax.tree.map(np.testing.assert_array_equal, gated.params, plain.params)


def test_given_variables_are_copied():
    variables = Mlp().init(jax.random.key(7), jnp.zeros((1, 4)))
    before = copy(variables)
    state = new_state(variables=variables)
    train_step("sequential")(state, batch())
    jax.tree.map(np.testing.assert_array_equal, variables, before)


def test_transform_runs_inside_the_step_with_a_new_key_each_step():
    def noisy(key, batch):
        return {**batch, "image": batch["image"] + jax.random.normal(key, batch["image"].shape)}

    state = new_state(tx=fsg.routed(params=optax.sgd(0.0), gates=optax.sgd(0.0)))
    step = train_step("sequential", transform=noisy)
    state, a = step(state, batch())
    state, b = step(state, batch())
    assert a["loss"] != b["loss"]


def test_padding_does_not_count():
    state, data = new_state(), batch(size=8)
    evaluate = fsg.make_eval_step(fsg.losses.cross_entropy)
    want = evaluate(state, {k: v[:5] for k, v in data.items()})
    padded = {k: v.at[5:].set(0) for k, v in data.items()} | {"valid": jnp.arange(8) < 5}
    got = evaluate(state, padded)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, want)
    assert got["count"] == 5


def test_evaluation_uses_running_statistics_and_deterministic_gates():
    model = Mlp(batch_norm=True, dropout=0.5, gate=lambda name: fsg.Gate(kind="hard_concrete", name=name))
    state, data = new_state(model), batch()
    evaluate = fsg.make_eval_step(fsg.losses.cross_entropy)
    alone = [evaluate(state, {k: v[i : i + 1] for k, v in data.items()})["loss"] for i in range(8)]
    np.testing.assert_allclose(np.mean(alone), evaluate(state, data)["loss"], rtol=1e-5)


# The second step of the tiny model, float32 on the CPU.
GOLDEN = {
    "loss": 1.1558598,
    "grad_norm/params": 0.48306316,
    "grad_norm/gates": 0.032044124,
    "gates/mean": 0.43830404,
}


def test_golden_step():
    state, _ = train_step("sequential")(new_state(Mlp(batch_norm=True), two_optimizers()), batch())
    _, metrics = train_step("sequential")(state, batch(1))
    got = {
        "loss": metrics["loss"],
        "grad_norm/params": metrics["grad_norm"]["params"],
        "grad_norm/gates": metrics["grad_norm"]["gates"],
        "gates/mean": metrics["gates"]["mean"],
    }
    message = "the second training step changed; if that was meant, say why in the commit and update GOLDEN"
    for name, value in GOLDEN.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-4, err_msg=f"{name}: {message}")
