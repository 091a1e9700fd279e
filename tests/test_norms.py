"""The norms of CPU commands are Flax's: parameters, statistics, values, gradients, and what asks for them."""

import itertools
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden_steps import TX
from reduced import inputs, labels, reduced, variables

import fsg_jax as fsg
from experiments import devices, pretrained
from fsg_jax.linen.batch_stats import recalibrate
from fsg_jax.models.norms import FASTER, FastBatchNorm, FastLayerNorm
from fsg_jax.models.resnet import BatchNorm
from fsg_jax.pretrained import load_pretrained, save_pretrained

FAST = partial(FastBatchNorm, momentum=0.9, epsilon=1e-5)
OPTIONS = [
    {},
    {"dtype": jnp.bfloat16},
    {"use_scale": False},
    {"use_bias": False},
    {"use_fast_variance": False},
    {"axis": 1},
    {"scale_init": nn.initializers.zeros_init()},
]


@pytest.mark.parametrize(("options", "train"), list(itertools.product(OPTIONS, [True, False])))
def test_is_as_flax_has_it(options, train):
    x, g = jax.random.normal(jax.random.key(0), (2, 4, 5, 3, 6)) * jnp.arange(1, 7.0).reshape(1, 1, 1, 1, 6) + 3
    modules = [cls(use_running_average=not train, **options) for cls in (nn.BatchNorm, FastBatchNorm)]
    weights = [module.init(jax.random.key(1), x) for module in modules]
    jax.tree.map(np.testing.assert_array_equal, *weights)
    moved = jax.tree.map(lambda leaf: leaf + 0.3, weights[0])

    def run(module, weights, x):
        apply = partial(module.apply, mutable=["batch_stats"])
        y, pull_back, state = jax.vjp(apply, weights, x, has_aux=True)
        return y, pull_back(g.astype(y.dtype)), state

    small = 2e-2 if "dtype" in options else 2e-5
    ours, theirs = (jax.jit(partial(run, module))(moved, x) for module in reversed(modules))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=small, atol=small * float(jnp.abs(b).max()))


OF_TOKENS = [
    {},
    {"dtype": jnp.bfloat16},
    {"param_dtype": jnp.bfloat16},
    {"epsilon": 0.1},
    {"use_scale": False},
    {"use_bias": False},
    {"use_fast_variance": False},
    {"reduction_axes": (1, 2)},
]


@pytest.mark.parametrize("options", OF_TOKENS)
@pytest.mark.parametrize("shape", [(6,), (5, 6), (2, 5, 6), (2, 3, 5, 6)])
def test_a_layer_norm_is_as_flax_has_it(options, shape):
    if "reduction_axes" in options and len(shape) != 3:
        pytest.skip("axes of (batch, tokens, channels)")
    x, g = jax.random.normal(jax.random.key(0), (2, *shape)) * 2 + 3
    modules = [cls(**options) for cls in (nn.LayerNorm, FastLayerNorm)]
    weights = [module.init(jax.random.key(1), x) for module in modules]
    jax.tree.map(np.testing.assert_array_equal, *weights)
    moved = jax.tree.map(
        lambda leaf: leaf + jnp.linspace(0, 1, leaf.size, dtype=leaf.dtype).reshape(leaf.shape), weights[0]
    )

    def run(module, weights, x):
        y, pull_back = jax.vjp(module.apply, weights, x)
        return y, pull_back(g.astype(y.dtype))

    small = 2e-2 if {"dtype", "param_dtype"} & options.keys() else 2e-5
    theirs, ours = (jax.jit(partial(run, module))(moved, x) for module in modules)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(*(np.float64(t) for t in (a, b)), rtol=small, atol=small * float(jnp.abs(b).max()))


def test_a_layer_norm_in_float64():
    """Against the formula; rows of one value have no spread, and rows of zeros none either."""
    with jax.enable_x64(True):
        x, g = jax.random.normal(jax.random.key(0), (2, 7, 6), jnp.float64)
        x = x.at[0].set(3.0).at[1].set(0.0)
        scale, bias = jnp.linspace(-1, 2, 6), jnp.linspace(0, 1, 6)
        module = FastLayerNorm(epsilon=1e-6, param_dtype=jnp.float64)

        def formula(scale, bias, x):
            mean = x.mean(-1, keepdims=True)
            return (x - mean) / jnp.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-6) * scale[None] + bias[None]

        def ours(scale, bias, x):
            return module.apply({"params": {"scale": scale, "bias": bias}}, x)

        found, expected = (jax.vjp(f, scale, bias, x) for f in (ours, formula))
        np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=1e-9)
        for a, b in zip(found[1](g), expected[1](g), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9 * float(jnp.abs(b).max()))


def test_a_layer_norm_over_a_batch_of_networks_and_twice():
    x = jax.random.normal(jax.random.key(0), (3, 4, 6))
    modules = nn.LayerNorm(), FastLayerNorm()
    weights = jax.vmap(lambda key: {"params": {"scale": jax.random.normal(key, 6), "bias": jnp.ones(6)}})(
        jax.random.split(jax.random.key(1), 3)
    )

    def curvature(module, weights, x):
        gradient = jax.grad(lambda w: jnp.sum(jnp.sin(module.apply(w, x))))
        return gradient(weights), jax.grad(lambda w: jnp.sum(gradient(w)["params"]["scale"] ** 2))(weights)

    both = [jax.vmap(partial(curvature, module))(weights, x) for module in modules]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), *both)


