"""ResNets, ViTs and the layers that models share: gate places, injected parts, parameter counts at full size.

Properties that every model has are in test_registry.py, numbers in test_goldens.py.
"""

import functools

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reduced import reduced

from fsg_jax.gates.channel_attention import EfficientChannelAttention, SqueezeExcite
from fsg_jax.gates.gate import Gate
from fsg_jax.models import ResidualBlock, create_model
from fsg_jax.models.fused_attention import fused_attention
from fsg_jax.models.layers import DropPath
from fsg_jax.models.vit import SelfAttention

SAMPLED = functools.partial(Gate, kind="hard_concrete")
CLOSED = functools.partial(Gate, kind="relu", logits_init="constant", init_value=0.0)

each_kind = pytest.mark.parametrize("name", ["resnet18", "resnet50", "vit_tiny"])
each_attention_gate = pytest.mark.parametrize(
    ("name", "gate"),
    [
        ("resnet18", SqueezeExcite),
        ("vit_tiny", EfficientChannelAttention),
        *(pytest.param(name, EfficientChannelAttention, marks=pytest.mark.slow) for name in ("resnet18", "resnet50")),
        *(pytest.param(name, SqueezeExcite, marks=pytest.mark.slow) for name in ("resnet50", "vit_tiny")),
    ],
)


def tiny(model, gate=None, num_classes=5, **kwargs):
    stem = {"stem": "cifar"} if model.startswith("resnet") else {}  # for images of 8 x 8 pixels
    return reduced(model, gate, num_classes, **{**stem, **kwargs})


def images(batch=4, size=8, seed=7):
    return jax.random.normal(jax.random.key(seed), (batch, size, size, 3))


def loss_and_gradient(model, variables, x):
    """Loss and gradient of all trainable collections in training mode, as the step has them."""
    trained = {k: v for k, v in variables.items() if k != "batch_stats"}
    fixed = {k: v for k, v in variables.items() if k == "batch_stats"}
    rngs = {"gates": jax.random.key(1), "dropout": jax.random.key(2)}

    def loss(trained):
        out, _ = model.apply({**trained, **fixed}, x, train=True, rngs=rngs, mutable=["batch_stats"])
        return jnp.mean((out - 1) ** 2)

    return jax.jit(jax.value_and_grad(loss))(trained)


def assert_trees_close(actual, expected, rtol=1e-5, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), actual, expected)


@each_attention_gate
def test_attention_gates_leave_the_other_params_alone(name, gate):
    key = jax.random.key(0, impl="unsafe_rbg")  # compiles faster
    plain = tiny(name).init(key, images())["params"]
    gated = tiny(name, gate).init(key, images())["params"]
    added = 0
    flat = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(plain)}
    for path, leaf in jax.tree_util.tree_leaves_with_path(gated):
        added += "gate" in jax.tree_util.keystr(path)
        if "gate" not in jax.tree_util.keystr(path):
            np.testing.assert_array_equal(leaf, flat.pop(jax.tree_util.keystr(path)))
    assert added > 0
    assert not flat


@each_attention_gate
def test_every_leaf_gets_a_gradient_beside_attention_gates(key, name, gate):
    model = tiny(name, gate)
    _, gradient = loss_and_gradient(model, model.init(key, images()), images())
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert float(jnp.abs(leaf).max()) > 1e-6, jax.tree_util.keystr(path)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("placement", ["stage", "block"])
def test_closed_gates_of_a_resnet_stop_everything(key, name, placement):
    model = tiny(name, CLOSED, num_classes=0, gate_placement=placement)
    out, _ = model.init_with_output(key, images())
    np.testing.assert_array_equal(out, jnp.zeros_like(out))


