"""Every registered model with every property, at the sizes of reduced.py. Numbers and gradients: see test_goldens."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from reduced import BATCH, CLASSES, REDUCED, TWINS, by_family, inputs, reduced, variables

import fsg_jax as fsg
from fsg_jax.gates.gate import Gate
from fsg_jax.linen.gate_kinds import find_gate_kinds
from fsg_jax.models import create_model, list_models

OPEN = functools.partial(Gate, kind="relu")
HARD = functools.partial(Gate, kind="hard_concrete")

each_model = pytest.mark.parametrize("name", list_models())
each_family = pytest.mark.parametrize("name", list(map(by_family, list_models())))
each_placement = pytest.mark.parametrize(
    ("name", "placement"),
    [
        by_family(name, options, id=f"{name}-{i}")
        for name in list_models()
        for i, options in enumerate(REDUCED[name].placements if name in REDUCED else [None])
    ],
)


@functools.cache
def logits(name):
    """Of the whole batch, operation by operation."""
    return reduced(name).apply(variables(name), inputs(name))


def some(x, rows):
    return jax.tree.map(lambda leaf: leaf[rows], x)


def ungated(tree):
    return {k: v for k, v in tree.items() if k != "gates"}


def test_the_table_knows_every_model():
    assert sorted(REDUCED) == list_models()


@each_family
def test_float32_logits_in_evaluation_and_training(name):
    out = logits(name)
    assert (out.shape, out.dtype) == ((BATCH, CLASSES), jnp.float32)
    assert np.all(np.isfinite(out))
    assert np.std(out, axis=0).min() > 1e-3  # images matter
    training = functools.partial(reduced(name).apply, train=True, mutable=["batch_stats"])
    shape, updated = jax.eval_shape(training, variables(name), inputs(name))
    assert (shape.shape, shape.dtype) == ((BATCH, CLASSES), jnp.float32)
    assert (
        flatten_dict(updated.get("batch_stats", {})).keys()
        == flatten_dict(variables(name).get("batch_stats", {})).keys()
    )


@each_placement
def test_the_ungated_twin_starts_with_the_same_values(name, placement):
    """With a generator that compiles faster than the default one; what is drawn depends on names alone."""
    key = jax.random.key(0, impl="unsafe_rbg")
    gated, plain = (reduced(name, gate, **placement).init(key, inputs(name)) for gate in (Gate, None))
    assert gated.keys() - plain.keys() == {"gates"}
    jax.tree.map(np.testing.assert_array_equal, ungated(gated), plain)


@each_placement
def test_open_gates_are_the_baseline(name, placement):
    weights = variables(name, OPEN, **placement)
    opened = {**weights, "gates": jax.tree.map(jnp.ones_like, weights["gates"])}
    plain = reduced(name, None, **placement).apply(ungated(weights), inputs(name))
    np.testing.assert_array_equal(reduced(name, OPEN, **placement).apply(opened, inputs(name)), plain)
    assert not np.allclose(reduced(name, OPEN, **placement).apply(weights, inputs(name)), plain, rtol=1e-2)


@each_placement
def test_gate_kinds_and_summary_cover_every_gate(name, placement):
    model, weights = reduced(name, HARD, **placement), variables(name, HARD, **placement)
    kinds, _ = find_gate_kinds(model.init, jax.random.key(0), inputs(name))
    names = {"/".join(path[:-1]) for path in flatten_dict(weights["gates"])}
    assert len(kinds) == len(names) > 0
    assert dict(kinds) == dict.fromkeys(names, "hard_concrete")
    assert fsg.gate_summary(SimpleNamespace(gates=weights["gates"], gate_kinds=kinds)).keys() == names


@each_family
def test_without_classes_gives_the_features_under_the_head(name):
    weights = variables(name)
    features = reduced(name, num_classes=0).apply(variables(name, num_classes=0), inputs(name))
    head = weights["params"]["head"]
    assert flatten_dict(weights).keys() - flatten_dict(variables(name, num_classes=0)).keys() == {
        ("params", "head", "kernel"),
        ("params", "head", "bias"),
    }
    assert features.dtype == jnp.float32
    expected = np.asarray(features) @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
    np.testing.assert_allclose(expected, logits(name), rtol=1e-4, atol=1e-5)


@each_family
def test_bfloat16_computes_low_and_keeps_high(name):
    model, full = reduced(name, dtype=jnp.bfloat16), reduced(name)
    shapes = jax.eval_shape(model.init, jax.random.key(0), inputs(name))
    assert shapes == jax.eval_shape(full.init, jax.random.key(0), inputs(name))
    training = functools.partial(model.apply, train=True, mutable=["batch_stats"])
    assert {leaf.dtype for leaf in jax.tree.leaves(jax.eval_shape(training, shapes, inputs(name)))} == {
        jnp.dtype("float32")
    }
    out, expected = jax.jit(model.apply)(variables(name), inputs(name)), logits(name)
    assert out.dtype == jnp.float32
    assert 0 < np.abs(out - expected).max() < 0.05 * np.abs(expected).max()


def in_training(name, weights, remat):
    model, rngs = reduced(name, remat=remat), {"gates": jax.random.key(1), "dropout": jax.random.key(2)}
    return model.apply(weights, inputs(name), train=True, rngs=rngs, mutable=["batch_stats"])


@each_family
def test_rematerialisation_changes_no_output(name):
    jaxprs = [
        str(jax.make_jaxpr(reduced(name, remat=remat).apply)(variables(name), inputs(name))) for remat in (False, True)
    ]
    without, rematerialised = (jaxpr.count("prevent_cse") for jaxpr in jaxprs)
    assert without == 0 or name.startswith("vig")  # its attention rematerialises in any case
    assert rematerialised > without
    results = [jax.jit(functools.partial(in_training, name, remat=remat))(variables(name)) for remat in (False, True)]
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), *results)


@pytest.mark.parametrize("name", sorted(REDUCED.keys() - set(TWINS)))
@pytest.mark.slow
def test_rematerialisation_changes_no_gradient(name):
    weights = variables(name)
    fixed = {k: v for k, v in weights.items() if k == "batch_stats"}

    def gradient(remat):
        def loss(trained):
            return jnp.mean((in_training(name, {**trained, **fixed}, remat)[0] - 1) ** 2)

        return jax.jit(jax.grad(loss))({k: v for k, v in weights.items() if k not in fixed})

    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), gradient(True), gradient(False))


@each_family
def test_a_row_does_not_depend_on_its_batch(name):
    """All at once without a compiled program, and compiled for batches of one."""
    compiled, weights = jax.jit(reduced(name).apply), variables(name)
    for i in (0, BATCH - 1):
        alone = compiled(weights, some(inputs(name), slice(i, i + 1)))
        assert alone.shape == (1, CLASSES)
        np.testing.assert_allclose(alone[0], logits(name)[i], rtol=1e-4, atol=1e-5)


@each_model
def test_an_unknown_argument_is_named(name):
    with pytest.raises(ValueError, match=f"(?s){name}.*no_such_thing"):
        create_model(name, num_classes=CLASSES, no_such_thing=1)


@each_model
def test_raw_pixels_are_refused(name):
    pixels = jax.tree.map(lambda x: np.zeros(x.shape, np.uint8), inputs(name))
    with pytest.raises(ValueError, match="uint8"):
        jax.eval_shape(reduced(name).init, jax.random.key(0), pixels)


@each_model
def test_images_of_another_rank_are_refused(name):
    with pytest.raises(ValueError, match=r"\(batch, height, width, \w+\)"):
        jax.eval_shape(reduced(name).init, jax.random.key(0), some(inputs(name), 0))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["efficientnet_b0", "vig_tiny"])
def test_initial_values_do_not_depend_on_how_thoroughly_they_are_compiled(name):
    """`init_state` compiles them quickly; they are those of a full compilation, bit for bit."""
    model, example = reduced(name, gate=fsg.Gate), inputs(name)
    values = [
        jax.jit(model.init, compiler_options=options)(jax.random.key(3), example)
        for options in ({"xla_backend_optimization_level": level} for level in (1, 3))
    ]
    assert jax.tree.all(jax.tree.map(np.array_equal, *values))
