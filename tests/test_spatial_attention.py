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
from flax.traverse_util import flatten_dict, unflatten_dict

import fsg_jax as fsg
from fsg_jax.models import SpatialAttention, create_model
from fsg_jax.models.resnet import BatchNorm

GOLDENS = Path(__file__).parent / "goldens/ltpa.npz"
SCORES = {"dot": "dot", "pc": "additive"}
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


@pytest.mark.parametrize("kind", [f"{score}_{how}" for score in SCORES for how in NORMALISED])
@pytest.mark.parametrize("key", ["m0", "m1"])
def test_one_level(key, kind):
    z, (b, c, d, h, w) = goldens(), goldens()[f"{key}/shape"]
    score, how = kind.split("_", 1)
    module = SpatialAttention(SCORES[score], NORMALISED[how], dropout=0.0)
    local, g = nhwc(stream(f"{key}/l", (b, c, h, w))), stream(f"{key}/g", (b, d))
    draw = {n: timm_weights.draw(f"{key}/{n}", s) for n, s in (("u.weight", (1, c, 1, 1)), ("u.bias", (1,)))}
    params = {"u": draw["u.weight"].reshape(-1), "b": draw["u.bias"][0]} if score == "pc" else {}
    query = z[f"{key}/g_projected"] if c != d else g
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
    leaf = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var", "b": "bias"}.get(leaf, leaf)
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
    z = goldens()
    shapes = dict(line.split(":") for line in map(str, z[f"{key}/names"]))
    shapes = {name: tuple(map(int, shape.split("x"))) for name, shape in shapes.items()}
    sao = key.startswith("sao")
    if sao:
        options |= {"project": "up", "query_norm": False, "bias": False, "head_norm": False, "norm": BatchNorm}
    else:
        options |= {"width": 4, "score": "additive" if key.endswith("pc") or key.startswith("off2_indep") or key == "off3_indep_sum" else "dot"}
        options["levels"] = int(key[3] if key.startswith("off") else key[2])
    model = create_model("vgg_att", num_classes=10, dtype=jnp.float64, **options)
    leaves, left = {}, set(shapes)
    for path, leaf in flatten_dict(jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))).items():
        if path[0] not in ("params", "batch_stats"):
            continue
        name = torch_name(path, model.attended, shapes)
        left.remove(name)
        tensor = timm_weights.draw(name, shapes[name]) * scaled(key, name)
        tensor = tensor.reshape(leaf.shape) if path[-1] in ("u", "b") else tensor
        tensor = tensor.reshape(tensor.shape[:2]) if path[-1] == "kernel" and len(leaf.shape) == 2 else tensor
        leaves[path] = timm_weights.to_flax(path, tensor)
        assert leaves[path].shape == leaf.shape, (path, name)
    assert not left
    return model, unflatten_dict(leaves)


def scaled(key, name):
    """What keeps the maps of the official layout soft."""
    if key.startswith("sao"):
        return 1.0
    if name.startswith("u.") and name.endswith("weight"):
        return 0.1
    dot = key.endswith("dp")
    return 0.05 if dot and name.startswith("fc.") else 0.1 if dot and key[2:4].startswith("3") | key[3:4].startswith("3") and name.startswith("gproj") else 1.0


def run(key, model, variables, shape):
    x = nhwc(stream(f"{key}/x", shape))
    out, sown = jax.jit(partial(model.apply, mutable=["attention", "descriptors"]))(variables, x)
    return x, out, sown


OFFICIAL = ["off1_pc", "off2_dp", "off3_pc", "off3_dp", "off2_indep_lp", "off3_indep_sum", "off2_indep_mp"]
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