def test_closed_residual_gates_leave_the_shortcut(key):
    shape = {"stage_sizes": (1,), "width": 8, "num_classes": 0}
    closed = create_model("resnet18", gate=CLOSED, gate_placement="residual", **shape)
    out, variables = closed.init_with_output(key, images())
    zero_start = create_model("resnet18", zero_init_residual=True, **shape)
    expected, started = zero_start.init_with_output(key, images())
    np.testing.assert_array_equal(out, expected)
    assert float(jnp.abs(out).max()) > 0
    np.testing.assert_array_equal(started["params"]["layer1_0"]["bn2"]["scale"], jnp.zeros(8))
    np.testing.assert_array_equal(variables["params"]["layer1_0"]["bn2"]["scale"], jnp.ones(8))


def test_closed_gates_of_a_vit_leave_the_embedding(key):
    out, variables = tiny("vit_tiny", CLOSED, num_classes=0).init_with_output(key, images())
    p = variables["params"]
    token = np.asarray(p["cls_token"][0, 0] + p["pos_embed"][0, 0])
    expected = (token - token.mean()) / np.sqrt(token.var() + 1e-6)
    np.testing.assert_allclose(out, np.tile(expected, (4, 1)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("placement", "expected"),
    [
        ("stage", {"gate1": (8,), "gate2": (16,)}),
        ("block", {"layer1_0/gate": (8,), "layer1_1/gate": (8,), "layer2_0/gate": (16,)}),
        ("residual", {"layer1_0/gate": (8,), "layer1_1/gate": (8,), "layer2_0/gate": (16,)}),
    ],
)
def test_resnet_gate_places(key, placement, expected):
    gates = tiny("resnet18", Gate, stage_sizes=(2, 1), gate_placement=placement).init(key, images())["gates"]
    found = jax.tree_util.tree_leaves_with_path(gates)
    assert {"/".join(k.key for k in path[:-1]): leaf.shape for path, leaf in found} == expected


def test_vit_gate_places(key):
    gates = tiny("vit_tiny", Gate).init(key, images())["gates"]
    assert {block: sorted(names) for block, names in gates.items()} == {
        "blocks_0": ["gate1", "gate2"],
        "blocks_1": ["gate1", "gate2"],
    }


@each_kind
@pytest.mark.slow
def test_remat_changes_nothing(key, name):
    extra = (
        {"drop_path": 0.5, "dropout": 0.1}
        if name.startswith("vit")
        else {"gate_placement": "block", "stage_sizes": (1,)}
    )
    plain, remat = (tiny(name, SAMPLED, remat=remat, **extra) for remat in (False, True))
    variables = plain.init(key, images())
    # Draws may differ in the last bit: the compiler fuses them otherwise inside a rematerialised block.
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7), remat.init(key, images()), variables
    )
    assert_trees_close(
        loss_and_gradient(remat, variables, images()), loss_and_gradient(plain, variables, images()), 1e-4
    )


class TwoStreams(nn.Module):
    """Two named backbones, concatenated."""

    @nn.compact
    def __call__(self, x, train=False):
        streams = [tiny("resnet18", Gate, num_classes=0, name=name)(x, train=train) for name in ("rgb", "depth")]
        return nn.Dense(2)(jnp.concatenate(streams, axis=-1))


def test_backbones_nest(key):
    out, variables = TwoStreams().init_with_output(key, images())
    assert out.shape == (4, 2)
    assert set(variables["gates"]) == {"rgb", "depth"}


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
@pytest.mark.parametrize(("height", "width", "channels"), [(1, 1, 3), (2, 37, 1), (40, 9, 4)])
def test_resnet_takes_any_image_size(stem, height, width, channels):
    model = tiny("resnet18", Gate, stem=stem)
    x = jax.ShapeDtypeStruct((2, height, width, channels), jnp.float32)
    out, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), x)
    assert out.shape == (2, 5)


