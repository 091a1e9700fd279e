"""`fsg_jax.explain`: maps come with the logits, are what NumPy finds, and gradients of scores are what is known."""

from functools import cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import timm_weights
from cases import fast
from reduced import BATCH, CLASSES, inputs, reduced, variables

import fsg_jax as fsg
from fsg_jax import explain
from fsg_jax.models import SelfAttention, create_model

ATTENTIVE = ("vgg_att", "resnet_att", "vit_tiny")
NAMES = {
    "vgg_att": ["level2", "level3"],
    "resnet_att": ["level1", "level2", "level3"],
    "vit_tiny": ["blocks_0", "blocks_1"],
}


def filled(model, x):
    return jax.tree.map(jnp.asarray, timm_weights.fill(model, x))


@cache
def look(model):
    """`explain.attention_maps`, compiled once a model."""
    return jax.jit(partial(explain.attention_maps, model))


@cache
def maps_of(name):
    return look(reduced(name))(variables(name), inputs(name))


def close(found, wanted):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found, wanted)


@pytest.mark.parametrize("name", fast(ATTENTIVE, lambda name: name != "resnet_att"))
def test_maps_come_with_the_logits(name):
    model, x = reduced(name), inputs(name)
    logits, maps = maps_of(name)
    close(logits, jax.jit(model.apply)(variables(name), x))
    assert list(maps) == NAMES[name]
    assert all(found.dtype == jnp.float32 and found.shape[0] == BATCH for found in maps.values())
    sizes = {found.shape[1:] for found in maps.values()}
    assert sizes <= ({(3, 2)} if name == "vit_tiny" else {(12, 8), (6, 4), (3, 2)})
    turned = look(model)(variables(name), x[::-1])  # no image sees another
    close(turned, jax.tree.map(lambda a: a[::-1], (logits, maps)))


@pytest.mark.parametrize("name", fast(["vgg_att", "vit_tiny"]))
def test_the_evaluation_step_captures_the_same_maps(name):
    options = {"variables": variables(name)}
    state = fsg.init_state(reduced(name), optax.sgd(0.1), jax.random.key(0), inputs(name), **options)
    assert not {"attention", "descriptors"} & state.variables.keys()
    step = fsg.make_eval_step(fsg.losses.cross_entropy, capture=("attention",))
    _, captured = step(state, {"image": inputs(name), "label": jnp.arange(BATCH)})
    kept = captured["attention"]
    tokens = name == "vit_tiny"
    close({k: v["attn"]["class_token"].mean(1) if tokens else v["map"] for k, v in kept.items()}, maps_of(name)[1])


@pytest.mark.parametrize(
    ("name", "size", "score"),
    fast([("vgg_att", (13, 9), "dot"), ("vgg_att", (7, 5), "additive"), ("resnet_att", (9, 7), "additive_tanh")]),
)
def test_softmax_maps_sum_to_one_in_bfloat16_at_odd_sizes(name, size, score):
    model = reduced(name, score=score, normalise="softmax", dtype=jnp.bfloat16)
    x = jnp.asarray(timm_weights.images("odd", 2, 3, *size))
    logits, maps = look(model)(filled(model, x), x)
    assert logits.dtype == jnp.float32
    assert np.isfinite(logits).all()
    for found in maps.values():
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found.sum((1, 2)), 1, atol=1e-5)
        assert (np.asarray(found) >= 0).all()


