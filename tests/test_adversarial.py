"""FGSM and PGD against closed forms, the ball, a network with attention, and gradients that vanish."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reduced

from fsg_jax.explain.adversarial import fgsm, largest_gradient, loss_gradient, pgd, project, random_start
from fsg_jax.training.losses import cross_entropy

SHAPE = (4, 5, 3)
WEIGHTS = jnp.asarray(np.random.default_rng(1).normal(size=(*SHAPE, 6)), jnp.float32)


def images(count=3, shape=SHAPE):
    """Some values are 0 and 1, where an attack meets the end of the range."""
    values = np.random.default_rng(0).uniform(-0.2, 1.2, (count, *shape)).clip(0, 1)
    return jnp.asarray(values, jnp.float32)


def linear(x):
    return jnp.einsum("bhwc,hwc->b", x, WEIGHTS[..., 0])


def curved(x):
    logits = jnp.tanh(3 * jnp.einsum("bhwc,hwck->bk", x - 0.5, WEIGHTS))
    return cross_entropy(logits, {"label": jnp.arange(len(x)) % 6})


@pytest.mark.parametrize("epsilon", [0.0, 0.5 / 255, 8 / 255, 2.0])
def test_fgsm_of_a_linear_model(epsilon):
    x = images()
    wanted = np.clip(np.asarray(x) + epsilon * np.sign(WEIGHTS[..., 0])[None], 0, 1)
    np.testing.assert_allclose(fgsm(linear, x, epsilon), wanted, atol=1e-7)


def test_pgd_of_a_linear_model_is_fgsm():
    """Ten quarters of the radius reach the corner from every start."""
    x = images()
    found = pgd(linear, x, 8 / 255, step=2 / 255, steps=10, key=jax.random.key(0))
    np.testing.assert_allclose(found, fgsm(linear, x, 8 / 255), atol=1e-7)


@pytest.mark.parametrize("epsilon", [0.0, 1 / 255, 0.3, 2.0])
def test_examples_stay_in_the_ball_and_in_the_range(epsilon):
    x = images()
    for steps in (1, 4):
        found = pgd(curved, x, epsilon, step=0.7 * epsilon, steps=steps, key=jax.random.key(1))
        for adversarial in (found, fgsm(curved, x, epsilon)):
            assert (adversarial.dtype, adversarial.shape) == (x.dtype, x.shape)
            assert float(jnp.abs(adversarial - x).max()) <= epsilon + 1e-7
            assert 0 <= float(adversarial.min()) <= float(adversarial.max()) <= 1
    if epsilon:
        assert float(jnp.abs(found - x).max()) > 0.5 * min(epsilon, 0.5)


def test_the_start_is_random_and_uniform_in_the_ball():
    x = jnp.full((50, 8, 8, 3), 0.5)
    still = jax.jit(lambda key: pgd(lambda x: 0 * x.sum((1, 2, 3)), x, 0.1, step=0.02, steps=3, key=key))
    moved = (still(jax.random.key(0)) - x) / 0.1
    assert float(moved.std()) == pytest.approx(3**-0.5, abs=0.01)
    assert float(jnp.abs(moved).max()) > 0.99
    assert not jnp.allclose(moved[0], moved[1], atol=0.1)
    assert not jnp.allclose(still(jax.random.key(1)), still(jax.random.key(0)), atol=0.01)


EPSILON = 4 / 255


@cache
def network():
    """Losses of the reduced network with attention, for images in [0, 1], and its attacks, compiled once."""
    model, variables = reduced.reduced("vgg_att"), reduced.variables("vgg_att")

    def losses(x):
        logits = model.apply(variables, (x - 0.5) / 0.25)
        return cross_entropy(logits, {"label": jnp.full(len(x), 2)})

    def attacks(x, keys):
        return {
            "gradient": loss_gradient(losses, x),
            "fgsm": fgsm(losses, x, EPSILON),
            "pgd": pgd(losses, x, EPSILON, step=EPSILON / 4, steps=10, key=keys),
        }

    return jax.jit(losses), jax.jit(attacks)


def network_images():
    return images(4, (*reduced.REDUCED["vgg_att"].size, 3))


@pytest.mark.slow
def test_pgd_is_at_least_as_strong_as_fgsm_on_a_network():
    x, (losses, attacks) = network_images(), network()
    found = attacks(x, jax.random.split(jax.random.key(0), 4))
    clean, one, many = (np.asarray(losses(x)) for x in (x, found["fgsm"], found["pgd"]))
    assert (one > clean).all()
    assert (many >= one - 1e-3 * np.abs(one)).all()
    assert many.mean() > one.mean()


def test_an_example_does_not_depend_on_its_batch():
    x, (_, attacks) = network_images(), network()
    keys, rows = jax.random.split(jax.random.key(0), 4), jnp.array([2, 0, 3, 2])
    whole, part = attacks(x, keys), attacks(x[rows], keys[rows])
    np.testing.assert_allclose(part["gradient"], whole["gradient"][rows], rtol=1e-3, atol=1e-6)
    for name in ("fgsm", "pgd"):
        equal = np.isclose(whole[name][rows], part[name], atol=1e-6)
        assert equal.mean() > 0.999  # a sign may turn where the gradient is all but 0


def test_one_key_is_a_key_a_row_whatever_the_number_of_rows():
    key, x = jax.random.key(5), images(4)
    np.testing.assert_allclose(random_start(x, 0.2, key)[:2], random_start(x[:2], 0.2, key), atol=1e-6)


def one_hot(x):
    """The loss of a network that reads its image through a softmax of enormous scores."""
    scores = 1e6 * jnp.einsum("bhwc,c->bhw", x, jnp.array([1.0, 0.5, -0.7]))
    maps = jax.nn.softmax(scores, axis=(1, 2))
    logits = jnp.einsum("bhw,hwk->bk", maps, WEIGHTS[:, :, 0])
    return cross_entropy(logits, {"label": jnp.arange(len(x))})


def test_a_gradient_that_vanishes_is_seen():
    x = images()
    assert np.asarray(largest_gradient(one_hot, x)).tolist() == [0, 0, 0]
    np.testing.assert_array_equal(fgsm(one_hot, x, 8 / 255), x)
    assert float(jnp.abs(one_hot(images(4)[1:]) - one_hot(x)).max()) > 0.1  # though the loss depends on the image
    np.testing.assert_allclose(largest_gradient(linear, x), jnp.abs(WEIGHTS[..., 0]).max(), rtol=1e-6)


def test_everything_is_traced_at_once():
    x, key = images(), jax.random.key(2)
    traced = jax.jit(lambda x, epsilon, key: pgd(curved, x, epsilon, step=epsilon / 4, steps=3, key=key))
    wanted = pgd(curved, x, 0.1, step=0.025, steps=3, key=key)
    np.testing.assert_allclose(traced(x, 0.1, key), wanted, atol=1e-6)
    np.testing.assert_allclose(jax.jit(partial(fgsm, curved))(x, 0.1), fgsm(curved, x, 0.1), atol=1e-6)
    assert float(jnp.abs(project(x + 1, x, 0.1) - jnp.minimum(x + 0.1, 1)).max()) == 0


def test_what_is_refused():
    x, key = images(), jax.random.key(0)
    for call, message in (
        (lambda: fgsm(lambda x: curved(x).mean(), x, 0.1), r"loss_fn: expected losses of shape \(3,\), found \(\)"),
        (lambda: fgsm(curved, 255 * x, 0.1), r"images: expected values in \[0, 1\], before normalisation"),
        (lambda: fgsm(curved, x - 0.1, 0.1), r"images: expected values in \[0, 1\]"),
        (lambda: fgsm(curved, x, -0.1), "epsilon: expected a finite number >= 0"),
        (lambda: fgsm(curved, x, float("nan")), "epsilon: expected a finite number >= 0"),
        (lambda: pgd(curved, x, 0.1, step=-1.0, steps=1, key=key), "step: expected a finite number >= 0"),
        (lambda: pgd(curved, x, 0.1, step=0.1, steps=0, key=key), "steps: expected an integer >= 1"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