def test_batch_norm_statistics_move_only_in_training(key):
    model = tiny("resnet18")
    variables = model.init(key, images())
    _, still = model.apply(variables, images(), mutable=["batch_stats"])
    jax.tree.map(np.testing.assert_array_equal, still["batch_stats"], variables["batch_stats"])
    _, moved = model.apply(variables, images(), train=True, mutable=["batch_stats"])
    before, after = (jax.tree.leaves(v["batch_stats"]) for v in (variables, moved))
    assert all(not np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_resnet_convolutions_start_by_fan_out(key):
    params = tiny("resnet18", stage_sizes=(1, 1), width=32).init(key, images())["params"]
    kernels = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 4]
    assert len(kernels) == 6
    for kernel in kernels:
        height, width, _, features = kernel.shape
        np.testing.assert_allclose(np.std(kernel), (2 / (height * width * features)) ** 0.5, rtol=0.1)


def _group_norm(use_running_average, **kwargs):
    del use_running_average
    return nn.GroupNorm(num_groups=4, **kwargs)


def test_injected_norm_and_conv(key):
    conv = functools.partial(nn.Conv, precision="highest")
    variables = tiny("resnet50", norm=_group_norm, conv=conv).init(key, images())
    assert set(variables) == {"params"}
    assert variables["params"]["layer1_0"]["bn1"]["scale"].shape == (8,)


class TokenMlp(nn.Module):
    """Mixes tokens by one linear layer."""

    @nn.compact
    def __call__(self, x, *, train=False):
        return jnp.swapaxes(nn.Dense(x.shape[1])(jnp.swapaxes(x, 1, 2)), 1, 2)


def test_injected_mixer(key):
    model = tiny("vit_tiny", Gate, mixer=TokenMlp, num_heads=7, class_token=False, pool="avg")
    out, variables = model.init_with_output(key, images())
    assert out.shape == (4, 5)
    assert set(variables["params"]["blocks_0"]["attn"]) == {"Dense_0"}
    assert variables["params"]["pos_embed"].shape == (1, 4, 24)
    assert "cls_token" not in variables["params"]


def test_vit_dropout_is_off_in_evaluation_and_random_in_training(key):
    rates = {"dropout": 0.3, "attention_dropout": 0.3, "drop_path": 0.3}
    variables = tiny("vit_tiny").init(key, images())
    noisy = tiny("vit_tiny", **rates)
    np.testing.assert_array_equal(noisy.apply(variables, images()), tiny("vit_tiny").apply(variables, images()))
    draw = [noisy.apply(variables, images(), train=True, rngs={"dropout": jax.random.key(i)}) for i in (0, 0, 1)]
    np.testing.assert_array_equal(draw[0], draw[1])
    assert not np.allclose(draw[0], draw[2])


def test_both_attention_paths_agree(key):
    variables = tiny("vit_tiny").init(key, images())
    negligible = tiny("vit_tiny", attention_dropout=1e-9)
    out = negligible.apply(variables, images(), train=True, rngs={"dropout": key})
    np.testing.assert_allclose(out, tiny("vit_tiny").apply(variables, images()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("gates", [{}, {"gate_placement": "hidden"}, {"output_gate": "headwise"}])
def test_another_kernel_computes_the_same_attention(key, gates):
    """It takes part in the backward pass, the gates' too, and steps aside where the weights themselves are wanted."""
    calls = []

    def attend(q, k, v):
        calls.append(q.shape)
        return fused_attention(q, k, v, implementation="xla")

    plain = tiny("vit_tiny", Gate, **gates)
    other = plain.clone(mixer=functools.partial(SelfAttention, attend=attend))
    variables = plain.init(key, images())
    assert other.gate_sites() == plain.gate_sites()
    np.testing.assert_array_equal(*(jax.tree.leaves(m.init(key, images()))[-1] for m in (plain, other)))
    calls.clear()
    losses = [jax.value_and_grad(lambda v, m=m: jnp.sum(m.apply(v, images()) ** 2)) for m in (plain, other)]
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), *(f(variables) for f in losses))
    assert calls == [(4, 5, 3, 8)] * plain.depth  # an odd number of tokens, which is padded

    calls.clear()
    kept = [m.apply(variables, images(), mutable=["attention"]) for m in (plain, other)]
    jax.tree.map(np.testing.assert_array_equal, *kept)
    noisy = other.clone(attention_dropout=0.5)
    noisy.apply(variables, images(), train=True, rngs={"dropout": key})
    assert not calls


