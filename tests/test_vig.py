"""ViG (gated linear attention): the released model's numbers, the mixer's direction and arms, other image sizes.

goldens/vig.json is from the released code (hustvl/ViG dfb9d32) in float64, with its kernel replaced by the recurrence
and 1/2 in both modes; weights and images are by the rule of timm_weights.py.
"""

import json
from functools import cache, partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import timm_weights
from cases import fast
from flax.traverse_util import flatten_dict
from reduced import inputs, reduced, variables

import fsg_jax as fsg
from experiments import build
from experiments.config import ViG, in_arm
from experiments.configs import CONFIGS
from fsg_jax.gates.gate import Gate
from fsg_jax.models import BidirectionalGLA, create_model
from fsg_jax.models.convolution import conv_general_dilated
from fsg_jax.models.positions import resize_positions

GOLDENS = json.loads((Path(__file__).parent / "goldens/vig.json").read_text())["models"]
SMALL = {"patch_size": 16, "dim": 64, "num_heads": 1, "depth": 2}
MODELS = {
    "A_t_p16_64": ("vig_tiny", (64, 64), SMALL),
    "B_s_p4_32": ("vig_small", (32, 32), {"patch_size": 4, "dim": 128, "num_heads": 2, "depth": 2}),
    "C_t_p16_64_at80": ("vig_tiny", (80, 96), SMALL | {"grid": (4, 4)}),
    "D_b_p16_64_ls": ("vig_base", (64, 64), SMALL | {"dim": 192, "num_heads": 3, "depth": 1, "layer_scale": 1.0}),
}
ARMS = {
    "no locality": {"locality": False},
    "no directions": {"directional": False},
    "neither": {"locality": False, "directional": False},
}


def close(found, golden, name):
    """Of an array of tokens, by its norm and a random projection."""
    probe = np.random.default_rng(timm_weights.crc(f"{name}/probe")).normal(0, 1, found.shape)
    norm, projection = golden
    np.testing.assert_allclose(np.linalg.norm(found), norm, rtol=2e-5)
    np.testing.assert_allclose((probe * np.asarray(found)).sum(), projection, rtol=0, atol=4e-5 * norm)


@pytest.mark.parametrize("key", fast(sorted(GOLDENS), lambda key: key[0] in "BC"))
def test_released_model(key):
    golden, (name, size, options) = GOLDENS[key], MODELS[key]
    model, x = create_model(name, num_classes=10, **options), jnp.asarray(timm_weights.images(f"{key}/x", 2, 3, *size))
    params = jax.tree.map(jnp.asarray, timm_weights.fill(model, x)["params"])

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def step(params):
        logits, sown = model.apply({"params": params}, x, capture_intermediates=True)
        inner = sown["intermediates"]
        taps = (inner["patch_embed"]["__call__"][0], inner["blocks_0"]["attn"]["__call__"][0])
        return fsg.losses.cross_entropy(logits, {"label": np.array(golden["labels"])}).mean(), (logits, taps)

    (loss, (logits, (stem, mixed))), gradients = step(params)
    expected = np.array(golden["logits"])
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-5 * np.abs(expected).max())
    np.testing.assert_allclose(loss, golden["loss"], rtol=1e-5)
    close(stem.reshape(2, -1, stem.shape[-1]), golden["stem"], f"{key}/stem")
    close(mixed, golden["b0_mixer"], f"{key}/b0_mixer")
    names = timm_weights.torch_names({"params": params})
    norms = {names["params", *path]: np.linalg.norm(g) for path, g in flatten_dict(gradients).items()}
    assert norms.keys() == golden["gradients"].keys()
    for parameter, norm in golden["gradients"].items():
        np.testing.assert_allclose(norms[parameter], norm, rtol=1e-4, err_msg=parameter)


@pytest.mark.parametrize(
    ("name", "parameters", "block"),
    [
        ("vig_tiny", 5_834_536, 451_136),
        ("vig_small", 22_615_144, 1_786_880),
        ("vig_base", 89_022_184, 7_112_576),
    ],
)
def test_parameters(name, parameters, block):
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    params = jax.eval_shape(create_model(name, num_classes=1000, depth=1).init, jax.random.key(0), image)["params"]
    size = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))  # noqa: E731
    assert size(params["blocks_0"]) == block
    assert size(params) + 11 * block == parameters


