"""Mixup and CutMix against their formulas in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsg_jax.augment import cutmix, mixup, mixup_or_cutmix

CLASSES = 7


def make_batch(count=CLASSES, height=6, width=8, dtype=np.float32):
    """Image i is uniform of level i + 1, label i: the share of every image can be read off the mixture."""
    levels = np.arange(1, count + 1).reshape(-1, 1, 1, 1)
    images = np.broadcast_to(levels, (count, height, width, 3)).astype(dtype)
    return {"image": images, "label": np.arange(count), "name": np.arange(count) * 10}


def shares(batch, out):
    """Share of its own label and the partner of every row (itself where the share is 1)."""
    labels = np.asarray(out["label"])
    own = labels[np.arange(len(labels)), batch["label"]]
    others = labels.copy()
    others[np.arange(len(labels)), batch["label"]] = 0
    return own, np.where(own < 1, others.argmax(1), batch["label"])


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), alpha=st.sampled_from([0.1, 1.0, 8.0]))
def test_mixup_formula(seed, alpha):
    batch = make_batch()
    out = mixup(alpha, CLASSES)(jax.random.key(seed), batch)
    own, partner = shares(batch, out)
    assert sorted(partner) == list(range(CLASSES))
    mixed = own < 1
    np.testing.assert_allclose(own[mixed], own.min(), atol=1e-6)
    ratio = own.reshape(-1, 1, 1, 1)
    expected = ratio * batch["image"] + (1 - ratio) * batch["image"][partner]
    np.testing.assert_allclose(out["image"], expected, rtol=1e-5)
    np.testing.assert_allclose(out["label"].sum(1), 1, rtol=1e-6)
    np.testing.assert_array_equal(out["name"], batch["name"])


CUTMIX = cutmix(1.0, CLASSES)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.sampled_from([(1, 9), (9, 2), (6, 8), (5, 5)]))
def test_cutmix_labels_are_the_exact_area_of_one_box(seed, size):
    batch = make_batch(height=size[0], width=size[1])
    out = CUTMIX(jax.random.key(seed), batch)
    images, (own, partner) = np.asarray(out["image"]), shares(batch, out)
    pasted = (images != batch["image"]).all(-1)
    for row, mask in enumerate(pasted):
        np.testing.assert_allclose(own[row], 1 - mask.mean(), atol=1e-6)
        assert mask.sum() == mask.any(1).sum() * mask.any(0).sum()
        np.testing.assert_array_equal(images[row][mask], partner[row] + 1)
    boxes = pasted[pasted.any((1, 2))]
    assert (boxes == boxes[:1]).all()
    np.testing.assert_allclose(out["label"].sum(1), 1, rtol=1e-6)


def test_cutmix_box_has_the_drawn_area(key):
    """For λ uniform and sides s = sqrt(1 - λ), clipping at a uniform centre leaves E[(s - s²/4)²] = 0.321."""
    batch, transform = make_batch(2, 64, 64), cutmix(1.0, 2)
    keys = jax.random.split(key, 800)
    own = jax.jit(jax.vmap(lambda key: transform(key, batch)["label"][0, 0]))(keys)
    pasted = 1 - np.asarray(own)[np.asarray(own) < 1]
    assert 300 < pasted.size < 500
    np.testing.assert_allclose(pasted.mean(), 0.321, atol=0.04)


def test_cutmix_keeps_uint8(key):
    out = cutmix(1.0, CLASSES)(key, make_batch(dtype=np.uint8))
    assert out["image"].dtype == jnp.uint8


def test_mixup_keeps_bfloat16(key):
    batch = {**make_batch(), "image": jnp.ones((CLASSES, 4, 4, 3), jnp.bfloat16)}
    assert mixup(1.0, CLASSES)(key, batch)["image"].dtype == jnp.bfloat16


def test_probabilities_are_mixed_again(key):
    batch = make_batch()
    out = mixup(1.0, CLASSES)(key, cutmix(1.0, CLASSES)(key, batch))
    np.testing.assert_allclose(out["label"].sum(1), 1, rtol=1e-6)
    assert (np.asarray(out["label"]) >= 0).all()


@pytest.mark.parametrize("factory", [mixup, cutmix])
def test_padding_rows_are_no_partners(factory):
    batch = {**make_batch(), "valid": np.arange(CLASSES) < 4}
    transform = jax.jit(factory(1.0, CLASSES))
    mixed = 0
    for seed in range(8):
        own, partner = shares(batch, transform(jax.random.key(seed), batch))
        assert (partner[:4] < 4).all()
        mixed += (own[:4] < 1).sum()
    assert mixed > 5


@pytest.mark.parametrize(
    ("probability", "least", "most"),
    [(0.25, 3, 17), *(pytest.param(p, 40 * p, 40 * p, marks=pytest.mark.slow) for p in (0.0, 1.0))],
)
def test_choice_between_mixup_and_cutmix(probability, least, most):
    batch = make_batch()
    transform = jax.jit(mixup_or_cutmix(8.0, 1.0, CLASSES, cutmix_probability=probability))
    images = [np.asarray(transform(jax.random.key(seed), batch)["image"]) for seed in range(40)]
    assert least <= sum((levels == np.round(levels)).all() for levels in images) <= most


def test_mixup_refuses_uint8(key):
    with pytest.raises(TypeError, match=r"mixup: expected floating-point images, found uint8"):
        mixup(1.0, CLASSES)(key, make_batch(dtype=np.uint8))


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (
            np.zeros((CLASSES, CLASSES + 1), np.float32),
            r"probabilities \(batch, 7\), found float32 of shape \(7, 8\)",
        ),
        (np.zeros(CLASSES, np.float32), r"found float32 of shape \(7,\)"),
    ],
)
def test_labels_must_fit(key, label, message):
    with pytest.raises(ValueError, match=message):
        mixup(1.0, CLASSES)(key, {**make_batch(), "label": label})


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (lambda: mixup(0.0, 3), "alpha"),
        (lambda: cutmix(float("nan"), 3), "alpha"),
        (lambda: mixup(1.0, 0), "num_classes"),
        (lambda: mixup_or_cutmix(1.0, -1.0, 3), "cutmix_alpha"),
        (lambda: mixup_or_cutmix(1.0, 1.0, 3, cutmix_probability=2.0), "cutmix_probability"),
    ],
)
def test_arguments_are_checked_early(factory, message):
    with pytest.raises(ValueError, match=message):
        factory()


def test_missing_label_is_named(key):
    with pytest.raises(ValueError, match=r"batch: expected the key 'label', found \['image'\]"):
        mixup(1.0, 3)(key, {"image": np.zeros((2, 3, 3, 1), np.float32)})
