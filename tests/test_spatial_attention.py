"""Learn to Pay Attention: the released models' numbers, and what is known of their scores, maps and gradients.

goldens/ltpa.npz has the official definition (saumya-jetley/cd_ICLR18_LearnToPayAttention 605c280) in float64, modules
and whole networks at 1/16 of the width, and the full-width networks of SaoYan/LearnToPayAttention (61cf5b2), which ran
as they are; weights and inputs are by the rule of timm_weights.py.
"""

from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import timm_weights
from cases import fast
from flax.traverse_util import flatten_dict, unflatten_dict
from reduced import VGG_STAGES

import fsg_jax as fsg
from fsg_jax.models import SpatialAttention, create_model
from fsg_jax.models.resnet import BatchNorm
from fsg_jax.models.spatial_attention import combine_logits
from fsg_jax.pretrained.names import LEAVES

slow = partial(pytest.param, marks=pytest.mark.slow)
GOLDENS = Path(__file__).parent / "goldens/ltpa.npz"
SCORES = {"dot": "dot", "dp": "dot", "pc": "additive"}
NORMALISED = {"softmax": "softmax", "sigmoid_sum": "sigmoid", "sigmoid_mean": "sigmoid_mean"}


@cache
def goldens():
    with np.load(GOLDENS) as file:
        return dict(file)


def stream(name, shape):
    return jnp.asarray(np.random.default_rng(timm_weights.crc(name)).normal(0, 1, shape))


def nhwc(x):
    return jnp.moveaxis(x, 1, -1)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("kind", [f"{score}_{how}" for score in ("dot", "pc") for how in NORMALISED])
@pytest.mark.parametrize("key", fast(["m1", "m0"]))
def test_one_level(key, kind):
    z, (b, c, d, h, w) = goldens(), goldens()[f"{key}/shape"]
    score, how = kind.split("_", 1)
    module = SpatialAttention(SCORES[score], NORMALISED[how], dropout=0.0)
    local, g = nhwc(stream(f"{key}/l", (b, c, h, w))), stream(f"{key}/g", (b, d))
    draw = {n: timm_weights.draw(f"{key}/{n}", s) for n, s in (("u.weight", (1, c, 1, 1)), ("u.bias", (1,)))}
    params = {"u": draw["u.weight"].reshape(-1), "b": draw["u.bias"][0]} if score == "pc" else {}
    query = jnp.asarray(z[f"{key}/g_projected"]) if c != d else g
    if c != d:
        own = {n: timm_weights.draw(f"{key}/gproj.{n}", s) for n, s in (("weight", (c, d)), ("bias", (c,)))}
        norm = {n: timm_weights.draw(f"{key}/gbn.{n}", (d,)) for n in ("weight", "bias", "running_mean", "running_var")}
        whole = params | {"project": {"kernel": own["weight"].T, "bias": own["bias"]}}
        whole |= {"norm": {"scale": norm["weight"], "bias": norm["bias"]}}
        stats = {"norm": {"mean": norm["running_mean"], "var": norm["running_var"]}}
        context = module.apply({"params": whole, "batch_stats": stats}, local, g)
        np.testing.assert_allclose(context, z[f"{key}/{kind}/context"], rtol=0, atol=1e-10)

    def attend(local, query, params):
        return module.apply({"params": params}, local, query, mutable=["attention"])

    context, sown = attend(local, query, params)
    np.testing.assert_allclose(sown["attention"]["map"], z[f"{key}/{kind}/attention"], rtol=0, atol=1e-10)
    np.testing.assert_allclose(context, z[f"{key}/{kind}/context"], rtol=0, atol=1e-10)
    probe = stream(f"{key}/dctx", (b, c))
    dl, dg, dp = jax.grad(lambda *a: jnp.sum(attend(*a)[0] * probe), (0, 1, 2))(local, query, params)
    np.testing.assert_allclose(dl, nhwc(z[f"{key}/{kind}/dl"]), rtol=1e-5, atol=1e-6)  # kept in float32
    np.testing.assert_allclose(dg, z[f"{key}/{kind}/dg"], rtol=0, atol=1e-10)
    if score == "pc":
        np.testing.assert_allclose(dp["u"], z[f"{key}/{kind}/du"], rtol=0, atol=1e-10)


