"""EfficientNet: counts at full size, gate places, stochastic depth, initial weights; see also test_registry."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fsg_jax.gates.gate import Gate
from fsg_jax.models import Stage, create_model

STAGES = (Stage(1, 8, 1, 3, 1), Stage(3, 16, 2, 5, 2))
ONE = (Stage(2, 8, 1, 3, 1),)


def tiny(num_classes=5, gate=None, **kwargs):
    options = {"stages": STAGES, "stem_features": 8, "features": 32, **kwargs}
    return create_model("efficientnet_b0", num_classes=num_classes, gate=gate, **options)


def images(batch=4, size=16):
    return jax.random.normal(jax.random.key(7), (batch, size, size, 3))


@pytest.mark.parametrize(("num_classes", "parameters"), [(0, 4_007_548), (1000, 5_288_548)])
def test_parameters(num_classes, parameters):
    model = create_model("efficientnet_b0", num_classes=num_classes, gate=Gate)
    variables = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32))
    found = {k: sum(leaf.size for leaf in jax.tree.leaves(v)) for k, v in variables.items()}
    assert found == {"params": parameters, "gates": 784, "batch_stats": 42_016}
    assert {name: gate["logits"].shape for name, gate in variables["gates"].items()} == {
        f"gate{i}": (channels,) for i, channels in enumerate((16, 24, 40, 80, 112, 192, 320), 1)
    }


def test_lite_has_the_parameters_of_its_release(key):
    """4,652,008, as in timm; the expansions of B0 without squeeze-and-excitation."""
    model = create_model("efficientnet_lite0", num_classes=1000)
    shapes = jax.eval_shape(model.init, key, jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == 4_652_008
    assert not [path for path, _ in jax.tree_util.tree_leaves_with_path(shapes) if any(k.key == "se" for k in path)]


@pytest.mark.parametrize(
    ("placement", "expected"),
    [
        ("stage", {"gate1": 8, "gate2": 16}),
        ("block", {"stage1_0/gate": 8, "stage2_0/gate": 16, "stage2_1/gate": 16}),
    ],
)
def test_gate_places(key, placement, expected):
    variables = jax.eval_shape(tiny(gate=Gate, gate_placement=placement).init, key, images())
    found = jax.tree_util.tree_leaves_with_path(variables["gates"])
    assert {"/".join(k.key for k in path[:-1]): leaf.size for path, leaf in found} == expected


@pytest.mark.parametrize(("height", "width", "channels"), [(1, 1, 3), (2, 37, 1), (40, 9, 4)])
def test_any_image_size(height, width, channels):
    x = jax.ShapeDtypeStruct((2, height, width, channels), jnp.float32)
    out, _ = jax.eval_shape(tiny(gate=Gate).init_with_output, jax.random.key(0), x)
    assert out.shape == (2, 5)


def test_full_size_halves_five_times(key):
    def shapes(x):
        _, kept = model.init_with_output(key, x, capture_intermediates=True)
        return kept["intermediates"]

    model = create_model("efficientnet_b0", num_classes=0)
    kept = jax.eval_shape(shapes, jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32))
    assert kept["__call__"][0].shape == (2, 1280)
    sizes = [kept[f"stage{i}_0"]["__call__"][0].shape[1] for i in range(1, 8)]
    assert sizes == [112, 56, 28, 14, 14, 7, 7]


def random_variables(model):
    """Variables off their initial values, without the cost of compiling the initialisation."""
    generator = np.random.default_rng(0)

    def draw(path, leaf):
        if path[-1].key in ("var", "scale"):
            return generator.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        return generator.normal(0, 0.3, leaf.shape).astype(np.float32)

    shapes = jax.eval_shape(model.init, jax.random.key(0), images())
    return jax.tree_util.tree_map_with_path(draw, shapes)


def in_training(model, variables, *kept):
    @jax.jit
    def run(variables):
        rngs = {"dropout": jax.random.key(1)}
        mutable = ["batch_stats", *kept]
        return model.apply(
            variables, images(), train=True, rngs=rngs, mutable=mutable, capture_intermediates=bool(kept)
        )

    return run(variables)


@pytest.mark.slow
def test_stochastic_depth_drops_only_branches_that_have_a_shortcut():
    model = tiny(num_classes=0, drop_path=0.75)
    variables = random_variables(model)
    kept = in_training(model, variables, "intermediates")[1]["intermediates"]
    before, after = (kept[f"stage2_{j}"]["__call__"][0] for j in (0, 1))
    branch = kept["stage2_1"]["project_bn"]["__call__"][0]
    rate = 0.75 * 2 / 3  # the last of three blocks
    whole = [np.allclose(after[i], before[i] + branch[i] / (1 - rate), rtol=1e-4, atol=1e-4) for i in range(4)]
    gone = [np.array_equal(after[i], before[i]) for i in range(4)]
    assert gone == [not one for one in whole]
    assert 0 < sum(gone) < 4
    np.testing.assert_array_equal(kept["stage2_0"]["project_bn"]["__call__"][0], before)
    evaluated = jax.jit(tiny(num_classes=0).apply)(variables, images())
    np.testing.assert_allclose(jax.jit(model.apply)(variables, images()), evaluated, rtol=1e-6)


@pytest.mark.slow
def test_dropout_thins_the_features():
    noisy, plain = tiny(num_classes=0, stages=ONE, dropout=0.5), tiny(num_classes=0, stages=ONE)
    variables = random_variables(plain)
    (out, _), (full, _) = in_training(noisy, variables), in_training(plain, variables)
    assert np.all(np.isclose(out, 0, atol=1e-6) | np.isclose(out, 2 * full, rtol=1e-4))
    assert 0.3 < np.mean(np.asarray(out) == 0) < 0.7


@pytest.mark.slow
def test_convolutions_start_by_fan_out(key):
    stages = (Stage(4, 32, 1, 3, 1),)
    params = jax.jit(tiny(stages=stages, stem_features=32, features=64).init)(key, images())["params"]
    kernels = jax.tree_util.tree_leaves_with_path(params)
    kernels = [(path[-2].key, leaf) for path, leaf in kernels if leaf.ndim == 4]
    assert len(kernels) == 5
    for name, kernel in kernels:
        height, width, _, features = kernel.shape
        fan_out = height * width * (1 if name == "depthwise_conv" else features)
        np.testing.assert_allclose(np.std(kernel), (2 / fan_out) ** 0.5, rtol=0.1, err_msg=name)
