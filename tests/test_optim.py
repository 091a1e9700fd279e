"""Labels: every leaf exactly one, or an error that names it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy import batch, new_state, train_step

import fsg_jax as fsg


def test_extra_labels_freeze_and_scale():
    tx = fsg.routed(
        params=optax.sgd(0.1),
        gates=optax.adam(1e-2),
        frozen=optax.set_to_zero(),
        head=optax.sgd(1.0),
        labels={"frozen": "params/first/.*", "head": "params/second/kernel"},
    )
    state = new_state(tx=tx)
    labels = tx.labels(state.trainable)
    assert labels["params"]["first"] == {"bias": "frozen", "kernel": "frozen"}
    assert labels["params"]["second"] == {"bias": "params", "kernel": "head"}
    before = jax.tree.map(np.asarray, state.params)
    state, metrics = train_step("sequential")(state, batch())
    jax.tree.map(np.testing.assert_array_equal, state.params["first"], before["first"])
    assert set(metrics["grad_norm"]) == {"params", "gates", "head"}


def test_agrees_with_optax_partition():
    transforms = {"params": optax.adam(1e-2), "gates": optax.sgd(0.5)}
    tx = fsg.routed(**transforms)
    state = new_state(tx=tx)
    grads = jax.tree.map(jnp.ones_like, state.trainable)
    partition = optax.partition(transforms, tx.labels(state.trainable))
    updates, _ = partition.update(grads, partition.init(state.trainable), state.trainable)
    got, _ = tx.step({"params", "gates"}, grads, state.opt_state, state.trainable)
    jax.tree.map(np.testing.assert_array_equal, got, optax.apply_updates(state.trainable, updates))


def test_clipping_is_inside_a_label():
    tx = fsg.routed(params=optax.clip_by_global_norm(1.0), gates=optax.clip_by_global_norm(1.0))
    trainable = {"params": jnp.zeros(2), "gates": jnp.zeros(2)}
    grads = {"params": jnp.array([3.0, 4.0]), "gates": jnp.array([0.3, 0.4])}
    moved, _ = tx.step({"params", "gates"}, grads, tx.init(trainable), trainable)
    np.testing.assert_allclose(jnp.linalg.norm(moved["params"]), 1.0, rtol=1e-6)
    np.testing.assert_allclose(jnp.linalg.norm(moved["gates"]), 0.5, rtol=1e-6)


@pytest.mark.parametrize(
    ("labels", "transforms", "message"),
    [
        (None, {"params": optax.sgd(1.0)}, "'gates/gate/logits'.*found 'gates'"),
        ({"params": ".*", "gates": "gates/.*"}, {"params": optax.sgd(1.0), "gates": optax.sgd(1.0)}, "more than one"),
        ({"head": "params/third/.*"}, {k: optax.sgd(1.0) for k in ("params", "gates", "head")}, "patterns that match"),
        ({"head": "params/second"}, {k: optax.sgd(1.0) for k in ("params", "gates", "head")}, "patterns that match"),
    ],
)
def test_bad_labels_name_the_leaf(labels, transforms, message):
    with pytest.raises(ValueError, match=message):
        new_state(tx=fsg.routed(labels=labels, **transforms))


def test_labels_without_transformation():
    with pytest.raises(ValueError, match="'head'"):
        fsg.routed(params=optax.sgd(1.0), labels={"head": ".*"})
    with pytest.raises(ValueError, match="at least one"):
        fsg.routed()


def test_a_label_of_gates_and_weights_cannot_be_routed():
    tx = fsg.routed(params=optax.sgd(1.0), both=optax.sgd(1.0), labels={"both": "gates/.*|params/first/.*"})
    with pytest.raises(ValueError, match="both"):
        train_step("sequential")(new_state(tx=tx), batch())


def test_chosen_gate_labels_route_weights_too():
    tx = fsg.routed(
        params=optax.sgd(0.1), gates=optax.sgd(0.1), head=optax.sgd(0.1), labels={"head": "params/second/.*"}
    )
    state, metrics = train_step("sequential", gate_labels=("gates", "head"))(new_state(tx=tx), batch())
    assert set(metrics["grad_norm"]) == {"params", "gates", "head"}
    with pytest.raises(ValueError, match="tail"):
        train_step("sequential", gate_labels=("tail",))(state, batch())