def torch_name(path, levels, names):
    """The name in the goldens of the official layout or of SaoYan's of one of our leaves."""
    modules, leaf = path[1:-1], path[-1]
    leaf = (LEAVES | {"b": "bias"}).get(leaf, leaf)
    sao = "dense.weight" in names
    if modules[0].startswith("stage"):
        stage, i = (int(n) for n in modules[0].removeprefix("stage").split("_"))
        at = 3 * i + (modules[1] == "bn")
        if sao:
            return f"conv_block{min(stage, 6)}.op.{at + 4 * (stage == 7)}.{leaf}"
        block = {1: "local1", 2: "local1", 3: "local1", 4: "local2", 5: "local3", 6: "glob1", 7: "glob2"}[stage]
        return f"{block}.{at + {2: 6, 3: 12}.get(stage, 0)}.{leaf}"
    level = modules[0][-1]
    index = levels.index(int(level)) if level.isdigit() else None
    if modules[0].startswith("level"):
        if len(modules) == 1:
            name = f"attn{level}.op" if sao else f"u.{index}"
            return f"{name}.{'weight' if leaf == 'u' else leaf}"
        return f"{'projector.op' if sao else {'norm': 'gbn', 'project': 'gproj'}[modules[1]]}.{leaf}"
    if modules[0].startswith("head_norm"):
        return f"hbn.{index}.{leaf}"
    head = "classify" if sao else "cls" if index is None else f"clss.{index}"
    return f"{({'fc': 'dense' if sao else 'fc'}).get(modules[0], head)}.{leaf}"


def model_and_variables(key, **options):
    """The model of a golden in float64, with its weights; all names of the golden must be used."""
    shapes = dict(str(line).split(":") for line in goldens()[f"{key}/names"])
    shapes = {name: tuple(map(int, shape.split("x"))) for name, shape in shapes.items()}
    if key.startswith("sao"):
        options |= {"project": "up", "query_norm": False, "bias": False, "head_norm": False, "norm": BatchNorm}
    else:
        score = "additive" if any(name.startswith("u.") for name in shapes) else "dot"
        options |= {"width": 4, "score": score, "levels": int(key.removeprefix("off").removeprefix("br")[0])}
    model, leaves, left = create_model("vgg_att", num_classes=10, dtype=jnp.float64, **options), {}, set(shapes)
    for path, leaf in flatten_dict(jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))).items():
        if path[0] in ("params", "batch_stats"):
            left.remove(name := torch_name(path, model.attended, shapes))
            tensor = timm_weights.draw(name, shapes[name]) * softened(name, model)
            square = path[-1] == "kernel" and len(leaf.shape) == 2  # a dense layer may be a 1x1 convolution there
            tensor = tensor.reshape(tensor.shape[:2] if square else tensor.shape)
            tensor = tensor.reshape(leaf.shape) if path[-1] in ("u", "b") else tensor
            leaves[path] = jnp.asarray(timm_weights.to_flax(path, tensor))
            assert leaves[path].shape == leaf.shape, (path, name)
    assert not left
    return model, unflatten_dict(leaves)


def softened(name, model):
    """The factor of the goldens that keeps the maps of the official layout soft."""
    if name.startswith("u.") and name.endswith("weight"):
        return 0.1
    if name.startswith("fc."):
        return 0.05 if model.score == "dot" else 1.0
    return 0.1 if model.score == "dot" and name.startswith("gproj.") else 1.0


def run(key, model, variables, shape):
    x = nhwc(stream(f"{key}/x", shape))
    out, sown = jax.jit(partial(model.apply, mutable=["attention", "descriptors"]))(variables, x)
    return x, out, sown


OFFICIAL = [
    "off2_indep_mp",
    *(
        pytest.param(k, marks=pytest.mark.slow)
        for k in ("off1_pc", "off3_pc", "off2_dp", "off3_dp", "off2_indep_lp", "off3_indep_sum")
    ),
]
COMBINED = {"lp": "sum_log_prob", "sum": "sum_logits", "mp": "mean_prob"}


