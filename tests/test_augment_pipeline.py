"""Composition, conversion, normalisation, and what all transforms have in common."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import fast

from fsg_jax import augment

TRANSFORMS = {
    "to_float": augment.to_float(),
    "normalize": augment.normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)),
    "random_crop": augment.random_crop(2, "reflect"),
    "random_flip": augment.random_flip(),
    "cutout": augment.cutout(4),
    "mixup": augment.mixup(1.0, 5),
    "cutmix": augment.cutmix(1.0, 5),
    "mixup_or_cutmix": augment.mixup_or_cutmix(1.0, 1.0, 5),
    "trivial_augment": augment.trivial_augment(),
}
RANDOM = [name for name in TRANSFORMS if name not in ("to_float", "normalize")]


def make_batch(dtype=np.float32, count=10):
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (count, 8, 10, 3))
    images = images.astype(np.uint8) if dtype == np.uint8 else (images / 255).astype(dtype)
    return {"image": images, "label": np.arange(count) % 5, "index": np.arange(count)}


SLOW = ("trivial_augment", "mixup_or_cutmix")  # one operation after another


@pytest.mark.parametrize("name", fast(TRANSFORMS, lambda name: name not in SLOW))
def test_jit_changes_nothing_and_the_input_is_left_alone(key, name):
    batch, before = make_batch(), make_batch()
    eager, jitted = TRANSFORMS[name](key, batch), jax.jit(TRANSFORMS[name])(key, batch)
    assert eager.keys() == jitted.keys() == batch.keys()
    for entry in batch:
        np.testing.assert_allclose(eager[entry], jitted[entry], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(eager["index"], batch["index"])
    assert eager["image"].dtype == batch["image"].dtype
    for entry, values in before.items():
        np.testing.assert_array_equal(batch[entry], values)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in RANDOM])
def test_the_key_decides(name):
    batch, transform = make_batch(), jax.jit(TRANSFORMS[name])
    draws = [np.asarray(transform(jax.random.key(seed), batch)["image"]) for seed in (3, 3, 4)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])


def test_a_transform_at_the_end_leaves_earlier_draws(key):
    crop, flip = augment.random_crop(2), augment.random_flip()
    batch = make_batch(np.uint8)
    short = augment.chain(crop, flip)(key, batch)
    long = augment.chain(crop, flip, augment.to_float())(key, batch)
    np.testing.assert_array_equal(short["image"].astype(jnp.float32) / 255, long["image"])
    by_hand = crop(jax.random.fold_in(key, 0), batch)
    by_hand = flip(jax.random.fold_in(key, 1), by_hand)
    np.testing.assert_array_equal(short["image"], by_hand["image"])


def test_equal_transforms_of_a_chain_draw_independently(key):
    flip = augment.random_flip()
    batch = {"image": np.random.default_rng(0).random((64, 2, 3, 1), np.float32)}
    twice = np.asarray(augment.chain(flip, flip)(key, batch)["image"])
    restored = (twice == batch["image"]).all((1, 2, 3)).sum()
    assert 10 < restored < 54


@pytest.mark.slow
def test_the_usual_recipe_runs_in_one_jitted_function(key):
    recipe = augment.chain(
        augment.random_crop(4),
        augment.random_flip(),
        augment.trivial_augment(),
        augment.normalize((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        augment.cutout(4),
        augment.mixup_or_cutmix(0.8, 1.0, 5),
    )
    out = jax.jit(recipe)(key, make_batch(np.uint8))
    assert out["image"].shape == (10, 8, 10, 3)
    assert out["image"].dtype == jnp.float32
    assert np.abs(out["image"]).max() <= 2 + 1e-6
    np.testing.assert_allclose(out["label"].sum(1), 1, rtol=1e-6)


def test_to_float(key):
    out = augment.to_float()(key, {"image": np.array([0, 51, 255], np.uint8).reshape(1, 1, 3, 1)})["image"]
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out.ravel(), [0, 0.2, 1], rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_normalize(key, dtype):
    batch, mean, std = make_batch(dtype), np.float32([0.5, 0.4, 0.3]), np.float32([0.2, 0.3, 0.4])
    real = batch["image"] / np.float32(255) if dtype == np.uint8 else batch["image"]
    out = augment.normalize(mean.tolist(), std.tolist())(key, batch)["image"]
    np.testing.assert_allclose(out, (real - mean) / std, rtol=1e-5, atol=1e-6)


def test_normalize_by_one_number_keeps_bfloat16(key):
    out = augment.normalize(0.5, 0.25)(key, {"image": jnp.full((2, 3, 3, 4), 0.75, jnp.bfloat16)})["image"]
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out.astype(jnp.float32), 1)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.0), (float("nan"), 1.0), ([], 1.0), ([0.0], [-1.0])])
def test_normalize_checks_its_arguments(mean, std):
    with pytest.raises(ValueError, match=r"normalize: expected"):
        augment.normalize(mean, std)


def test_normalize_needs_a_value_per_channel(key):
    with pytest.raises(ValueError, match="mean: expected 1 value or 3, one a channel, found 2"):
        augment.normalize((0.5, 0.5), 1.0)(key, make_batch())


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        ({"label": np.zeros(2, int)}, ValueError, r"batch: expected the key 'image', found \['label'\]"),
        (
            {"image": np.zeros((2, 3, 3), np.float32)},
            ValueError,
            r"image: expected shape .* found \(2, 3, 3\)",
        ),
        ({"image": np.zeros((2, 3, 3, 1), np.int32)}, TypeError, "image: expected uint8 .* found int32"),
    ],
)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_bad_images_are_named(key, name, batch, error, message):
    with pytest.raises(error, match=message):
        TRANSFORMS[name](key, batch)


def test_chain_takes_only_callables():
    with pytest.raises(Exception, match=r"chain|transforms"):
        augment.chain(augment.to_float(), 3)