def test_a_class_token_by_numpy():
    """The maps of both blocks, from what their norms give and the weights of ``qkv``."""
    model, weights, x = reduced("vit_tiny"), variables("vit_tiny"), inputs("vit_tiny")
    keep = lambda module, method: module.name == "norm1"  # noqa: E731
    run = partial(model.apply, capture_intermediates=keep, mutable=["intermediates", "attention"])
    _, state = jax.jit(run)(weights, x)
    for block in NAMES["vit_tiny"]:
        tokens = np.asarray(state["intermediates"][block]["norm1"]["__call__"][0], np.float64)
        qkv = weights["params"][block]["attn"]["qkv"]
        q, k, _ = np.split(tokens @ np.asarray(qkv["kernel"], np.float64) + np.asarray(qkv["bias"]), 3, axis=-1)
        q, k = (y.reshape(BATCH, 7, 3, 8) for y in (q, k))
        scores = np.exp(np.einsum("bhd,bkhd->bhk", q[:, 0], k) / 8**0.5)
        wanted = (scores / scores.sum(-1, keepdims=True))[..., 1:].reshape(BATCH, 3, 3, 2)
        kept = state["attention"][block]["attn"]["class_token"]
        np.testing.assert_allclose(kept, wanted, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(maps_of("vit_tiny")[1][block], wanted.mean(1), rtol=1e-4, atol=1e-6)


class Blind(SelfAttention):
    """Self-attention that is not told where the patches are, and keeps nothing."""

    @nn.compact
    def __call__(self, x, *, train=False):
        return super().__call__(x, train=train)


def test_a_vit_computes_what_it_did_before_unless_it_is_asked():
    x, weights = inputs("vit_tiny"), variables("vit_tiny", None)
    seeing = reduced("vit_tiny", None, dropout=0.1)
    blind = seeing.clone(mixer=partial(Blind, num_heads=3, dropout=0.1, gate=None))

    def train(model):
        def loss(params):
            key = jax.random.key(0)
            return model.apply({"params": params}, x, train=True, rngs={"dropout": key}).sum()

        return str(jax.make_jaxpr(jax.grad(loss))(weights["params"]))

    assert train(seeing) == train(blind)
    plain, kept = (jax.jit(partial(seeing.apply, mutable=m))(weights, x) for m in (False, ["attention"]))
    np.testing.assert_array_equal(plain, kept[0])
    assert "attention" not in jax.eval_shape(seeing.init, jax.random.key(0), x)


def test_options_of_a_vit_keep_its_maps():
    x, weights, (_, maps) = inputs("vit_tiny"), variables("vit_tiny"), maps_of("vit_tiny")
    for options in ({"remat": True}, {"attention_dropout": 0.5}, {"mixer": partial(SelfAttention, 3)}):
        own = reduced("vit_tiny", **options)
        close(look(own)(weights, x)[1], maps)
    half = look(reduced("vit_tiny", dtype=jnp.bfloat16))(weights, x)[1]
    assert all(found.dtype == jnp.float32 and (found.sum((1, 2)) < 1).all() for found in half.values())


def test_names_follow_the_layers():
    model = create_model("vit_tiny", num_classes=2, patch_size=4, dim=6, depth=11, mlp_ratio=1.0)
    x = jnp.zeros((1, 4, 8, 3))
    weights, names = jax.eval_shape(model.init, jax.random.key(0), x), []
    jax.eval_shape(lambda weights: names.extend(explain.attention_maps(model, weights, x)[1]), weights)
    assert names == [f"blocks_{i}" for i in range(11)]


WITHOUT = {
    "resnet18": {},
    "efficientnet_b0": {},
    "vgg16": {},
    "vgg_att": {"attention": None},
    "vit_tiny": {"class_token": False, "pool": "avg"},
    "vig_tiny": {},
}


@pytest.mark.parametrize("name", WITHOUT)
def test_models_without_maps_say_so(name):
    model, x = reduced(name, **WITHOUT[name]), inputs(name)
    match = rf"{type(model).__name__}: expected attention over space: VGG .*gates act on channels .* found none"
    with pytest.raises(ValueError, match=match):
        jax.eval_shape(partial(explain.attention_maps, model), jax.eval_shape(model.init, jax.random.key(0), x), x)


@cache
def attentive(name, score, normalise="softmax"):
    model = reduced(name, score=score, normalise=normalise)
    return model, filled(model, inputs(name))


@pytest.mark.parametrize(
    ("name", "score", "normalise"),
    [
        ("vgg_att", "dot", "softmax"),
        pytest.param("vgg_att", "additive_tanh", "softmax", marks=pytest.mark.slow),
        pytest.param("vgg_att", "additive", "sigmoid", marks=pytest.mark.slow),
        pytest.param("resnet_att", "dot", "softmax", marks=pytest.mark.slow),
    ],
)
def test_maps_under_the_query_of_another_image(name, score, normalise):
    (model, weights), x = attentive(name, score, normalise), inputs(name)
    (_, own), transfer = look(model)(weights, x), jax.jit(partial(explain.transferred_maps, model))
    close(transfer(weights, x, x), own)
    for level, found in transfer(weights, x, x[jnp.zeros(BATCH, int)]).items():
        np.testing.assert_allclose(found[0], own[level][0], rtol=1e-4, atol=1e-6)
        assert np.abs(found[1:] - own[level][1:]).max() > 1e-4
    assert jax.tree.map(jnp.shape, jax.eval_shape(transfer, weights, x, x[:1])) == jax.tree.map(jnp.shape, own)
    assert jax.eval_shape(partial(explain.global_descriptors, model), weights, x).shape == (4, model.query_features)


CANNOT = [
    ("vgg_att", {"score": "additive"}, 1, r"score: expected dot or additive_tanh.*found additive with softmax"),
    ("vgg_att", {"score": "dot"}, 2, "templates: expected 1 or 4 images, found 2"),
    ("vit_tiny", {}, 1, "ViT: expected a VGG or PreActResNet"),
]


@pytest.mark.parametrize(("name", "options", "templates", "match"), CANNOT)
def test_queries_that_cannot_be_transferred(name, options, templates, match):
    options |= {"normalise": "softmax"} if options else {}
    model, x = reduced(name, **options), inputs(name)
    weights = jax.eval_shape(model.init, jax.random.key(0), x)
    with pytest.raises(ValueError, match=match):
        jax.eval_shape(partial(explain.transferred_maps, model), weights, x, x[:templates])


def test_queries_of_another_shape_or_model():
    for name, match in (("vgg_att", "query: expected shape"), ("vit_tiny", "query: expected None .* found ViT")):
        see = lambda weights, x, query, name=name: explain.attention_maps(reduced(name), weights, x, query=query)  # noqa: E731
        with pytest.raises(ValueError, match=match):
            jax.eval_shape(see, variables(name), inputs(name), jnp.zeros((1, 8)))


def test_resized_maps():
    maps = jnp.asarray([[[0.0, 4.0], [8.0, 12.0]]])
    large = explain.resize_maps(maps, (4, 2))
    np.testing.assert_allclose(large, [[[0, 4], [2, 6], [6, 10], [8, 12]]], atol=1e-6)
    np.testing.assert_allclose(explain.resize_maps(jnp.full((2, 3, 5), 0.25), (7, 11)), 0.25, rtol=1e-6)
    np.testing.assert_allclose(explain.resize_maps(maps, (1, 1)), 6, rtol=1e-6)
    with pytest.raises(ValueError, match="width: expected an integer >= 1, found 0"):
        explain.resize_maps(maps, (4, 0))


def test_entropy_of_maps():
    maps = jnp.stack([jnp.eye(6)[3].reshape(2, 3), jnp.full((2, 3), 0.7), jnp.asarray([[1.0, 1, 0], [0, 0, 0]])])
    np.testing.assert_allclose(explain.map_entropy(maps), [0, 1, np.log(2) / np.log(6)], atol=1e-6)
    assert explain.map_entropy(jnp.ones((1, 1, 1))).tolist() == [0]
    assert np.isnan(explain.map_entropy(jnp.zeros((1, 2, 2)))).all()


@pytest.mark.parametrize(("gate", "layer"), [(fsg.Gate, "gate2"), (None, "layer2_0")])
def test_grad_cam_is_cam(gate, layer):
    """Where pooling and one linear layer follow, ``sum_k w_k A_k`` with the class's weights (Zhou et al. 2016)."""
    model, weights, x = reduced("resnet18", gate), variables("resnet18", gate), inputs("resnet18")
    target = jnp.asarray([0, 4, 2, 2])
    named = lambda module, method: method == "__call__" and "/".join(module.path) == layer  # noqa: E731
    run = partial(model.apply, capture_intermediates=named, mutable=["intermediates"])
    logits, state = jax.jit(run)(weights, x)
    features, head = state["intermediates"][layer]["__call__"][0], weights["params"]["head"]
    cam = np.einsum("bhwc,cb->bhw", features, head["kernel"][:, target])
    see = partial(explain.class_activation, model, layer=layer)
    found = jax.jit(partial(see, rectify=False))(weights, x, target=target)
    np.testing.assert_allclose(found, cam, rtol=1e-4, atol=1e-4)
    assert cam.min() < -0.01
    assert cam.max() > 0.01
    np.testing.assert_allclose(found.mean((1, 2)) + head["bias"][target], logits[jnp.arange(4), target], rtol=1e-4)
    np.testing.assert_allclose(jax.jit(see)(weights, x, target=target), np.maximum(cam, 0), rtol=1e-4, atol=1e-4)


def test_grad_cam_inside_a_network():
    weights, x, target = variables("resnet18"), inputs("resnet18"), jnp.arange(BATCH)
    layers = explain.activation_layers(reduced("resnet18"), weights, x)
    assert layers["layer1_0"] == (BATCH, 13, 10, 8)
    assert "head" not in layers

    def compiled(**options):
        return jax.jit(partial(explain.class_activation, reduced("resnet18", **options), layer="layer1_0/bn1"))

    plain = compiled()
    found, again, low = (
        see(weights, x, target=target) for see in (plain, compiled(remat=True), compiled(dtype=jnp.bfloat16))
    )
    assert found.shape == (BATCH, 13, 10)
    assert found.max() > 0
    close(again, found)
    close(plain(weights, x[::-1], target=target[::-1]), found[::-1])
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(low, found, atol=0.2 * float(found.max()))


def test_layers_with_maps_in_other_networks():
    layers = explain.activation_layers(reduced("vgg_att"), variables("vgg_att"), inputs("vgg_att"))
    assert layers["stage3_0"] == (BATCH, 6, 4, 8)
    assert not any("drop" in path for path in layers)
    assert list(explain.activation_layers(reduced("vit_tiny"), variables("vit_tiny"), inputs("vit_tiny"))) == [
        "patch_embed/proj",
        "patch_embed",
    ]


class Linear(nn.Module):
    """Logits are a product with the pixels: the gradient is the weights."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="head")(x.reshape(len(x), -1))


def test_the_gradient_of_a_linear_model_is_its_weights():
    model, x = Linear(), jnp.ones((3, 4, 5, 2))
    weights = model.init(jax.random.key(0), x)
    kernel = np.abs(np.asarray(weights["params"]["head"]["kernel"])).reshape(4, 5, 2, 3).max(2)
    target = jnp.asarray([2, 0, 2])
    found = jax.jit(partial(explain.input_gradient, model))(weights, x, target)
    np.testing.assert_allclose(found, kernel.transpose(2, 0, 1)[target], rtol=1e-6)
    score = explain.input_gradient(model, weights, x, lambda logits: logits[:, 2] - logits[:, 0])
    both = np.asarray(weights["params"]["head"]["kernel"]).reshape(4, 5, 2, 3)
    np.testing.assert_allclose(score[0], np.abs(both[..., 2] - both[..., 0]).max(2), rtol=1e-6)


def test_classes_that_there_are_not():
    """Not a map of zeros: NaN, of that image alone."""
    model, x = Linear(), jnp.ones((3, 4, 5, 2))
    weights = model.init(jax.random.key(0), x)
    for wrong in (3, -1):
        found = explain.input_gradient(model, weights, x, jnp.asarray([0, wrong, 2]))
        assert np.isnan(found).all((1, 2)).tolist() == [False, True, False]


def test_what_gradients_are_not_taken_of():
    model, weights, x = reduced("resnet18"), variables("resnet18"), inputs("resnet18")
    see, target = partial(explain.class_activation, model, weights, x), jnp.arange(BATCH)
    for layer in ("layer2_1", "head"):
        with pytest.raises(ValueError, match=f"layer: expected a layer with maps: .*layer2_0.*found '{layer}'"):
            see(layer, target)
    for wrong, match in (
        (jnp.zeros(3, jnp.int32), r"target: expected 4 integers, .* found int32 \(3,\)"),
        (lambda logits: logits, r"target: expected a function that gives scores \(4,\), found \(4, 5\)"),
        (lambda logits: logits.sum(), r"found \(\)"),
    ):
        with pytest.raises(ValueError, match=match):
            see("gate2", wrong)
    assert CLASSES == 5
