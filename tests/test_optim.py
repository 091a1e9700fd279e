"""Labels: every leaf exactly one, or an error that names it; and the optimizers that they are given."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState as FlaxState
from toy import Mlp, batch, new_state, train_step

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


def sgd():
    return fsg.routed(params=optax.sgd(0.01), gates=optax.adam(1e-2))


def scheduled(rate):
    return fsg.routed(
        params=optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.adamw(optax.warmup_cosine_decay_schedule(0.0, rate, 10, 100), mask=fsg.is_weight),
        ),
        gates=optax.inject_hyperparams(optax.adam)(learning_rate=1e-2),
    )


def test_transformations_written_out_anew_are_equal_and_compile_once():
    assert sgd() == sgd()
    assert hash(sgd()) == hash(sgd())
    assert sgd() != fsg.routed(params=optax.sgd(0.02), gates=optax.adam(1e-2))
    assert sgd() != fsg.routed(params=optax.sgd(0.01), gates=optax.adam(1e-2), labels={"gates": "gates/.*"})
    assert fsg.routed(params=optax.sgd(lambda t: 0.1)) != fsg.routed(params=optax.sgd(lambda t: 0.2))
    step = fsg.make_train_step(fsg.losses.cross_entropy)
    for seed in range(2):
        step(fsg.init_state(Mlp(), scheduled(0.1), jax.random.key(seed), batch()["image"]), batch())
    assert step._cache_size() == 1
    assert scheduled(0.1) != scheduled(0.2)


OPTIMIZERS = ("adabelief", "adadelta", "adagrad", "adam", "adamw", "amsgrad", "lamb", "lion", "radam", "rmsprop", "sgd")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_differ_by_their_rates_alone(name):
    make = getattr(optax, name)
    assert fsg.routed(params=make(1e-2)) == fsg.routed(params=make(1e-2))
    assert fsg.routed(params=make(1e-2)) != fsg.routed(params=make(1e-3))


CONTRIB = {
    "prodigy": lambda: optax.contrib.prodigy(),
    "dog": lambda: optax.contrib.dog(),
    "sam": lambda: optax.contrib.sam(optax.sgd(0.01), optax.sgd(0.05)),
    "plateau": lambda: optax.chain(optax.sgd(0.01), optax.contrib.reduce_on_plateau(patience=1, rtol=1.0)),
}


@pytest.mark.parametrize("name", CONTRIB)
def test_optimizers_that_keep_leaves_or_take_the_loss_work(name):
    state = new_state(tx=fsg.routed(params=CONTRIB[name](), gates=optax.adam(1e-2)))
    before = jax.tree.map(np.asarray, state.params)
    for _ in range(4):
        state, _ = train_step("sequential")(state, batch())
    assert not jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), state.params, before))
    if name == "plateau":
        assert optax.tree.get(state.opt_state.inner_states["params"], "scale") < 1


@pytest.mark.parametrize(
    ("tx", "found"),
    [
        (optax.lookahead(optax.sgd(0.1), 5, 0.5), "fast"),
        (optax.lbfgs(), "value_fn"),
        (optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.1), opaque_mode=True), "grad_fn"),
    ],
)
def test_optimizers_that_cannot_work_say_so(tx, found):
    with pytest.raises(ValueError, match=f"label 'params'.*value=loss.*{found}"):
        new_state(tx=fsg.routed(params=tx, gates=optax.adam(1e-2)))


def test_routed_is_an_optax_transformation():
    """In a chain and in Flax's own state, where it moves all labels at once."""
    tx = sgd()
    variables = jax.tree.map(jnp.copy, new_state().variables)
    grads = jax.tree.map(jnp.ones_like, variables)
    expected, _ = tx.step({"params", "gates"}, grads, tx.init(variables), variables)
    flax_state = FlaxState.create(apply_fn=Mlp().apply, params=variables, tx=tx).apply_gradients(grads=grads)
    jax.tree.map(np.testing.assert_array_equal, flax_state.params, expected)
    for chained in (optax.chain(optax.scale(1.0), tx), optax.chain(optax.scale(1.0), tx.as_optax())):
        updates, _ = chained.update(grads, chained.init(variables), variables)
        jax.tree.map(np.testing.assert_array_equal, optax.apply_updates(variables, updates), expected)
    with pytest.raises(ValueError, match=r"fsg\.routed"):
        train_step("sequential")(new_state(tx=optax.chain(optax.clip(1.0), tx)), batch())


def test_a_label_without_a_leaf_is_named():
    with pytest.raises(ValueError, match=r"labels.*\['gates', 'params'\].*\['head'\]"):
        new_state(tx=fsg.routed(params=optax.sgd(0.1), gates=optax.sgd(0.1), head=optax.sgd(0.1)))


@pytest.mark.parametrize("frozen", [None, optax.set_to_zero()])
def test_a_frozen_label_is_not_differentiated(frozen):
    tx = fsg.routed(params=optax.sgd(0.1), gates=optax.adam(1e-2), first=frozen, labels={"first": "params/first/.*"})
    state = new_state(tx=tx)
    before = jax.tree.map(np.asarray, state.params["first"])
    jaxpr = jax.make_jaxpr(fsg.make_train_step(fsg.losses.cross_entropy, jit=False))(state, batch())
    # Forward twice; back through the second layer to the gates, and to its own weights.
    assert str(jaxpr).count("dot_general") <= 2 * 2 + 1 + 1 + 1
    state, metrics = train_step("sequential")(state, batch())
    jax.tree.map(np.testing.assert_array_equal, state.params["first"], before)
    assert set(metrics["grad_norm"]) == {"params", "gates"}


def test_frozen_gates_take_one_pass():
    frozen = new_state(tx=fsg.routed(params=optax.sgd(0.1), gates=None))
    plain = fsg.init_state(Mlp(gate=None), optax.sgd(0.1), jax.random.key(0), batch()["image"])
    counts = [
        str(jax.make_jaxpr(fsg.make_train_step(fsg.losses.cross_entropy, routing, jit=False))(s, batch())).count("dot")
        for s, routing in ((frozen, "sequential"), (plain, "none"))
    ]
    assert counts[0] == counts[1]
