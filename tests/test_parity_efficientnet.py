"""EfficientNets against timm's, with the same weights."""

import jax
import numpy as np
import pytest
from test_parity_timm import images, jitter, timm, torch, torch_images
from timm_weights import from_torch

from fsg_jax.models import Stage, create_model

pytestmark = pytest.mark.parity


LITE = {"efficientnet_lite0": "tf_efficientnet_lite0"}  # ours has TensorFlow's padding and epsilon


@pytest.fixture(scope="module")
def theirs():
    module = timm.models.efficientnet.efficientnet_b0(num_classes=7)
    return jitter(module)


@pytest.mark.parametrize("size", [64, 45])
@pytest.mark.parametrize("name", ["efficientnet_b0", "tf_efficientnet_b0", "efficientnet_lite0"])
def test_outputs(name, size):
    theirs = jitter(getattr(timm.models.efficientnet, LITE.get(name, name))(num_classes=7))
    ours = create_model(name, num_classes=7)
    x = images(batch=2, size=size)
    variables = from_torch(ours, x, theirs.state_dict())
    with torch.no_grad():
        expected = theirs.eval()(torch_images(x)).numpy()
    np.testing.assert_allclose(jax.jit(ours.apply)(variables, x), expected, rtol=1e-3, atol=2e-4)


def test_in_training(theirs):
    ours = create_model("efficientnet_b0", num_classes=7)
    x = images(batch=4, size=64)
    variables = from_torch(ours, x, theirs.state_dict())
    with torch.no_grad():
        expected = theirs.train()(torch_images(x)).numpy()
    out, new = jax.jit(lambda v: ours.apply(v, x, train=True, mutable=["batch_stats"]))(variables)
    np.testing.assert_allclose(out, expected, rtol=1e-3, atol=2e-3)
    moved = from_torch(ours, x, theirs.state_dict())["batch_stats"]

    def check(path, mean, wanted):
        if path[-1].key == "mean":
            np.testing.assert_allclose(mean, wanted, rtol=1e-3, atol=2e-3, err_msg=jax.tree_util.keystr(path))

    jax.tree_util.tree_map_with_path(check, new["batch_stats"], moved)
    for name in ("stem_bn", "top_bn"):
        n = 4 * {"stem_bn": 32, "top_bn": 2}[name] ** 2
        old = 0.9 * variables["batch_stats"][name]["var"]
        biased = (moved[name]["var"] - old) * (n - 1) / n
        np.testing.assert_allclose(new["batch_stats"][name]["var"], old + biased, rtol=1e-3, atol=1e-4)


def test_initial_weights_have_the_same_spread():
    torch.manual_seed(0)
    rows = [["ds_r1_k3_s1_e1_c64_se0.25"], ["ir_r1_k5_s2_e3_c64_se0.25"]]
    module = timm.models.efficientnet.EfficientNet(
        timm.models.efficientnet.decode_arch_def(rows), num_classes=0, num_features=128, stem_size=64
    )
    stages = (Stage(1, 64, 1, 3, 1), Stage(3, 64, 1, 5, 2))
    ours = create_model("efficientnet_b0", num_classes=0, stages=stages, stem_features=64, features=128)
    params = jax.jit(ours.init)(jax.random.key(0), images(size=8))["params"]

    def check(path, a, b):
        np.testing.assert_allclose(np.std(a), np.std(b), rtol=0.15, err_msg=jax.tree_util.keystr(path))

    jax.tree_util.tree_map_with_path(check, params, from_torch(ours, images(size=8), module.state_dict())["params"])