@pytest.mark.parametrize("heads", [functools.partial(SelfAttention, 2), functools.partial(SelfAttention, num_heads=2)])
def test_what_a_factory_of_attention_sets_stays(key, heads):
    shapes = []

    def attend(q, k, v):
        shapes.append(q.shape)
        return q

    model = tiny("vit_tiny", Gate, mixer=functools.partial(heads, attend=attend))
    model.apply(model.init(key, images()), images())
    assert shapes == [(4, 5, 2, 12)] * model.depth


def test_heads_of_an_injected_attention_divide_the_channels(key):
    model = tiny("vit_tiny", mixer=functools.partial(SelfAttention, 5))
    with pytest.raises(ValueError, match="num_heads: expected a divisor of dim 24, found 5"):
        model.init(key, images())


def test_drop_path_drops_whole_examples(key):
    x = jnp.ones((1000, 3, 2))
    y = np.asarray(DropPath(0.25).apply({}, x, train=True, rngs={"dropout": key}))
    assert np.all(np.isclose(y, 0) | np.isclose(y, 4 / 3))
    np.testing.assert_array_equal(y, np.broadcast_to(y[:, :1, :1], y.shape))
    assert np.isclose(np.mean(y == 0), 0.25, atol=0.05)
    np.testing.assert_array_equal(DropPath(0.25).apply({}, x), x)


def test_drop_path_rises_from_zero(key):
    one, two = (tiny("vit_tiny", depth=depth, drop_path=0.9) for depth in (1, 2))
    variables = one.init(key, images())
    np.testing.assert_array_equal(one.apply(variables, images(), train=True), one.apply(variables, images()))
    with pytest.raises(flax.errors.InvalidRngError, match="dropout"):
        two.apply(two.init(key, images()), images(), train=True)


def count(name, size, **kwargs):
    model = create_model(name, **kwargs)
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    return {k: sum(leaf.size for leaf in jax.tree.leaves(v)) for k, v in variables.items()}


@pytest.mark.parametrize(
    ("name", "num_classes", "parameters"),
    [
        ("resnet18", 0, 11_176_512),
        ("resnet18", 1000, 11_689_512),
        ("resnet34", 1000, 21_797_672),
        ("resnet50", 1000, 25_557_032),
    ],
)
def test_resnet_parameters(name, num_classes, parameters):
    found = count(name, 64, stem="imagenet", num_classes=num_classes, gate=Gate)
    assert found["params"] == parameters
    assert found["gates"] == (3840 if name == "resnet50" else 960)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("vit_tiny", 5_717_416), ("vit_small", 22_050_664), ("vit_base", 86_567_656)],
)
def test_vit_parameters(name, parameters):
    assert count(name, 224, num_classes=1000)["params"] == parameters


def test_parameters_of_the_gated_vit_of_the_paper():
    found = count("vit_tiny", 384, num_classes=1, gate=Gate)
    assert found["gates"] == 4_608
    assert sum(found.values()) == 5_602_177


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny", "efficientnet_b0"])
def test_empty_images(key, name):
    with pytest.raises(ValueError, match=r"\(2, 0, 8, 3\)"):
        tiny(name).init(key, jnp.ones((2, 0, 8, 3)))


def test_patches_must_fit(key):
    with pytest.raises(ValueError, match=r"patch_size.*8 x 10"):
        tiny("vit_tiny").init(key, jnp.ones((2, 8, 10, 3)))


def test_a_residual_block_needs_its_branch(key):
    with pytest.raises(NotImplementedError):
        tiny("resnet18", block=ResidualBlock).init(key, images())