@pytest.mark.slow
def test_initial_weights():
    """The released rules, and that the attention starts switched off by the epsilon of its norm."""
    x = jnp.asarray(timm_weights.images("x", 1, 3, 64, 64))
    model = create_model("vig_tiny", num_classes=10, depth=1)
    variables = jax.jit(model.init)(jax.random.key(0), x)
    params, bound = variables["params"], 2**-2.5 * 6**0.5
    attn, stem = params["blocks_0"]["attn"], params["patch_embed"]
    for layer, fans in (("qkv_proj", 3 * 192), ("o_proj", 2 * 192), ("gk_down", 208), ("in_proj", 9 + 9 * 192)):
        kernel = np.abs(attn[layer]["kernel"])
        assert 0.9 * bound / fans**0.5 < kernel.max() <= bound / fans**0.5, layer
    assert float(np.std(attn["in_proj"]["kernel"])) == pytest.approx(0.0059, rel=0.05)
    for layer, fan_in in (("conv1", 243), ("conv2", 864)):
        for leaf in ("kernel", "bias"):
            assert 0.8 * fan_in**-0.5 < np.abs(stem[layer][leaf]).max() <= fan_in**-0.5
    assert not any(np.any(attn[layer]["bias"]) for layer in ("gk_up", "g_proj"))
    assert float(np.std(params["blocks_0"]["mlp"]["gate_proj"]["kernel"])) == pytest.approx(0.02, rel=0.02)
    taps = model.apply(variables, x, capture_intermediates=lambda module, _: module.name == "g_norm")[1]
    normed = taps["intermediates"]["blocks_0"]["attn"]["g_norm"]["__call__"][0]
    assert 0 < np.abs(normed).mean() < 1e-3


@cache
def mixer_and_weights(**options):
    mixer = BidirectionalGLA(2, **options)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 12, 8)), jnp.float32)
    shapes = jax.eval_shape(partial(mixer.init, grid=(3, 4)), jax.random.key(0), x)
    rng = np.random.default_rng(1)
    return mixer, jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape), jnp.float32), shapes), x


@pytest.mark.parametrize("options", fast([{}, *ARMS.values()]), ids=["all", *ARMS])
def test_turning_the_image_and_swapping_the_gates_turns_the_output(options):
    """By 180 degrees, which is the order of the patches reversed; the convolution's kernel turns too."""
    mixer, weights, x = mixer_and_weights(**options)
    params = dict(weights["params"])
    if mixer.directional:
        swap = lambda leaf: jnp.concatenate(jnp.split(leaf, 2, -1)[::-1], -1)  # noqa: E731
        params["gk_up"] = jax.tree.map(swap, params["gk_up"])
    if mixer.locality:
        params["in_proj"] = {"kernel": params["in_proj"]["kernel"][::-1, ::-1]}
    turned = mixer.apply({"params": params}, x[:, ::-1], grid=(3, 4))[:, ::-1]
    expected = mixer.apply(weights, x, grid=(3, 4))
    np.testing.assert_allclose(turned, expected, rtol=0, atol=2e-5 * np.abs(expected).max())
    if mixer.directional:
        unswapped = mixer.apply({"params": {**params, "gk_up": weights["params"]["gk_up"]}}, x[:, ::-1], grid=(3, 4))
        assert not np.allclose(unswapped[:, ::-1], expected, rtol=1e-2)


@pytest.mark.parametrize("options", ARMS.values(), ids=ARMS)
def test_arms_leave_out_their_weights(options):
    all_weights, weights = (set(mixer_and_weights(**o)[1]["params"]) for o in ({}, options))
    left_out = {"in_proj", "g_proj", "l_norm"} if not options.get("locality", True) else set()
    assert all_weights - weights == left_out
    half = mixer_and_weights(**options)[1]["params"]["gk_up"]["kernel"].shape[-1]
    assert half == (8 if options.get("directional", True) else 4)


