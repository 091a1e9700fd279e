"""The order of batches, the same on every path; data on the device; batches put there ahead of time."""

import pickle
from itertools import islice

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from cases import fast
from hypothesis import given, settings
from hypothesis import strategies as st

import fsg_jax as fsg
from fsg_jax.data import ImageDataset, make_loader
from fsg_jax.data.batches import BatchOrder, in_order, shuffled
from fsg_jax.data.prefetch import Prefetch
from fsg_jax.data.resident import chunk_rows, make_resident_steps, put_dataset


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.data())
def test_an_epoch_holds_every_row_once(examples, data):
    size, seed = data.draw(st.integers(1, examples)), data.draw(st.integers(0, 2**32 - 1))
    order = shuffled(examples, size, seed, drop_remainder=False)
    first = np.concatenate([order.rows(step) for step in range(order.steps_per_epoch)])
    assert sorted(first) == list(range(examples))
    whole = shuffled(examples, size, seed)
    assert whole.steps_per_epoch * size + whole.dropped_per_epoch == examples
    for step in range(whole.steps_per_epoch):
        np.testing.assert_array_equal(whole.rows(step), order.rows(step))
    copy = pickle.loads(pickle.dumps(whole))
    np.testing.assert_array_equal(copy.rows(3), whole.rows(3))


def test_an_order_of_ones_own():
    order = BatchOrder(lambda epoch: np.arange(4) + 10 * epoch, 4, 2, fingerprint={"kind": "mine"})
    assert [order.rows(step).tolist() for step in range(4)] == [[0, 1], [2, 3], [10, 11], [12, 13]]
    assert order.describe() == {"examples": 4, "batch_size": 2, "drop_remainder": True, "kind": "mine"}


def test_rows_of_a_chunk():
    np.testing.assert_array_equal(chunk_rows(in_order(6, 2), 1, 3), [[2, 3], [4, 5], [0, 1]])
    with pytest.raises(ValueError, match="drop_remainder=True"):
        chunk_rows(in_order(5, 2, drop_remainder=False), 0, 3)


def features(count=24):
    """Images that `toy.Mlp` can take once they are flattened."""
    images = np.random.default_rng(0).integers(0, 256, (count, 2, 2, 1), np.uint8)
    return ImageDataset(images, np.arange(count, dtype=np.int32) % 3, ("a", "b", "c"))


def flatten(key, batch):
    del key
    return {**batch, "image": batch["image"].astype(jnp.float32).reshape(batch["image"].shape[0], -1) / 255}


STEP = fsg.make_train_step(fsg.losses.cross_entropy, "sequential", transform=flatten, jit=False)


def plainly(dataset, seed, steps):
    """Final state and losses of a plain loop over the loader's batches."""
    state, losses, step = toy.new_state(), [], jax.jit(STEP)
    state = state.replace(rng=jax.random.key(seed))
    iterator = iter(make_loader(dataset, 8, seed=seed))
    for batch in islice(iterator, steps):
        state, metrics = step(state, {k: batch[k] for k in ("image", "label")})
        losses.append(float(metrics["loss"]))
    iterator.close()
    return state, losses


@pytest.mark.parametrize("dispatch", fast(["scan", "loop"]))
def test_data_on_the_device_give_the_numbers_of_the_loader(dispatch):
    dataset = features()
    expected, losses = plainly(dataset, 0, 5)
    steps = make_resident_steps(STEP, dispatch)
    state = toy.new_state().replace(rng=jax.random.key(0))
    order, found = shuffled(len(dataset), 8, 0), []
    for start, count in ((0, 2), (2, 3)):
        state, metrics = steps(state, put_dataset(dataset), jnp.asarray(chunk_rows(order, start, count)))
        found += metrics["loss"].tolist()
    np.testing.assert_allclose(found, losses, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), state.trainable, expected.trainable
    )


@pytest.mark.parametrize(
    ("dispatch", "mode"),
    [
        *(("scan", "vmap"), ("loop", "map")),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("scan", "map"), ("loop", "vmap"))),
    ],
)
def test_runs_side_by_side_are_the_runs_alone(dispatch, mode):
    dataset, seeds = features(), (0, 5)
    steps = make_resident_steps(STEP, dispatch, seeds=mode)
    states = [toy.new_state().replace(rng=jax.random.key(seed)) for seed in seeds]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *states)
    rows = np.stack([chunk_rows(shuffled(len(dataset), 8, seed), 0, 4) for seed in seeds])
    stacked, metrics = steps(stacked, put_dataset(dataset), jnp.asarray(rows))
    assert metrics["loss"].shape == (2, 4)
    for i, seed in enumerate(seeds):
        expected, losses = plainly(dataset, seed, 4)
        np.testing.assert_allclose(metrics["loss"][i], losses, rtol=1e-5)
        pairs = zip(jax.tree.leaves(stacked.trainable), jax.tree.leaves(expected.trainable), strict=True)
        for leaf, other in pairs:
            np.testing.assert_allclose(leaf[i], other, rtol=1e-4, atol=1e-6)


def test_unknown_modes_are_refused():
    with pytest.raises(ValueError, match="dispatch: expected one of 'loop', 'scan', found 'scna'"):
        make_resident_steps(STEP, "scna")
    with pytest.raises(ValueError, match="seeds: expected one of 'vmap', 'map', found 'pmap'"):
        make_resident_steps(STEP, seeds="pmap")


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 7), st.integers(1, 4))
def test_prefetched_batches_and_positions_are_those_of_the_loader(stop, size):
    loader = make_loader(features(), 8, seed=1, num_epochs=3)
    expected = [batch["index"].tolist() for batch in loader]
    first = Prefetch(iter(loader), jax.device_put, size)
    assert [batch["index"].tolist() for batch in islice(first, stop)] == expected[:stop]
    state = first.get_state()
    assert state["step"] == stop
    first.close()
    assert next(first)["index"].tolist() == expected[stop]
    first.close()
    second = Prefetch(iter(loader), jax.device_put, size)
    next(second)
    second.set_state(state)
    assert [batch["index"].tolist() for batch in second] == expected[stop:]
    second.close()


def test_prefetch_holds_a_batch_at_least():
    with pytest.raises(ValueError, match="size: expected an integer >= 1, found 0"):
        Prefetch(iter(make_loader(features(), 8, seed=1)), jax.device_put, 0)
