"""Losses and metrics of every shape, masks and weights: one mean, however the batch is cut."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import new_state, two_optimizers

import fsg_jax as fsg
from fsg_jax.routing.means import means_of

X = jnp.sin(jnp.arange(32.0)).reshape(8, 4)
WEIGHTS = jnp.float32([1, 0, 0, 0, 2, 1, 0, 1])
DATA = {"image": X, "target": X[:, 1] * 2, "weight": WEIGHTS}


def column(outputs, batch):
    return (outputs[:, :1] - batch["target"][:, None]) ** 2


def flat(outputs, batch):
    return column(outputs, batch)[:, 0]


def pixels(outputs, batch):
    return column(outputs, batch)[:, :, None] * jnp.float32([[[0.5, 1.5], [1, 1]]]).reshape(1, 1, 4)


def scalar(outputs, batch):
    return jnp.mean(column(outputs, batch))


def masked(outputs, batch):
    """NaN where there is no weight, as for a missing label."""
    return jnp.where(batch["weight"] > 0, flat(outputs, batch), jnp.nan), batch["weight"]


def stepped(loss, data=DATA, evaluate=True, **options):
    state = new_state()
    start = state
    before = fsg.make_eval_step(loss, jit=False)(start, data)["loss"] if evaluate else None
    state, metrics = fsg.make_train_step(loss, metrics={"same": loss}, **options)(state, data)
    return jax.tree.map(np.asarray, state.trainable), float(metrics["loss"]), float(metrics["same"]), before


@pytest.mark.parametrize("loss", [column, pixels, scalar])
def test_every_shape_has_the_same_mean_in_training_and_evaluation(loss):
    expected, got = stepped(flat), stepped(loss)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, expected)


@pytest.mark.parametrize(("routing", "accumulate"), [("joint", 8), ("sequential", 2)])
def test_a_masked_mean_does_not_depend_on_how_the_batch_is_cut(routing, accumulate):
    """Also where a part has no weight at all."""
    expected = stepped(masked, routing=routing, evaluate=False)
    got = stepped(masked, routing=routing, accumulate=accumulate, evaluate=False)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got[:3], expected[:3])


def test_the_weights_of_a_cut_batch_cost_no_forward_pass():
    """The loop that adds them up has no matrix product of its own."""
    products = [
        fsg.make_train_step(masked, "joint", accumulate=n).lower(new_state(), DATA).compile().as_text().count(" dot(")
        for n in (1, 2)
    ]
    assert products[0] == products[1] > 0


def test_valid_multiplies_the_weights():
    valid = {**DATA, "valid": WEIGHTS > 0}
    ones = {k: v[WEIGHTS > 0] for k, v in DATA.items()}
    for got, want in zip(stepped(flat, valid), stepped(flat, ones), strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, want)
    weighted = stepped(masked, {**DATA, "valid": jnp.float32([1, 1, 1, 1, 0.5, 1, 1, 0])})
    other = stepped(masked, {**DATA, "weight": jnp.float32([1, 0, 0, 0, 1, 1, 0, 0])})
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), weighted, other)


def test_evaluation_over_batches_adds_sums_and_weights():
    state, step = new_state(), fsg.make_eval_step(masked, metrics={"flat": flat})
    whole = fsg.evaluate(step, state, [DATA])
    parts = fsg.evaluate(step, state, [{k: v[i : i + 2] for k, v in DATA.items()} for i in range(0, 8, 2)])
    assert parts.pop("count") == whole.pop("count") == 8
    for name in ("loss", "flat"):
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-6)


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        (lambda o, b: jnp.ones(3), {}, r"loss .*\(8, \.\.\.\).*\(3,\)"),
        (scalar, {"accumulate": 2}, r"loss \(scalar\): .*found \(\)"),
        (lambda o, b: (flat(o, b), jnp.ones(3)), {}, r"loss .*: expected weights of shape \(8,\)"),
    ],
)
def test_other_shapes_are_errors_that_name_function_and_shape(loss, options, message):
    with pytest.raises(ValueError, match=message):
        fsg.make_train_step(loss, **options)(new_state(), DATA)


def test_a_scalar_cannot_be_masked():
    masks = {**DATA, "valid": WEIGHTS > 0}
    with pytest.raises(ValueError, match=r"loss \(scalar\).*\(8, \.\.\.\)"):
        fsg.make_eval_step(scalar)(new_state(), masks)
    with pytest.raises(ValueError, match=r"metric.*found \(\)"):
        fsg.make_train_step(flat, metrics={"metric": scalar})(new_state(), masks)
    with pytest.raises(ValueError, match=r"valid.*\(8,\).*\(7,\)"):
        fsg.make_eval_step(flat)(new_state(), {**DATA, "valid": jnp.ones(7)})


def test_every_example_with_every_other_is_warned_of():
    with pytest.warns(UserWarning, match=r"loss .*: found shape \(8, 8\)"):
        means_of("loss", lambda o, b: o - b, jnp.ones((8, 1)), jnp.ones((1, 8)), 8)[0]


def test_nothing_that_counts_gives_no_gradient():
    still = {**DATA, "weight": jnp.zeros(8)}
    before = jax.tree.map(np.asarray, new_state().trainable)
    got, loss, *_ = stepped(masked, still, evaluate=False)
    assert loss == 0
    jax.tree.map(np.testing.assert_array_equal, got["params"], before["params"])


LOGITS = jnp.float32([[2, 0, 1], [0, 1, 0], [1, 1, 3], [0, 0, 0]])


class TestLabels:
    def test_an_ignored_label_has_no_weight(self):
        labels = jnp.array([0, -100, 2, 1])
        loss = fsg.losses.make_cross_entropy(ignore=-100)
        kept = {"label": labels[jnp.array([0, 2, 3])]}
        want = np.mean(fsg.losses.cross_entropy(LOGITS[jnp.array([0, 2, 3])], kept))
        mean = means_of("loss", loss, LOGITS, {"label": labels}, 4)[0]
        np.testing.assert_allclose(mean.value(), want, rtol=1e-6)
        gradient = jax.grad(lambda x: means_of("loss", loss, x, {"label": labels}, 4)[0].value())(LOGITS)
        np.testing.assert_array_equal(gradient[1], 0)
        accuracy = means_of("accuracy", fsg.metrics.make_accuracy(ignore=-100), LOGITS, {"label": labels}, 4)[0]
        np.testing.assert_allclose(accuracy.value(), 2 / 3)

    @pytest.mark.parametrize("bad", [-1, -100, 3])
    def test_others_outside_give_nan_and_are_counted(self, bad):
        data = {"label": jnp.array([0, bad, 2, 1])}
        np.testing.assert_array_equal(jnp.isnan(fsg.losses.cross_entropy(LOGITS, data)), [False, True, False, False])
        np.testing.assert_array_equal(fsg.metrics.make_invalid_labels()(LOGITS, data), [0, 1, 0, 0])
        smoothed = fsg.losses.make_cross_entropy(0.1, ignore=-7)(LOGITS, data)[0]
        assert jnp.isnan(smoothed[1])

    def test_labels_may_be_per_pixel_and_of_another_key(self):
        logits = jnp.stack([LOGITS, LOGITS[::-1]]).reshape(2, 2, 2, 3)
        labels = jnp.array([0, 1, -1, 2, 1, 0, 0, -1]).reshape(2, 2, 2)
        values, weights = fsg.losses.make_cross_entropy(ignore=-1, key="site")(logits, {"site": labels})
        assert values.shape == weights.shape == (2, 2, 2)
        want = -np.asarray(jax.nn.log_softmax(logits))[0, 0, 1, 1]
        np.testing.assert_allclose(values[0, 0, 1], want, rtol=1e-6)
        assert float(weights.sum()) == 6


class Pixelwise(nn.Module):
    """A class of every pixel."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(fsg.Gate(name="gate")(x))


def test_segmentation_trains():
    data = {"image": jnp.sin(jnp.arange(96.0)).reshape(2, 4, 4, 3), "label": jnp.arange(32).reshape(2, 4, 4) % 4 - 1}
    state = fsg.init_state(Pixelwise(), two_optimizers(), jax.random.key(0), data["image"])
    loss, accuracy = fsg.losses.make_cross_entropy(ignore=-1), fsg.metrics.make_accuracy(ignore=-1)
    step, losses = fsg.make_train_step(loss, metrics={"accuracy": accuracy}), []
    for _ in range(20):
        state, metrics = step(state, data)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.98 * losses[0]
    evaluated = fsg.make_eval_step(loss, metrics={"accuracy": accuracy})(state, data)
    counted = np.asarray(data["label"]) >= 0
    right = np.asarray(jnp.argmax(state.model.apply(state.variables, data["image"]), -1)) == data["label"]
    np.testing.assert_allclose(evaluated["accuracy"], right[counted].mean(), rtol=1e-6)
    assert fsg.gate_values(state)["gate"].shape == (3,)
