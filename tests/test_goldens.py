"""Every registered model against timm 1.0.31, which ran in float64: logits, and one training step.

goldens/record.py makes the goldens of reduced models. Those at full size are of the pretrained configurations named
``resnet18.tv_in1k``, ``vit_tiny_patch16_224.augreg_in21k_ft_in1k`` and so on, with weights and images by the rule of
timm_weights.py; where ``damped`` matches a name, the weight is times 0.25, so that deep layers stay visible. Kept are
the first 8 of 1000 logits of both images, the largest and a random projection of all.
"""

import json
import re
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import timm_weights
from flax.traverse_util import flatten_dict
from golden_steps import trained
from reduced import REDUCED as OPTIONS
from reduced import by_family, inputs, reduced, variables

from fsg_jax.models import create_model, list_models

GOLDENS = Path(__file__).parent / "goldens"
REDUCED = json.loads((GOLDENS / "reduced.json").read_text())
FULL = json.loads((GOLDENS / "full_size.json").read_text())
each_model = pytest.mark.parametrize("name", list_models())
each_family = pytest.mark.parametrize("name", list(map(by_family, list_models())))
each_full_size = pytest.mark.parametrize("key", sorted(FULL))


@each_model
def test_logits(name):
    """The gated model in evaluation, to the precision of float32."""
    expected = np.array(REDUCED[name]["logits"])
    found = jax.jit(reduced(name).apply)(variables(name), inputs(name))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@each_family
def test_training_step(name):
    """Gradients of every leaf, through gates that moved before the weights, and statistics of BatchNorm."""
    golden = REDUCED[name]
    changes, metrics = trained(name)
    np.testing.assert_allclose(metrics["loss"], golden["loss"], rtol=1e-5)
    names = timm_weights.torch_names(changes)
    assert sorted(names.values()) == sorted(golden["changes"])
    for path, change in flatten_dict(changes).items():
        norm, projection = golden["changes"][names[path]]
        change = timm_weights.to_torch(path, np.asarray(change))
        probe = np.random.default_rng(timm_weights.crc(f"{names[path]}/probe")).normal(0, 1, change.shape)
        # The change is the difference of two float32 numbers of size 1: besides the relative error, 1e-7 of each.
        noise = OPTIONS[name].noise * (1e-5 * norm + 2e-7 * change.size**0.5)
        np.testing.assert_allclose(np.linalg.norm(change), norm, rtol=0, atol=noise, err_msg=names[path])
        np.testing.assert_allclose(np.sum(probe * change), projection, rtol=0, atol=4 * noise, err_msg=names[path])


@each_family
def test_every_leaf_gets_a_finite_gradient(name):
    changes, _ = trained(name)
    for path, change in flatten_dict(changes, sep="/").items():
        assert np.all(np.isfinite(change)), path
        assert (np.linalg.norm(change) > 1e-3) != bool(re.fullmatch(OPTIONS[name].shifts, path)), path


def at_full_size(key):
    golden = FULL[key]
    return golden, create_model(golden["model"], num_classes=1000, **golden["options"]), golden["size"]


@each_full_size
def test_names_and_shapes_at_full_size(key):
    """Every parameter of the named variant of timm and no other, by the CRC of their list; nothing is computed."""
    golden, model, size = at_full_size(key)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32))
    names = timm_weights.torch_names(shapes)
    found = {names[path]: timm_weights.torch_shape(path, leaf.shape) for path, leaf in flatten_dict(shapes).items()}
    kept = {name: shape for name, shape in found.items() if "running_" not in name}
    lines = sorted(re.sub("(x1)+$", "", f"{name}:{'x'.join(map(str, shape))}") for name, shape in kept.items())
    assert sum(map(np.prod, kept.values())) == golden["parameters"]
    assert zlib.crc32("\n".join(lines).encode()) == golden["names"]


@pytest.mark.slow
@each_full_size
def test_logits_at_full_size(key):
    golden, model, size = at_full_size(key)
    x = timm_weights.images(f"{key}/x", 2, 3, size, size)

    def value(name, shape):
        weights = timm_weights.draw(name, shape).astype(np.float32)
        return weights * np.float32(0.25) if golden["damped"] and re.search(golden["damped"], name) else weights

    logits = np.asarray(jax.jit(model.apply)(timm_weights.fill(model, x, value), x), np.float64)
    tolerance = (2e-4 if "efficientnet" in key else 2e-5) * golden["largest"]
    np.testing.assert_allclose(logits[:, :8], golden["first"], rtol=0, atol=tolerance)
    probe = np.random.default_rng(zlib.crc32(b"probe")).normal(0, 1, logits.shape)
    np.testing.assert_allclose(np.sum(probe * logits), golden["projection"], rtol=0, atol=tolerance * logits.size**0.5)