@pytest.mark.parametrize("key", OFFICIAL)
def test_official_layout(key):
    z, combine = goldens(), COMBINED.get(key.split("_")[-1], "concat")
    model, variables = model_and_variables(key, combine=combine)
    x, out, sown = run(key, model, variables, (2, 3, 32, 32))
    out = np.exp(out) if combine == "mean_prob" else out
    np.testing.assert_allclose(out, z[f"{key}/out"], rtol=0, atol=1e-10)
    query = sown["descriptors"]["query"]
    np.testing.assert_allclose(query, z[f"{key}/g"], rtol=0, atol=1e-10)
    for level in model.attended:
        np.testing.assert_allclose(sown["attention"][f"level{level}"]["map"], z[f"{key}/attention{level}"], rtol=1e-6)
    heads = {name for name in variables["params"] if name == "head" or (name[:4] == "head" and name[4:].isdigit())}
    params = {name: value for name, value in variables["params"].items() if name not in heads}
    features = model.clone(num_classes=0).apply({**variables, "params": params}, x)
    np.testing.assert_allclose(features, z[f"{key}/feature"], rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("key", "taps", "normalise"),
    [
        slow("sao_before", "before", "softmax"),
        slow("sao_before_sig", "before", "sigmoid_mean"),
        slow("sao_after", "after", "softmax"),
    ],
)
def test_the_full_width_networks_of_saoyan(key, taps, normalise):
    z = goldens()
    model, variables = model_and_variables(key, taps=taps, normalise=normalise)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == z[f"{key}/nparam"] == 19_855_434
    _, out, sown = run(key, model, variables, (2, 3, 32, 32))
    np.testing.assert_allclose(out, z[f"{key}/logits"], rtol=0, atol=1e-10)
    np.testing.assert_allclose(sown["descriptors"]["query"], z[f"{key}/g"], rtol=0, atol=1e-10)
    for level in (1, 2, 3):
        scores, found = z[f"{key}/c{level}"], sown["attention"][f"level{level}"]["map"]
        expected = jax.nn.softmax(scores, axis=(1, 2)) if normalise == "softmax" else jax.nn.sigmoid(scores)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("key", ["br1_dp", "br2_dp", "br3_dp", "br3_pc"])
