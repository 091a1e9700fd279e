"""Routing modes against plain float64 NumPy and hand-written two-pass loops."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy import Mlp, batch, new_state, train_step, two_optimizers

import fsg_jax as fsg
from fsg_jax.routing import Pass


class Scalar(nn.Module):
    """``w x s(g)``, one weight and one gate: small enough to work by hand."""

    @nn.compact
    def __call__(self, x):
        w = self.param("w", lambda _: jnp.array([2.0]))
        return fsg.Gate(logits_init="constant", init_value=0.5, name="gate")(x * w[None])


X, Y = np.array([[1.0], [2.0], [-1.5]]), np.array([1.0, 3.0, 0.5])
W0, G0, RATE, GATE_RATE = 2.0, 0.5, 0.1, 0.3


def gradients(w: float, g: float, x=X, y=Y) -> tuple[float, float]:
    """Float64 gradients of ``mean((w x s(g) - y)^2)``."""
    s = 1 / (1 + np.exp(-g))
    error = w * x[:, 0] * s - y
    return float(np.mean(2 * error * x[:, 0] * s)), float(np.mean(2 * error * w * x[:, 0] * s * (1 - s)))


def run_scalar(routing: str, steps: int = 3, tx=None, gate_batch=None, **kwargs) -> tuple[float, float]:
    tx = tx or fsg.routed(params=optax.sgd(RATE), gates=optax.sgd(GATE_RATE))
    state = fsg.init_state(Scalar(), tx, jax.random.key(0), jnp.ones((1, 1)))
    step = fsg.make_train_step(fsg.losses.squared_error, routing, metrics={}, **kwargs)
    data = {"image": jnp.float32(X), "target": jnp.float32(Y)}
    for _ in range(steps):
        state, _ = step(state, data) if gate_batch is None else step(state, data, gate_batch)
    return float(state.params["w"][0]), float(state.gates["gate"]["logits"][0])


def test_none_in_float64():
    w, g = W0, G0
    for _ in range(3):
        dw, dg = gradients(w, g)
        w, g = w - RATE * dw, g - RATE * dg
    np.testing.assert_allclose(run_scalar("none", tx=optax.sgd(RATE)), (w, g), rtol=1e-5, atol=1e-6)


def test_joint_in_float64():
    w, g = W0, G0
    for _ in range(3):
        dw, dg = gradients(w, g)
        w, g = w - RATE * dw, g - GATE_RATE * dg
    np.testing.assert_allclose(run_scalar("joint"), (w, g), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("every", [1, 2])
def test_sequential_in_float64(every):
    w, g = W0, G0
    for t in range(3):
        if t % every == 0:
            g -= GATE_RATE * gradients(w, g)[1]
        w -= RATE * gradients(w, g)[0]
    np.testing.assert_allclose(run_scalar("sequential", gate_every=every), (w, g), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("routing", ["joint", "sequential"])
def test_held_out_gate_batch_in_float64(routing):
    x, y = np.array([[0.5], [-1.0]]), np.array([2.0, 0.0])
    w, g = W0, G0
    for _ in range(3):
        dw, dg = gradients(w, g)[0], gradients(w, g, x, y)[1]
        g -= GATE_RATE * dg
        w -= RATE * (gradients(w, g)[0] if routing == "sequential" else dw)
    held_out = {"image": jnp.float32(x), "target": jnp.float32(y)}
    np.testing.assert_allclose(run_scalar(routing, gate_batch=held_out), (w, g), rtol=1e-5, atol=1e-6)


def doubled(outputs, batch):
    return 2 * fsg.losses.squared_error(outputs, batch)


@pytest.mark.parametrize("options", [{"gate_loss": doubled}, {"passes": (Pass({"gates"}, doubled), Pass({"params"}))}])
def test_gate_loss_moves_the_gates_alone(options):
    """As an option of the mode, and as the loss of a pass of one's own."""
    w, g = W0, G0
    for _ in range(3):
        g -= GATE_RATE * 2 * gradients(w, g)[1]
        w -= RATE * gradients(w, g)[0]
    np.testing.assert_allclose(run_scalar("sequential", **options), (w, g), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("routing", ["joint", "sequential"])
def test_penalty_pulls_the_gates_only(routing):
    w, g = W0, G0
    for _ in range(3):
        s = 1 / (1 + np.exp(-g))
        dw, dg = gradients(w, g)[0], gradients(w, g)[1] + 0.7 * s * (1 - s)
        g -= GATE_RATE * dg
        w -= RATE * (gradients(w, g)[0] if routing == "sequential" else dw)
    got = run_scalar(routing, penalty=fsg.gate_penalty("l1", 0.7))
    np.testing.assert_allclose(got, (w, g), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("clip", [(None, None), (0.5, 1.0), (100.0, 0.3)])
def test_reference_accumulates_and_clips_over_everything(clip):
    def clipped(grads, threshold):
        norm = np.hypot(*grads)
        return tuple(g * (1 if threshold is None else min(1, threshold / (norm + 1e-6))) for g in grads)

    w, g = W0, G0
    for _ in range(3):
        first = clipped(gradients(w, g), clip[0])
        g -= GATE_RATE * first[1]
        second = gradients(w, g)
        w -= RATE * clipped((first[0] + second[0], first[1] + second[1]), clip[1])[0]
    np.testing.assert_allclose(run_scalar("reference", reference_clip=clip), (w, g), rtol=1e-5, atol=1e-6)


def two_pass_loop(state: fsg.TrainState, data, steps: int):
    """Sequential routing written out: two forward passes, two optax optimizers, no library."""
    params, gates, stats = state.params, state.gates, state.variables["batch_stats"]
    weight_tx, gate_tx = optax.sgd(0.1, momentum=0.9), optax.adam(0.05)
    weight_state, gate_state = weight_tx.init(params), gate_tx.init(gates)

    def loss(params, gates):
        variables = {"params": params, "gates": gates, "batch_stats": stats}
        logits, updated = state.model.apply(variables, data["image"], train=True, mutable=["batch_stats"])
        mean = optax.softmax_cross_entropy_with_integer_labels(logits, data["label"]).mean()
        return mean, updated["batch_stats"]

    for _ in range(steps):
        gate_grads = jax.grad(loss, argnums=1, has_aux=True)(params, gates)[0]
        updates, gate_state = gate_tx.update(gate_grads, gate_state)
        gates = optax.apply_updates(gates, updates)
        grads, stats = jax.grad(loss, has_aux=True)(params, gates)
        updates, weight_state = weight_tx.update(grads, weight_state)
        params = optax.apply_updates(params, updates)
    return params, gates, stats


def test_sequential_equals_a_hand_written_two_pass_loop():
    data, state = batch(), new_state(Mlp(batch_norm=True))
    expected = two_pass_loop(state, data, 4)
    step = train_step("sequential")
    for _ in range(4):
        state, _ = step(state, data)
    got = (state.params, state.gates, state.variables["batch_stats"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), got, expected)


def test_gate_rate_zero_is_plain_training_bit_for_bit():
    model, data = Mlp(batch_norm=True), batch()
    routed = new_state(model, fsg.routed(params=optax.sgd(0.1, momentum=0.9), gates=optax.adam(0.0)))
    plain = new_state(model, fsg.routed(params=optax.sgd(0.1, momentum=0.9), gates=optax.set_to_zero()))
    sequential, together = train_step("sequential"), train_step("joint")
    for _ in range(3):
        routed, _ = sequential(routed, data)
        plain, _ = together(plain, data)
    jax.tree.map(np.testing.assert_array_equal, routed.variables, plain.variables)


@pytest.mark.parametrize("routing", ["none", "joint", "sequential", "reference"])
def test_without_gates_every_mode_is_plain_training(routing):
    data = batch()
    state, plain = (new_state(Mlp(gate=None), two_optimizers()) for _ in range(2))
    state, _ = train_step(routing)(state, data)
    plain, _ = train_step("none")(plain, data)
    jax.tree.map(np.testing.assert_array_equal, state.params, plain.params)


def adam_state(state: fsg.TrainState, label: str) -> optax.ScaleByAdamState:
    return state.opt_state.inner_states[label].inner_state[0]


def test_one_labels_pass_leaves_the_others_adam_alone():
    """Each label's Adam counts one update a step; its second moment is that of its own gradients alone."""
    tx = fsg.routed(params=optax.adam(1e-2), gates=optax.adam(1e-2))
    state, data = new_state(tx=tx), batch()
    labels = state.tx.labels(state.trainable)
    grads = jax.tree.map(lambda k, p: jnp.ones_like(p) if k == "gates" else None, labels, state.trainable)
    before = adam_state(state, "params")
    trainable, opt_state = state.tx.step({"gates"}, grads, state.opt_state, state.trainable)
    jax.tree.map(np.testing.assert_array_equal, opt_state.inner_states["params"].inner_state[0], before)
    jax.tree.map(np.testing.assert_array_equal, trainable["params"], state.params)
    np.testing.assert_array_less(0, opt_state.inner_states["gates"].inner_state[0].nu["gates"]["gate"]["logits"])

    for _ in range(3):
        state, _ = train_step("sequential")(state, data)
    assert [int(adam_state(state, k).count) for k in ("params", "gates")] == [3, 3]


def test_skipped_gate_passes_leave_gates_and_their_adam_alone():
    state, data = new_state(tx=fsg.routed(params=optax.sgd(0.1), gates=optax.adam(1e-2))), batch()
    step = train_step("sequential", gate_every=3)
    logits, counts = [], []
    for _ in range(6):
        state, _ = step(state, data)
        logits.append(np.asarray(state.gates["gate"]["logits"]))
        counts.append(int(adam_state(state, "gates").count))
    assert counts == [1, 1, 1, 2, 2, 2]
    np.testing.assert_array_equal(logits[0], logits[2])
    assert (logits[2] != logits[3]).any()


def test_gate_gradient_is_of_the_gate_loss_alone_and_weight_gradient_of_the_task_alone():
    """A gate loss that is flat in the outputs leaves the gates where they are; the weights train on."""
    data, state = batch(), new_state(tx=fsg.routed(params=optax.sgd(0.1), gates=optax.sgd(1.0)))
    before = jax.tree.map(np.asarray, state.variables)
    state, _ = train_step("sequential", gate_loss=lambda outputs, batch: 0 * jnp.sum(outputs))(state, data)
    jax.tree.map(np.testing.assert_array_equal, state.gates, before["gates"])
    assert (state.params["first"]["kernel"] != before["params"]["first"]["kernel"]).any()


class TestRoute:
    x = jnp.float32([1.0, -2.0, 3.0])

    def test_forward_is_the_identity_bit_for_bit(self):
        np.testing.assert_array_equal(fsg.route(self.x, 0.3), self.x)

    @pytest.mark.parametrize("mask", [0.0, 1.0, 0.5, jnp.array([True, False, True]), jnp.array([0.0, 0.5, 1.0])])
    def test_gradient_is_masked(self, mask):
        got = jax.grad(lambda x: jnp.sum(jnp.sin(fsg.route(x, mask))))(self.x)
        np.testing.assert_allclose(got, mask * jnp.cos(self.x), rtol=1e-6)

    def test_equals_the_stop_gradient_formula(self):
        def formula(x, m):
            return m * x + (1 - m) * jax.lax.stop_gradient(x)

        mask = jnp.float32([0.25, 0.5, 1.0])
        got, want = (jax.grad(lambda x, f=f: jnp.sum(f(x, mask) ** 3))(self.x) for f in (fsg.route, formula))
        np.testing.assert_allclose(got, want, rtol=1e-6)

    def test_mask_broadcasts_over_a_batch(self):
        x = jnp.ones((2, 3))
        got = jax.grad(lambda x: jnp.sum(fsg.route(x, jnp.array([[0.0], [1.0]]))))(x)
        np.testing.assert_array_equal(got, [[0, 0, 0], [1, 1, 1]])


@pytest.mark.parametrize(
    ("routing", "kwargs", "message"),
    [
        ("sequental", {}, "sequential"),
        ("sequential", {"gate_every": 0}, "gate_every"),
        ("joint", {"gate_every": 2}, "sequential"),
        ("sequential", {"accumulate": 0}, "accumulate"),
        ("sequential", {"reference_clip": (1.0, None)}, "reference"),
    ],
)
def test_bad_options_are_named(routing, kwargs, message):
    with pytest.raises(ValueError, match=message):
        train_step(routing, **kwargs)


def test_one_optimizer_cannot_route():
    with pytest.raises(ValueError, match=r"fsg\.routed"):
        train_step("sequential")(new_state(tx=optax.sgd(0.1)), batch())


def test_none_with_two_optimizers_warns():
    with pytest.warns(UserWarning, match="joint"):
        train_step("none")(new_state(), batch())


def test_none_has_no_gate_loss():
    with pytest.raises(ValueError, match="gate_loss"):
        train_step("none", gate_loss=fsg.losses.cross_entropy)(new_state(tx=optax.sgd(0.1)), batch())


def test_passes_of_ones_own_are_those_of_sequential():
    data, model = batch(), Mlp(batch_norm=True, dropout=0.5)
    passes = (Pass(("gates",)), Pass(("params",)))
    states, penalty = [], fsg.gate_penalty("l1", 0.1)
    for options in ({"passes": passes}, {}):
        state = new_state(model)
        for _ in range(2):
            state, metrics = train_step("sequential", penalty=penalty, **options)(state, data)
        states.append((state.variables, metrics))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), *states)


def test_gates_may_start_late():
    w, g = W0, G0
    for t in range(4):
        if t % 2 == 0 and t >= 1:
            g -= GATE_RATE * gradients(w, g)[1]
        w -= RATE * gradients(w, g)[0]
    got = run_scalar("sequential", steps=4, gate_every=2, gate_when=lambda step: step >= 1)
    np.testing.assert_allclose(got, (w, g), rtol=1e-5, atol=1e-6)
