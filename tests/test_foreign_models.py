"""Models of other people: what cannot be right is an error that says what is needed; what can be, works."""

import functools

import flax.linen as nn
import foreign
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import fast
from foreign import FOREIGN, TX, batch
from reduced import REDUCED, by_family, reduced
from reduced import inputs as images_of

import fsg_jax as fsg

X = jnp.ones((2, 4))


def layout(state):
    """Structure, shapes, dtypes, weak types and shardings of a state."""
    leaves, structure = jax.tree.flatten(state)
    return structure, [(x.shape, x.dtype, x.aval.weak_type, x.sharding) for x in leaves]


def avals(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


@pytest.mark.parametrize("name", FOREIGN)
def test_a_step_keeps_the_layout_of_the_state(name):
    """Structure, shapes, dtypes and weak types, so that one program serves all steps; nothing is compiled."""
    case = FOREIGN[name]
    state = jax.eval_shape(lambda: foreign.state(case))
    step = fsg.make_train_step(fsg.losses.squared_error, inputs=case.inputs, jit=False)
    after, _ = jax.eval_shape(step, state, batch())
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert avals(after) == avals(state)


RUN = ["sown", "stacked", "function"]


@pytest.mark.parametrize("name", fast(FOREIGN, lambda name: name in RUN))
def test_three_steps_move_the_gates_and_compile_once(name):
    case, data = FOREIGN[name], batch()
    state = foreign.state(case)
    before = layout(state)
    step = fsg.make_train_step(fsg.losses.squared_error, inputs=case.inputs)
    gates = jax.tree.map(np.asarray, state.gates)
    for _ in range(3):
        state, metrics = step(state, data)
    assert layout(state) == before
    assert step._cache_size() == 1
    assert np.isfinite(metrics["loss"])
    assert all(map(np.any, jax.tree.leaves(jax.tree.map(np.not_equal, gates, state.gates))))
    evaluate = fsg.make_eval_step(fsg.losses.squared_error, inputs=case.inputs, ema=state.ema is not None)
    assert np.isfinite(evaluate(state, data)["loss"])
    assert fsg.gate_summary(state).keys() == fsg.selected(state).keys() != set()


@pytest.mark.parametrize("name", list(map(by_family, REDUCED)))
def test_a_step_keeps_the_layout_of_every_registered_model(name):
    """Of shapes alone: nothing is compiled."""
    tx = fsg.routed(params=optax.sgd(0.1, momentum=0.9), gates=optax.adam(1e-2))
    data = {"image": images_of(name), "label": jnp.arange(len(jax.tree.leaves(images_of(name))[0]))}
    options = {"ema_decay": 0.9}
    before = jax.eval_shape(
        lambda x: fsg.init_state(reduced(name), tx, jax.random.key(0), x, **options), images_of(name)
    )
    step = fsg.make_train_step(fsg.losses.cross_entropy, jit=False)
    after, _ = jax.eval_shape(step, before, data)
    assert jax.tree.structure(after) == jax.tree.structure(before)
    assert avals(after) == avals(before)


FLAGGED = ["training", "is_training", "deterministic", "attribute", "keywords", "mode"]


@functools.cache
def programs(name):
    state = jax.eval_shape(lambda: foreign.state(FOREIGN[name]))
    steps = (
        fsg.make_train_step(fsg.losses.squared_error, jit=False),
        fsg.make_eval_step(fsg.losses.squared_error, jit=False).sums,
    )
    return [str(jax.make_jaxpr(step)(state, batch())) for step in steps]


@pytest.mark.parametrize("name", FLAGGED)
def test_every_spelling_of_the_flag_is_the_same_program(name):
    """In training and in evaluation."""
    assert programs(name) == programs("train")


def test_the_flag_turns_on_dropout_statistics_and_draws():
    data, step = batch(), fsg.make_train_step(fsg.losses.squared_error)
    still = fsg.routed(params=optax.sgd(0.0), gates=optax.sgd(0.0))
    state = fsg.init_state(foreign.Train(), still, jax.random.key(0), X)
    state, first = step(state, data)
    state, second = step(state, data)
    assert first["loss"] != second["loss"]
    assert np.any(state.batch_stats["norm"]["mean"] != 0)
    evaluate = fsg.make_eval_step(fsg.losses.squared_error)
    assert evaluate(state, data)["loss"] == evaluate(state, data)["loss"]


def test_a_model_that_needs_a_flag_and_has_none_is_refused():
    with pytest.raises(ValueError, match=r"train_flag.*norm.*BatchNorm.*Dropout"):
        fsg.init_state(foreign.NoFlag(), TX, jax.random.key(0), X)
    with pytest.raises(ValueError, match=r"train_flag.*Keywords"):
        fsg.init_state(foreign.Keywords(), TX, jax.random.key(0), X)
    with pytest.raises(ValueError, match=r"train_flag.*'learn'"):
        fsg.init_state(foreign.Train(), TX, jax.random.key(0), X, train_flag="learn")

    class Two(foreign.Flagged):
        def __call__(self, x, train=False, deterministic=True):
            return self.run(x, train)

    with pytest.raises(ValueError, match=r"train_flag.*'train', 'deterministic'"):
        fsg.init_state(Two(), TX, jax.random.key(0), X)


def test_no_flag_is_right_where_the_user_says_so():
    state = fsg.init_state(foreign.NoFlag(), TX, jax.random.key(0), X, train_flag=None)
    state, _ = fsg.make_train_step(fsg.losses.squared_error)(state, batch())
    np.testing.assert_array_equal(state.batch_stats["norm"]["mean"], 0)


def test_a_stochastic_gate_that_is_never_drawn_is_warned_of():
    class Forgotten(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return fsg.Gate(kind="hard_concrete", name="gate")(nn.Dense(3)(x))

    with pytest.warns(UserWarning, match=r"'gate'.*train=True"):
        fsg.init_state(Forgotten(), TX, jax.random.key(0), X)


def test_streams_collections_and_labels_that_are_missing_are_named():
    lora = foreign.Lora()
    with pytest.raises(ValueError, match=r"rngs.*'dropout', 'gates'.*noise"):
        fsg.init_state(lora, foreign.LORA, jax.random.key(0), X, trainable=("params", "gates", "lora"))
    with pytest.raises(ValueError, match=r"trainable.*'lora'.*'adapters'"):
        fsg.init_state(lora, TX, jax.random.key(0), X, rngs=("noise",), trainable=("params", "adapters"))
    with pytest.raises(ValueError, match=r"labels.*'gates', 'params'.*'lora'"), pytest.warns(match="'lora'"):
        fsg.init_state(lora, foreign.LORA, jax.random.key(0), X, rngs=("noise",))
    with pytest.warns(UserWarning, match=r"'lora'.*trainable"):
        fsg.init_state(lora, TX, jax.random.key(0), X, rngs=("noise",))
    with pytest.warns(UserWarning, match=r"'gates' has no leaves.*gate=None"):
        fsg.init_state(nn.Dense(3), TX, jax.random.key(0), X)


def test_initial_values_are_those_of_the_model_whatever_compiles_them():
    """Alone, where the program has compiler options of its own, and in another jit, where it must not."""
    model, key = nn.Dense(300), jax.random.key(0)
    quick = jax.config.read("jax_disable_most_optimizations")
    try:
        jax.config.update("jax_disable_most_optimizations", False)  # as users have it
        wanted = jax.jit(model.init)(jax.random.split(key)[0], X)["params"]
        alone = fsg.init_state(model, optax.sgd(0.1), key, X).params
        within = jax.jit(lambda: fsg.init_state(model, optax.sgd(0.1), key, X).params)()
    finally:
        jax.config.update("jax_disable_most_optimizations", quick)
    for found in (alone, within):
        jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_an_own_collection_moves():
    state = foreign.state(FOREIGN["lora"])
    state, metrics = fsg.make_train_step(fsg.losses.squared_error)(state, batch())
    assert np.all(np.asarray(state.variables["lora"]["scale"]) != 1)
    assert set(metrics["grad_norm"]) == {"params", "gates", "lora"}


def test_variables_that_do_not_fit_are_all_listed():
    variables = foreign.initial(FOREIGN["train"])
    params = {**variables["params"], "second": {"kernel": jnp.ones((5, 1)), "bias": jnp.ones(1)}, "third": {"bias": X}}
    params.pop("first")
    with pytest.raises(ValueError, match="variables") as error:
        fsg.init_state(foreign.Train(), TX, jax.random.key(0), X, variables={**variables, "params": params})
    for part in ("params/first/kernel: expected (4, 6)", "second/kernel: expected (6, 1), found (5, 1)", "third/bias"):
        assert part in str(error.value)
    with pytest.raises(ValueError, match=r"batch_stats/norm/mean.*missing"):
        fsg.init_state(foreign.Train(), TX, jax.random.key(0), X, variables={"params": variables["params"]})


def test_missing_gates_start_as_those_of_a_new_model():
    case = FOREIGN["without gates"]
    state, new = foreign.state(case), fsg.init_state(case.model, TX, jax.random.key(0), X)
    jax.tree.map(np.testing.assert_array_equal, state.gates, new.gates)
    jax.tree.map(np.testing.assert_array_equal, state.params, foreign.initial(case)["params"])


def test_averages_of_bfloat16_are_float32_and_counters_are_not_averaged():
    state = foreign.state(FOREIGN["bfloat16"])
    assert {leaf.dtype for leaf in jax.tree.leaves(state.ema)} == {jnp.dtype("float32")}
    assert state.params["first"]["kernel"].dtype == jnp.bfloat16
    counted = foreign.state(FOREIGN["sown"])
    step = fsg.make_train_step(fsg.losses.squared_error)
    for _ in range(3):
        counted, _ = step(counted, batch())
    assert int(counted.variables["count"]["steps"]) == int(counted.ema["count"]["steps"]) == 3


def test_what_a_model_sows_is_captured_when_asked_for():
    state, data = foreign.state(FOREIGN["sown"]), batch()
    assert "attention" not in state.variables
    step = fsg.make_eval_step(fsg.losses.squared_error, capture=("attention", "intermediates"))
    metrics, captured = step(state, data)
    hidden = captured["intermediates"]["hidden"][0]
    np.testing.assert_allclose(captured["attention"]["map"][0], jax.nn.softmax(hidden), rtol=1e-6)
    assert set(metrics) == {"loss", "count"}


def test_stacked_layers_are_gates_of_their_own():
    state = foreign.state(FOREIGN["stacked"])
    names = ["plain", *(f"layers/gate[{i}]" for i in range(3)), "heads[0]", "heads[1]", "remat"]
    values = fsg.gate_values(state)
    assert sorted(values) == sorted(names)
    assert {v.shape for v in values.values()} == {(6,)}
    logits = state.gates["layers"]["gate"]["logits"]
    np.testing.assert_allclose(values["layers/gate[1]"], jax.nn.hard_sigmoid(logits[1]), rtol=1e-6)

    class Wrong(nn.Module):
        @nn.compact
        def __call__(self, x):
            axes = {"variable_axes": {"params": 0, "gates": 1}, "split_rngs": {"params": True}}
            return nn.scan(foreign.Layer, length=3, **axes)(name="layers")(nn.Dense(6)(x), None)[0]

    with pytest.raises(ValueError, match=r"layers/gate.*variable_axes"):
        fsg.init_state(Wrong(), TX, jax.random.key(0), X)


def test_a_key_that_the_batch_does_not_have_is_named():
    state = foreign.state(FOREIGN["several"])
    with pytest.raises(ValueError, match=r"inputs.*'mask'.*'image'"):
        fsg.make_train_step(fsg.losses.squared_error)(state, {k: batch()[k] for k in ("tokens", "mask", "target")})


def test_own_gates_have_their_own_values_everywhere():
    state = foreign.state(FOREIGN["own gates"])
    logits = {k: np.asarray(jax.tree.leaves(v)[0]) for k, v in state.gates.items()}
    values = fsg.gate_values(state)
    np.testing.assert_allclose(values["soft"], np.tanh(logits["soft"] / 2) ** 2, rtol=1e-5)
    np.testing.assert_allclose(values["function"], np.arctan(logits["function"]), rtol=1e-5)
    np.testing.assert_allclose(values["own/mine"], np.log1p(np.exp(0.3)), rtol=1e-5)
    total = fsg.gate_penalty("l1", 1.0)(state.gates, state.gate_kinds)
    np.testing.assert_allclose(total, sum(np.abs(v).sum() for v in values.values()), rtol=1e-5)

    class Mute(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(1)(x * self.variable("gates", "mine", jnp.ones, 4).value[None])

    with pytest.raises(ValueError, match=r"gates.*'mine'.*values\(logits\).*gate_kinds"):
        fsg.init_state(Mute(), TX, jax.random.key(0), X)
    told = fsg.init_state(Mute(), TX, jax.random.key(0), X, gate_kinds={"mine": "relu"})
    np.testing.assert_array_equal(fsg.gate_values(told)["mine"], 1)


def test_a_temperature_is_annealed_with_the_step():
    state, data = foreign.state(FOREIGN["own gates"]), batch()
    step = fsg.make_train_step(fsg.losses.squared_error)
    for t in range(1, 3):
        state, _ = step(state, data)
        logits = state.gates["annealed"]["logits"]
        np.testing.assert_allclose(fsg.gate_values(state)["annealed"], jax.nn.sigmoid(logits * 2.0**t), rtol=1e-5)
    _, captured = state.model.apply(state.variables, data["image"], capture_intermediates=True)
    taken = captured["intermediates"]
    np.testing.assert_allclose(
        taken["annealed"]["__call__"][0],
        taken["function"]["__call__"][0] * fsg.gate_values(state)["annealed"][None],
        rtol=1e-5,
    )