def test_gradients_summed_and_averaged(key):
    z, losses = goldens(), fsg.losses.cross_entropy
    names = list(map(str, z[f"{key}/param_names"]))
    for how in ("sum", "mean"):
        model, variables = model_and_variables(key, branch_gradient=how)
        x, label = nhwc(stream(f"{key}/x", (4, 3, 32, 32))), np.arange(4)

        def loss(params, model=model, variables=variables, x=x, label=label):
            return losses(model.apply({**variables, "params": params}, x), {"label": label}).mean()

        value, gradients = jax.jit(jax.value_and_grad(loss))(variables["params"])
        np.testing.assert_allclose(value, z[f"{key}/loss"], rtol=0, atol=1e-10)
        shapes = [str(line).split(":")[0] for line in z[f"{key}/names"]]
        found = {torch_name(("params", *p), model.attended, shapes): g for p, g in flatten_dict(gradients).items()}
        assert found.keys() == set(names)
        norms = [jnp.linalg.norm(found[name]) for name in names]
        np.testing.assert_allclose(norms, z[f"{key}/{how}_gradnorm"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("key", ["att_pc", "att_dp", "att2_pc", "att2_dp", "att3_pc", "att3_dp"])
@pytest.mark.parametrize("classes", [10, 100])
def test_parameters_at_official_width(key, classes):
    levels, score = int(key[3]) if key[3].isdigit() else 1, SCORES[key[-2:]]
    model = create_model("vgg_att", num_classes=classes, levels=levels, score=score)
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == goldens()[f"count/{key}_{classes}"]


def test_the_optimizer_of_the_released_recipe():
    """Torch7's SGD dampens all gradients but the first by 1 - momentum: its rate of 0.2 is one of 0.02 else."""
    z = goldens()
    a, b, p0 = (jnp.asarray(z[f"sgd/{name}"]) for name in ("A", "b", "p0"))

    def path(tx):
        def step(carry, _):
            p, state = carry
            updates, state = tx.update(a @ p - b, state, p)
            p = optax.apply_updates(p, updates)
            return (p, state), p

        return jax.lax.scan(step, (p0, tx.init(p0)), length=30)[1]

    decayed = partial(optax.chain, optax.add_decayed_weights(5e-4))
    rate = optax.scale_by_schedule(lambda t: -0.02 / (1 + 1e-7 * t))
    plain = path(decayed(optax.trace(0.9), rate))
    np.testing.assert_allclose(plain, z["sgd/pytorch_lr.02_m.9"], rtol=0, atol=1e-10)
    first = optax.scale_by_schedule(lambda t: jnp.where(t == 0, 10.0, 1.0))
    dampened = optax.chain(
        first, optax.ema(0.9, debias=False), optax.scale_by_schedule(lambda t: -0.2 / (1 + 1e-7 * t))
    )
    np.testing.assert_allclose(path(decayed(dampened)), z["sgd/torch7_lr.2_m.9"], rtol=0, atol=1e-10)
    nesterov = path(decayed(optax.trace(0.9, nesterov=True), optax.scale(-0.02)))
    np.testing.assert_allclose(nesterov, z["sgd/nesterov_lr.02_m.9_damp0"], rtol=0, atol=1e-10)


def small(**options):
    """A VGG of few, narrow stages with attention, weights by the rule, and images of 12 x 10."""
    options = {"stages": VGG_STAGES, "tapped": (0, 1, 2), "width": 2, "num_classes": 5, **options}
    model, x = create_model("vgg_att", **options), jnp.asarray(timm_weights.images("small/x", 3, 3, 12, 10))
    return model, jax.tree.map(jnp.asarray, timm_weights.fill(model, x)), x


def maps_under(model, variables, x, query=None):
    out, sown = model.apply(variables, x, query=query, mutable=["attention", "descriptors"])
    return out, {level: found["map"] for level, found in sown["attention"].items()}, sown["descriptors"]["query"]


@pytest.mark.parametrize("normalise", ["softmax", "sigmoid", "sigmoid_mean"])
@pytest.mark.parametrize("score", fast(["additive", "dot", "additive_tanh"]))
def test_only_the_additive_score_with_softmax_ignores_the_query(score, normalise):
    """Its gradient is 0, to the bit, and another query changes no map; every other one does both."""
    model, variables, x = small(score=score, normalise=normalise)
    _, maps, query = maps_under(model, variables, x)
    changed = maps_under(model, variables, x, query[::-1] + 0.1)[1]
    gradient = jax.grad(lambda q: model.apply(variables, x, query=q)[:, 0].sum())(query)
    if (score, normalise) == ("additive", "softmax"):
        assert not np.any(gradient)
        jax.tree.map(np.testing.assert_array_equal, changed, maps)
    else:
        assert np.linalg.norm(gradient) > 1e-7
        assert all(np.abs(changed[level] - maps[level]).max() > 0 for level in maps)


def test_what_is_dead_under_the_additive_score_with_softmax():
    """The way from the last map to the descriptor, its projection and the biases of the scores have no gradient."""
    model, variables, x = small(score="additive", normalise="softmax")

    def loss(params):
        return jnp.sum(model.apply({**variables, "params": params}, x) ** 2)

    gradients = flatten_dict(jax.jit(jax.grad(loss))(variables["params"]), sep="/")
    dead = {name for name in gradients if name.startswith(("stage4", "fc", "level1/norm", "level1/project"))}
    dead |= {f"level{level}/b" for level in (1, 2, 3)}
    assert {name for name, gradient in gradients.items() if not np.any(gradient)} == dead


def test_maps_at_the_start_are_soft_and_by_the_rule_of_the_released_code_nearly_one_hot():
    """Features of unit BatchNorm and ReLU, 8 x 8 of 512 channels: the largest weight is about 0.91 and 0.05."""
    x, query = jax.nn.relu(jax.random.normal(jax.random.key(0), (64, 8, 8, 512))), jnp.zeros((64, 512))
    largest = {}
    for initial in ("scaled", "reference"):
        module = SpatialAttention(initial=initial)
        variables = module.init(jax.random.key(1), x[:1], query[:1])
        _, sown = module.apply(variables, x, query, mutable=["attention"])
        largest[initial] = float(sown["attention"]["map"].max((1, 2)).mean())
    assert largest["scaled"] < 0.15
    assert largest["reference"] > 0.8


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_maps_sum_to_one_at_any_size_from_the_least_on(dtype):
    with jax.enable_x64(False):
        model, variables, _ = small(dtype=dtype, score="dot")
        variables = jax.tree.map(lambda leaf: 3 * leaf, variables)  # large scores
        for size in ((5, 5), (13, 30)):
            x = jnp.asarray(timm_weights.images(f"{size}/x", 2, 3, *size))
            out, maps, _ = maps_under(model, variables, x)
            assert np.all(np.isfinite(out))
            for level, found in maps.items():
                step = {"level1": 1, "level2": 1, "level3": 2}[level]
                assert found.shape == (2, -(-size[0] // step), -(-size[1] // step))
                assert found.dtype == jnp.float32
                np.testing.assert_allclose(found.sum((1, 2)), 1, rtol=1e-5)


@pytest.mark.parametrize(("name", "least"), [("vgg16", 17), ("vgg_att", 17), ("resnet_att", 5)])
def test_too_small_images_are_told_the_least_size(name, least):
    model = create_model(name, num_classes=3)
    for size in ((least, least - 1), (1, 64)):
        wanted = rf"images: expected at least {least} x {least} pixels, found {size[0]} x {size[1]}"
        with pytest.raises(ValueError, match=wanted):
            jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *size, 3)))
    jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, least, least, 3)))


