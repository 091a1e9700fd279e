"""The multi-stream model: counts of the paper at full size, gates by stream, bad input; see also test_registry."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import fast
from hypothesis import given, settings
from hypothesis import strategies as st

from fsg_jax.endoscopy.inputs import INPUT_CHANNELS, order_streams
from fsg_jax.gates.gate import Gate
from fsg_jax.models import Stage, create_model

TINY = {
    "resnet18": {"stage_sizes": (1, 1), "width": 8, "stem": "cifar"},
    "resnet50": {"stage_sizes": (1,), "width": 8},
    "efficientnet_b0": {"stages": (Stage(2, 8, 1, 3, 1),), "stem_features": 8, "features": 12},
    "vit_tiny": {"patch_size": 4, "dim": 24, "depth": 1, "num_heads": 3},
    "vig_tiny": {"patch_size": 4, "dim": 24, "depth": 1, "num_heads": 3},
}

subsets = st.sets(st.sampled_from(sorted(INPUT_CHANNELS)), min_size=1)


def tiny(backbone="vit_tiny", streams=("rgb", "mask"), gate=None, num_classes=2, **kwargs):
    return create_model(
        "multistream",
        backbone=backbone,
        streams=streams,
        gate=gate,
        num_classes=num_classes,
        **{"hidden": 6, "backbone_options": TINY[backbone], **kwargs},
    )


def inputs(streams=("rgb", "mask"), batch=3, size=8, seed=7):
    keys = jax.random.split(jax.random.key(seed), len(INPUT_CHANNELS))
    return {
        name: jax.random.normal(key, (batch, size, size, channels))
        for key, (name, channels) in zip(keys, INPUT_CHANNELS.items(), strict=True)
        if name in streams
    }


def count(size, streams, **kwargs):
    model = create_model("multistream", streams=streams, **kwargs)
    x = {name: jax.ShapeDtypeStruct((1, size, size, INPUT_CHANNELS[name]), jnp.float32) for name in streams}
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    return {k: sum(leaf.size for leaf in jax.tree.leaves(v)) for k, v in variables.items()}, variables


@pytest.mark.parametrize(
    ("streams", "backbones"),
    [
        (("rgb",), 11_176_512),
        (("depth",), 11_170_240),
        (("mask", "depth"), 22_346_752),
        (("rgb", "mask", "depth"), 33_523_264),
    ],
)
def test_parameters_of_the_resnets_of_the_paper(streams, backbones):
    found, variables = count(64, streams, backbone="resnet18", num_classes=1, gate=Gate)
    n = len(streams)
    assert found["params"] == backbones + (512 * n * 128 + 128) + 129
    assert found["gates"] == 960 * n + 512 * n + 128
    assert set(variables["gates"]) == {*streams, "gate_embedding", "gate_hidden"}
    assert set(variables["params"]) == {*streams, "fc1", "head"}
    if n == 2:
        assert found["params"] == 22_346_752 + 131_200 + 129
        assert found["gates"] == 2 * 960 + 1_024 + 128


def test_parameters_of_the_vit_of_the_paper():
    plain, _ = count(384, ("rgb",), backbone="vit_tiny", num_classes=0, hidden=0)
    assert plain == {"params": 5_597_376}
    found, variables = count(384, ("rgb",), backbone="vit_tiny", num_classes=1, hidden=0, gate=Gate)
    assert found["gates"] == 4_608
    assert sum(found.values()) == 5_602_177
    assert set(variables["gates"]) == {"rgb"}
    headed, _ = count(384, ("mask",), backbone="vit_tiny", num_classes=1, gate=Gate)
    assert headed["gates"] == 4_608 + 192 + 128


@pytest.mark.parametrize(
    ("backbone", "features"), fast([("resnet34", 512), ("resnet50", 2048), ("efficientnet_b0", 1280)])
)
def test_other_backbones_at_full_size(backbone, features):
    _, variables = count(64, ("rgb", "depth"), backbone=backbone, num_classes=3, gate=Gate)
    assert variables["gates"]["gate_embedding"]["logits"].shape == (2 * features,)
    assert variables["params"]["fc1"]["kernel"].shape == (2 * features, 128)


@pytest.mark.parametrize("backbone", fast(sorted(TINY), lambda name: name in ("efficientnet_b0", "vit_tiny")))
@pytest.mark.parametrize("batch", [1, 3])
def test_forward_keeps_the_batch_axis(backbone, batch):
    x = inputs(("rgb", "depth"), batch=batch)
    for train in (False, True):
        model = tiny(backbone, ("rgb", "depth"), Gate, num_classes=1)
        variables = jax.eval_shape(model.init, jax.random.key(0), x)
        call = functools.partial(model.apply, train=train, mutable=["batch_stats"])
        assert jax.eval_shape(call, variables, x)[0].shape == (batch, 1)


@pytest.mark.slow
def test_output_is_that_of_its_parts(key):
    """By hand: features of each stream, then the two gated layers."""
    x, streams = inputs(), ("rgb", "mask")
    out, variables = tiny(gate=Gate).init_with_output(key, x)
    backbone = create_model("vit_tiny", num_classes=0, gate=Gate, **TINY["vit_tiny"])
    features = [backbone.apply({k: variables[k][name] for k in ("params", "gates")}, x[name]) for name in streams]
    params, gates = variables["params"], variables["gates"]
    scores = [jax.nn.sigmoid(gates[name]["logits"])[None] for name in ("gate_embedding", "gate_hidden")]
    hidden = (jnp.concatenate(features, -1) * scores[0]) @ params["fc1"]["kernel"] + params["fc1"]["bias"][None]
    hidden = jax.nn.relu(hidden) * scores[1]
    expected = hidden @ params["head"]["kernel"] + params["head"]["bias"][None]
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


def test_streams_have_their_own_weights(key):
    params = tiny().init(key, inputs())["params"]
    a, b = (params[name]["patch_embed"]["proj"]["kernel"] for name in ("rgb", "mask"))
    assert a.shape == b.shape
    assert not np.allclose(a, b)


@settings(max_examples=10, deadline=None)
@given(streams=subsets, data=st.data())
def test_any_subset_in_any_order(streams, data):
    given_order = data.draw(st.permutations(sorted(streams)))
    model = tiny(streams=given_order, gate=Gate)
    variables = jax.eval_shape(model.init, jax.random.key(0), inputs(streams))
    assert order_streams(given_order) == tuple(name for name in ("rgb", "mask", "depth") if name in streams)
    assert set(variables["gates"]) == {*streams, "gate_embedding", "gate_hidden"}
    assert variables["params"]["fc1"]["kernel"].shape == (24 * len(streams), 6)


def test_order_of_the_attribute_does_not_matter(key):
    variables = tiny(gate=Gate).init(key, inputs())
    jax.tree.map(np.testing.assert_array_equal, tiny(streams=("mask", "rgb"), gate=Gate).init(key, inputs()), variables)
    out = tiny(gate=Gate).apply(variables, inputs())
    swapped = tiny(streams=("mask", "rgb"), gate=Gate).apply(variables, dict(reversed(inputs().items())))
    np.testing.assert_array_equal(out, swapped)


def test_dropout_is_off_in_evaluation_and_random_in_training(key):
    variables = tiny().init(key, inputs())
    noisy = tiny(dropout=0.5)
    np.testing.assert_array_equal(noisy.apply(variables, inputs()), tiny().apply(variables, inputs()))
    draws = [noisy.apply(variables, inputs(), train=True, rngs={"dropout": jax.random.key(i)}) for i in (0, 0, 1)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert not np.allclose(draws[0], draws[2])


def test_options_reach_the_backbones():
    low = tiny(dtype=jnp.bfloat16, remat=True)
    variables = jax.eval_shape(low.init, jax.random.key(0), inputs())
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    jaxpr = str(jax.make_jaxpr(low.apply)(variables, inputs()))
    assert "bf16" in jaxpr
    assert "prevent_cse" in jaxpr
    placed = tiny("resnet18", gate=Gate, backbone_options={**TINY["resnet18"], "gate_placement": "block"})
    gates = jax.eval_shape(placed.init, jax.random.key(0), inputs())["gates"]
    assert set(gates["rgb"]) == {"layer1_0", "layer2_0"}


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (inputs(("rgb",)), "rgb, mask.*found rgb"),
        (inputs(("rgb", "mask", "depth")), "rgb, mask.*found depth, mask, rgb"),
        ({}, "rgb, mask.*found none"),
        ({**inputs(), "mask": jnp.ones((3, 8, 8, 1))}, r"mask.*3\).*found \(3, 8, 8, 1\)"),
        ({**inputs(), "rgb": jnp.ones((8, 8, 3))}, r"rgb.*found \(8, 8, 3\)"),
        ({**inputs(), "rgb": jnp.ones((2, 8, 8, 3))}, "found {'rgb': 2, 'mask': 3}"),
        (jnp.ones((3, 8, 8, 3)), "Mapping|rgb, mask"),
    ],
)
def test_impossible_inputs(key, x, words):
    # With the shape checks on, a wrong type is reported by them before the library's own check.
    with pytest.raises(Exception, match=words):
        tiny().init(key, x)