def test_the_fast_depthwise_convolution_computes_the_same():
    mixer, weights, x = mixer_and_weights()
    ours = mixer.clone(conv=partial(nn.Conv, conv_general_dilated=conv_general_dilated))
    expected = mixer.apply(weights, x, grid=(3, 4))
    np.testing.assert_allclose(ours.apply(weights, x, grid=(3, 4)), expected, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sizes"),
    [("vig_tiny", {(37, 30): (10, 8)}), ("vit_tiny", {(36, 32): (9, 8)})],
)
def test_images_of_other_sizes(name, sizes):
    """The table is resized by the rule of the model; images of the first size are left as they were."""
    plain = reduced(name, depth=1)
    model, weights = plain.clone(grid=(3, 2)), variables(name, depth=1)
    np.testing.assert_array_equal(model.apply(weights, inputs(name)), plain.apply(weights, inputs(name)))
    for size, grid in sizes.items():
        x = jnp.asarray(timm_weights.images("other", 2, 3, *size))
        found = model.apply(weights, x)
        table, rule = weights["params"]["pos_embed"], "torch" if name == "vig_tiny" else "timm"
        resized = resize_positions(np.asarray(table), (3, 2), grid, rule)
        own = {**weights, "params": {**weights["params"], "pos_embed": jnp.asarray(resized)}}
        np.testing.assert_allclose(found, plain.apply(own, x), rtol=1e-4, atol=1e-5)


def test_what_the_table_is_for_must_be_known():
    x, weights = jnp.asarray(timm_weights.images("other", 2, 3, 16, 16)), variables("vit_tiny")
    with pytest.raises(
        ValueError, match=r"pos_embed \(give `grid`\): expected the positions of a square grid, found 6"
    ):
        reduced("vit_tiny").apply(weights, x)
    with pytest.raises(ValueError, match=r"pos_embed: expected \(1, 17, 24\), for 4 x 4 patches, found \(1, 7, 24\)"):
        reduced("vit_tiny", grid=(4, 4)).apply(weights, x)
    with pytest.raises(ValueError, match=r"images of 3 x 2 patches, for interpolate is None, found 4 x 4"):
        reduced("vit_tiny", grid=(3, 2), interpolate=None).apply(weights, x)


def test_bicubic_positions_are_those_of_pytorch():
    """By hand, from one row of 4 to 8: centres at -0.25, 0.25, ..., taps beyond the ends on them, a = -0.75."""
    table = np.array([1.0, 2.0, 4.0, 3.0]).reshape(1, 4, 1)
    found = resize_positions(table, (1, 4), (1, 8), "torch")[0, :, 0]
    near = lambda x: (1.25 * x - 2.25) * x * x + 1  # noqa: E731
    far = lambda x: -0.75 * (((x - 5) * x + 8) * x - 4)  # noqa: E731
    w = [far(1.25), near(0.25), near(0.75), far(1.75)]  # of the taps around a centre at .25
    assert sum(w) == pytest.approx(1)
    assert found[1] == pytest.approx(w[0] * 1 + w[1] * 1 + w[2] * 2 + w[3] * 4)
    assert found[0] == pytest.approx(w[3] * 1 + w[2] * 1 + w[1] * 1 + w[0] * 2)
    np.testing.assert_allclose(resize_positions(jnp.asarray(table), (1, 4), (1, 8), "torch")[0, :, 0], found, rtol=1e-6)


