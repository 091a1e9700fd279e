"""load_pretrained against the real modules of timm, whose state dicts it reads, and position tables against theirs."""

from functools import partial

import jax
import numpy as np
import pytest
from google_vit import google_vit
from test_parity_timm import images, jitter, timm, torch, torch_images

import fsg_jax as fsg
from fsg_jax.models.positions import resize_positions
from fsg_jax.pretrained.adapt import adapt_stem

pytestmark = pytest.mark.parity

VITS = [f"vit_{size}_patch16_{side}" for size in ("tiny", "small", "base") for side in (224, 384)]
MODULES = {
    **dict.fromkeys(("resnet18", "resnet34", "resnet50"), timm.models.resnet),
    **dict.fromkeys(VITS, timm.models.vision_transformer),
    **dict.fromkeys(
        ("efficientnet_b0", "tf_efficientnet_b0", "efficientnet_lite0", "tf_efficientnet_lite0"),
        timm.models.efficientnet,
    ),
}


def theirs(name, **options):
    return jitter(getattr(MODULES[name], name)(**options)).eval()


def logits(module, x):
    with torch.no_grad():
        return module(torch_images(x)).numpy()


def assert_same(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("name", MODULES)
def test_logits_of_every_architecture(tmp_path, name):
    module = theirs(name)
    torch.save(module.state_dict(), path := tmp_path / f"{name}.pth")
    pretrained = fsg.load_pretrained(path)
    x = images(1, pretrained.preprocessing.size[0])
    expected = logits(module, x)
    assert expected.shape == (1, 1000)
    assert np.std(expected) > 0.1
    assert_same(jax.jit(pretrained.model.apply)(pretrained.variables, x), expected)
    config = timm.models.get_pretrained_cfg(name)
    if name.startswith("resnet"):
        config = timm.models.get_pretrained_cfg(f"{name}.tv_in1k")
    pre = pretrained.preprocessing
    assert (pre.mean, pre.std, pre.size) == (config.mean, config.std, config.input_size[1:])
    assert (pre.crop, pre.interpolation) == (config.crop_pct, config.interpolation)


@pytest.mark.parametrize("legacy", [True, False])
def test_both_formats_of_torch_give_every_dtype_and_view(tmp_path, legacy):
    base = torch.randn(6, 5)
    state = {
        "a": base,
        "view": base.t()[1:4],
        "half": base.half(),
        "low": base.bfloat16()[::2],
        "double": base.double(),
        "counts": torch.arange(3),
        "one": torch.tensor(2.0),
        "none": torch.zeros(0, 3),
        "flag": torch.tensor([True, False]),
        "parameter": torch.nn.Parameter(torch.randn(3)),
    }
    path = tmp_path / "a.pt"
    torch.save({"epoch": 3, "state_dict": state}, path, _use_new_zipfile_serialization=not legacy)
    found = fsg.pretrained.weight_files.read_weights(path)
    assert list(found) == list(state)
    for name, tensor in state.items():
        assert found[name].dtype.name == str(tensor.dtype).removeprefix("torch.")
        expected = tensor.detach().double().numpy()
        np.testing.assert_array_equal(found[name].astype(np.float64), expected, err_msg=name)


@pytest.mark.parametrize("size", [(96, 160), (320, 256), (224, 224)])
def test_positions_are_resized_as_timm_does(size):
    module = theirs("vit_tiny_patch16_224")
    new = tuple(side // 16 for side in size)
    table = module.pos_embed.detach()
    expected = timm.layers.resample_abs_pos_embed(table, list(new), [14, 14]).numpy()
    np.testing.assert_allclose(resize_positions(table.numpy(), (14, 14), new, "timm"), expected, rtol=0, atol=2e-6)


def test_a_vit_at_another_size(tmp_path):
    module = theirs("vit_tiny_patch16_224")
    torch.save(module.state_dict(), path := tmp_path / "a.pth")
    module.set_input_size((160, 96))
    pretrained = fsg.load_pretrained(path, image_size=(160, 96))
    x = images(1, 160)[:, :, :96]
    assert_same(jax.jit(pretrained.model.apply)(pretrained.variables, x), logits(module, x))


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_stems_are_adapted_as_timm_does(channels):
    kernel = np.random.default_rng(0).normal(size=(7, 7, 3, 5)).astype(np.float32)
    tensor = torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy())
    expected = timm.models.adapt_input_conv(channels, tensor).numpy().transpose(2, 3, 1, 0)
    np.testing.assert_allclose(adapt_stem(kernel, channels), expected, rtol=1e-6)


@pytest.mark.parametrize("form", ["vit_jax", "big_vision", "scan"])
def test_a_vit_of_google(tmp_path, form):
    """The logits of timm's ViT with GELU by tanh."""
    module = theirs("vit_tiny_patch16_224", act_layer=partial(torch.nn.GELU, approximate="tanh"), depth=2)
    if form != "vit_jax":
        module.pos_embed.data[:, 0] = 0
    tensors = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    np.savez(path := tmp_path / "a.npz", **google_vit(tensors, 3, form))
    pretrained = fsg.load_pretrained(path)
    x = images(1, 224)
    assert_same(jax.jit(pretrained.model.apply)(pretrained.variables, x), logits(module, x))