def test_a_layer_norm_of_a_part():
    x, flax, fast = jax.random.normal(jax.random.key(0), (4, 6)), nn.LayerNorm(), FastLayerNorm()
    weights, mask = flax.init(jax.random.key(1), x), jnp.arange(6) < 4
    np.testing.assert_array_equal(*(m.apply(weights, x, mask=mask) for m in (flax, fast)))


def test_a_mask_and_forward_mode():
    x, t = jax.random.normal(jax.random.key(0), (2, 8, 5))
    flax, fast = (cls(use_running_average=False) for cls in (nn.BatchNorm, FastBatchNorm))
    weights, mask = flax.init(jax.random.key(1), x), jnp.arange(8)[:, None] < 6
    both = [m.apply(weights, x, mask=mask, mutable=["batch_stats"]) for m in (flax, fast)]
    jax.tree.map(np.testing.assert_array_equal, *both)
    tangents = [
        jax.jvp(lambda x, m=m: m.apply(weights, x, mutable=["batch_stats"])[0], (x,), (t,))[1] for m in (flax, fast)
    ]
    np.testing.assert_allclose(*tangents, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny", pytest.param("efficientnet_b0", marks=pytest.mark.slow)])
def test_a_model_takes_the_same_step(name):
    states, fast = [], partial(FastLayerNorm, epsilon=1e-6) if name == "vit_tiny" else FAST
    for norm in (reduced(name).norm, fast):
        model, before = reduced(name, norm=norm), variables(name)
        state = fsg.init_state(model, TX, jax.random.key(0), inputs(name), variables=before)
        step = fsg.make_train_step(fsg.losses.cross_entropy, "sequential")
        states.append(step(state, {"image": inputs(name), "label": labels()}))
    theirs, ours = (state.variables for state, _ in states)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * float(jnp.abs(b).max()))
    assert reduced(name, norm=fast).gate_sites() == reduced(name).gate_sites()


def test_statistics_of_frozen_layers_stay_and_are_measured_anew(tmp_path):
    name = "resnet18"
    model, before = reduced(name, norm=FAST), variables(name)
    body = {"body": "(params|batch_stats)/layer1_0/.*"}
    tx = fsg.routed(labels=body, body=None, params=optax.sgd(0.1), gates=optax.sgd(0.1))
    state = fsg.init_state(model, tx, jax.random.key(0), inputs(name), variables=before)
    after, _ = fsg.make_train_step(fsg.losses.cross_entropy)(state, {"image": inputs(name), "label": labels()})
    stats = after.variables["batch_stats"]
    jax.tree.map(np.testing.assert_array_equal, stats["layer1_0"], before["batch_stats"]["layer1_0"])
    assert not np.array_equal(stats["bn1"]["mean"], before["batch_stats"]["bn1"]["mean"])

    anew = [recalibrate(reduced(name, norm=norm), before, [inputs(name)]) for norm in (FAST, BatchNorm)]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), *anew)
    save_pretrained(tmp_path / "model", model, before)
    norm = load_pretrained(tmp_path / "model").model.norm
    assert (norm.func, norm.keywords) == (FAST.func, FAST.keywords)


def test_commands_on_a_cpu_take_them():
    for name in sorted(set(fsg.list_models()) - {"multistream"}):
        norm, own = devices.model_options(name).get("norm"), fsg.create_model(name, num_classes=1).norm
        assert (norm is None) == name.startswith("vig")
        assert norm is None or (FASTER[norm.func], norm.keywords) == (own.func, own.keywords)


def test_weights_trained_with_one_start_a_network_with_the_other():
    flax, fast = reduced("resnet18"), reduced("resnet18", norm=partial(FastBatchNorm, momentum=0.9, epsilon=1e-5))
    for model, of_file in ((flax, fast), (fast, flax), (fast, fast.clone(norm=FAST))):
        pretrained.check_same(model, of_file)
    other = fast.clone(norm=partial(FastBatchNorm, momentum=0.9, epsilon=1e-3))
    with pytest.raises(ValueError, match="model: norm: expected that"):
        pretrained.check_same(other, flax)


def test_and_so_does_a_layer_norm():
    flax, fast = (reduced("vit_tiny", norm=partial(c, epsilon=1e-6)) for c in (nn.LayerNorm, FastLayerNorm))
    for model, of_file in ((flax, fast), (fast, flax), (reduced("vit_tiny"), fast)):
        pretrained.check_same(model, of_file)
    for other in (partial(FastLayerNorm, epsilon=1e-5), FAST):
        with pytest.raises(ValueError, match="model: norm: expected that"):
            pretrained.check_same(fast.clone(norm=other), flax)


def test_a_vit_is_saved_with_its_norm(tmp_path):
    model = reduced("vit_tiny", norm=devices.FAST_NORMS[reduced("vit_tiny").norm])
    save_pretrained(tmp_path / "model", model, variables("vit_tiny"))
    found = load_pretrained(tmp_path / "model").model.norm
    assert (found.func, found.keywords) == (FastLayerNorm, {"epsilon": 1e-6})