@pytest.mark.parametrize("name", ["vit_tiny", "vig_tiny"])
@pytest.mark.parametrize(("kind", "values"), [("elementwise", 24), ("headwise", 3)])
def test_output_gate_of_the_input(name, kind, values):
    """With weights of 0 all its values are 1/2; its weights are parameters."""
    model, weights = reduced(name, None, output_gate=kind), variables(name, None, output_gate=kind)
    kernel = weights["params"]["blocks_0"]["attn"]["output_gate"]["kernel"]
    assert kernel.shape == (24, values)
    assert "gates" not in weights
    x = inputs(name)
    zero = jax.tree_util.tree_map_with_path(lambda p, w: 0 * w if "output_gate" in str(p) else w, weights)
    last = "proj" if name == "vit_tiny" else "o_proj"
    halved = jax.tree_util.tree_map_with_path(
        lambda p, w: w / 2 if "'attn'" in str(p) and f"'{last}'" in str(p) and "kernel" in str(p) else w, weights
    )
    bare = {"params": {k: v for k, v in halved["params"].items()}}
    for block in ("blocks_0", "blocks_1"):
        attn = {k: v for k, v in bare["params"][block]["attn"].items() if k != "output_gate"}
        bare["params"][block] = {**bare["params"][block], "attn": attn}
    np.testing.assert_allclose(model.apply(zero, x), reduced(name, None).apply(bare, x), rtol=1e-4, atol=1e-5)
    assert not np.allclose(model.apply(weights, x), model.apply(zero, x), rtol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "output_gate"),
    [
        ("vit_tiny", "elementwise"),
        ("vit_tiny", "headwise"),
        ("vig_tiny", "headwise"),
    ],
)
def test_pruning_with_an_output_gate(name, output_gate):
    """`prune` itself compares what is left with the masked network."""
    options = {"gate_placement": "hidden", "output_gate": output_gate, "depth": 1}
    model, weights = reduced(name, Gate, **options), variables(name, Gate, **options)
    pruned = fsg.prune(model, weights, inputs(name), budget={"params": "80%"}, divisor=1, min_keep=1)
    assert pruned.table.parameters[1] <= 0.8 * pruned.table.parameters[0]
    removed = {path.rpartition("/")[2] for path in pruned.model.widths}
    assert removed
    assert ("attn/gate" in str(pruned.kept)) == (name == "vit_tiny")


@pytest.mark.parametrize(
    ("name", "options", "size", "words"),
    [
        ("vig_tiny", {"patch_size": 7}, 28, "patch_size: expected an even number"),
        ("vig_tiny", {"patch_size": 16}, 12, "images: expected 16 x 16 pixels"),
        ("vig_tiny", {"dim": 20, "patch_size": 4}, 12, "dim: expected a multiple of twice the 3 heads"),
        ("vig_tiny", {"class_token": True, "patch_size": 4}, 12, "tokens: expected 3 x 3 patches and no other token"),
    ],
)
def test_what_a_vig_cannot_be(name, options, size, words):
    model = create_model(name, num_classes=2, depth=1, **options)
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, size, size, 3)))


def test_a_mixer_without_such_a_gate_takes_none():
    with pytest.raises(ValueError, match="output_gate: expected None for the mixer"):
        create_model("vit_tiny", num_classes=2, mixer=nn.Dense, output_gate="headwise")


@pytest.mark.slow
def test_arms_of_the_experiment():
    """Parameters near those of the ViT with the same recipe, and every arm as it is named."""
    experiment, vit = (CONFIGS[name][0] for name in ("cifar100_vig_tiny", "cifar100_vit_tiny"))
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)

    def variables_of(experiment, arm):
        arm = in_arm(experiment, arm)
        model = build.make_model(arm.gate, arm.arm, "float32", 100, **arm.model.options())
        return flatten_dict(jax.eval_shape(model.init, jax.random.key(0), image), sep="/")

    def parameters(found):
        return sum(leaf.size for path, leaf in found.items() if path.startswith("params/"))

    counts = [parameters(variables_of(e, "baseline")) for e in (experiment, vit)]
    assert counts == [5_614_756, 5_380_132]
    baseline = variables_of(experiment, "baseline").keys()
    for name, _ in experiment.added_arms:
        found = variables_of(experiment, name)
        blocks = {path.replace("blocks_0/", "") for path in found if "blocks_0/" in path}
        assert ("params/attn/proj/kernel" in blocks) == name.startswith("softmax"), name
        assert ("params/attn/g_proj/kernel" not in blocks) == name.startswith(("softmax", "no_locality")), name
        assert ("params/attn/output_gate/kernel" in blocks) == name.startswith("output"), name
        assert ("gates/gate1/logits" in blocks) == name.endswith("fsg_gr"), name
        assert ("gates/attn/gate/logits" in blocks) == (name == "static_output"), name
    half = variables_of(experiment, "no_directions")["params/blocks_0/attn/gk_up/kernel"].shape
    assert half == (16, 96)
    assert variables_of(vit, "baseline").keys() != baseline


def test_the_softmax_arm_has_no_arms_of_the_other():
    with pytest.raises(ValueError, match=r"model.mixer: expected gla for model.locality=False, found softmax"):
        ViG(mixer="softmax", locality=False).options()