@pytest.mark.slow
def test_the_control_has_the_trunk_and_no_attention():
    """The same trunk by the same seed; its class comes from the global descriptor alone."""
    (attentive, _, x), (control, weights, _) = small(), small(attention=None)
    key = jax.random.key(0, impl="unsafe_rbg")  # compiles faster; what is drawn depends on names alone
    ours, theirs = (model.init(key, x)["params"] for model in (attentive, control))
    trunk = {name for name in theirs if name.startswith("stage")} | {"fc"}
    assert theirs.keys() - trunk == {"head_norm", "head"}
    jax.tree.map(np.testing.assert_array_equal, {n: ours[n] for n in trunk}, {n: theirs[n] for n in trunk})
    _, sown = control.apply(weights, x, mutable=["attention"])
    assert "attention" not in sown


def test_probabilities_and_their_loss():
    """The mean of probabilities is one; the product of experts of a single level is its softmax."""
    logits = [jnp.asarray(stream(f"logits{i}", (4, 6))) for i in range(3)]
    mean = combine_logits(logits, "mean_prob")
    expected = sum(jax.nn.softmax(one) for one in logits) / 3
    np.testing.assert_allclose(jnp.exp(mean), expected, rtol=1e-12)
    loss = fsg.losses.cross_entropy(mean, {"label": np.zeros(4, np.int32)})
    np.testing.assert_allclose(loss, -jnp.log(expected[:, 0]), rtol=1e-12)
    for combine in ("sum_log_prob", "sum_logits"):
        product = jax.nn.softmax(combine_logits(logits, combine))
        np.testing.assert_allclose(product, jax.nn.softmax(sum(logits)), rtol=1e-12)


def test_maps_come_with_the_metrics_of_the_evaluation_step():
    with jax.enable_x64(False):
        model, variables, x = small(levels=2)
        state = fsg.init_state(model, fsg.routed(params=optax.sgd(0.1)), jax.random.key(0), x, variables=variables)
        step = fsg.make_eval_step(fsg.losses.cross_entropy, capture=("attention",))
        _, captured = step(state, {"image": x, "label": np.arange(3)})
        assert captured["attention"].keys() == {"level2", "level3"}
        assert not {"attention", "descriptors"} & state.variables.keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score": "cosine"}, "score: expected one of 'dot'"),
        ({"normalise": "softmin"}, r"(?s)normalise: .*did you mean 'softmax'"),
        ({"combine": "mean"}, "combine: expected one of"),
        ({"levels": 4}, "levels: expected an integer from 1 to 3"),
        ({"attention": SpatialAttention()}, "attention: expected None or a factory"),
        ({"branch_gradient": "half"}, "branch_gradient"),
        ({"tapped": ()}, "tapped: expected at least one stage"),
        ({"widths": {"gate3_2": 3}}, "widths: expected names of sites"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        create_model("vgg_att", num_classes=3, **options)


def test_a_query_of_another_shape_is_refused():
    model, variables, x = small(score="dot")
    with pytest.raises(ValueError, match=r"query: expected shape \(3, 4\), found \(3, 16\)"):
        model.apply(variables, x, query=jnp.zeros((3, 16)))


def test_the_depth_of_a_pre_activation_resnet():
    with pytest.raises(ValueError, match=r"depth: expected 9 n \+ 2 layers, found 18"):
        create_model("resnet_att", num_classes=3, depth=18)
