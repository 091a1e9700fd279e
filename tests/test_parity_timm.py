"""The models and the data-dependent gates against timm, with the same weights."""

import warnings

import jax
import numpy as np
import pytest
from timm_weights import from_torch
from torchvision_operators import declare_missing_operators

from fsg_jax.gates.channel_attention import EfficientChannelAttention, SqueezeExcite
from fsg_jax.models import create_model

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity


def _import_timm():
    """timm imports torchvision, whose build for another device than torch's lacks compiled operators."""
    declare_missing_operators()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import timm.layers
            import timm.models.resnet
            import timm.models.vision_transformer
        except (ImportError, RuntimeError) as error:
            pytest.skip(f"timm cannot be imported: {error}", allow_module_level=True)
    return timm


timm = _import_timm()


def jitter(module, seed=0):
    """Move every parameter and statistic off its initial value, so that none is compared at 0 or 1."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        for name, buffer in module.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(0.5 * torch.rand_like(buffer))
    return module


def images(batch=4, size=32):
    return jax.random.normal(jax.random.key(0), (batch, size, size, 3))


def torch_images(x):
    return torch.from_numpy(np.moveaxis(np.asarray(x), -1, 1).copy())


def resnet_pair(block, stem, attention=None, gate=None):
    """The first two stages of a ResNet of timm, its twin and the twin's variables."""
    name, expansion = {"BasicBlock": ("resnet18", 1), "Bottleneck": ("resnet50", 4)}[block]
    theirs = timm.models.resnet.ResNet(
        getattr(timm.models.resnet, block),
        layers=(2, 1, 1, 1),
        channels=(64, 128, 8, 8),
        block_args={"attn_layer": attention} if attention else None,
    )
    theirs.layer3 = theirs.layer4 = torch.nn.Identity()
    theirs.fc = torch.nn.Linear(theirs.layer2[0].bn1.num_features * expansion, 7)
    if stem == "cifar":
        theirs.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
        theirs.maxpool = torch.nn.Identity()
    ours = create_model(name, num_classes=7, stage_sizes=(2, 1), stem=stem, gate=gate, gate_placement="residual")
    return theirs, ours, from_torch(ours, images(), jitter(theirs).state_dict())


@pytest.mark.parametrize(
    ("block", "stem", "size"),
    [
        ("BasicBlock", "imagenet", 64),
        ("BasicBlock", "imagenet", 45),
        ("BasicBlock", "cifar", 17),
        ("Bottleneck", "imagenet", 33),
        ("Bottleneck", "cifar", 16),
    ],
)
def test_resnet_outputs(block, stem, size):
    theirs, ours, variables = resnet_pair(block, stem)
    x = images(size=size)
    with torch.no_grad():
        expected = theirs.eval()(torch_images(x)).numpy()
    np.testing.assert_allclose(jax.jit(ours.apply)(variables, x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("block", "stem"), [("BasicBlock", "cifar"), ("Bottleneck", "imagenet")])
def test_resnet_in_training(block, stem):
    theirs, ours, variables = resnet_pair(block, stem)
    x = images(size=16)
    with torch.no_grad():
        expected = theirs.train()(torch_images(x)).numpy()
    out, new = ours.apply(variables, x, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=2e-4)
    moved = from_torch(ours, x, theirs.state_dict())["batch_stats"]

    def check(path, ours, theirs):
        if path[-1].key == "mean":
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)

    jax.tree_util.tree_map_with_path(check, new["batch_stats"], moved)
    n = 4 * 16 * 16 if stem == "cifar" else 4 * 8 * 8
    old = 0.9 * variables["batch_stats"]["bn1"]["var"]
    biased = (moved["bn1"]["var"] - old) * (n - 1) / n
    np.testing.assert_allclose(new["batch_stats"]["bn1"]["var"], old + biased, rtol=1e-4)


@pytest.mark.parametrize(("attention", "gate"), [("se", SqueezeExcite), ("eca", EfficientChannelAttention)])
@pytest.mark.parametrize("block", ["BasicBlock", "Bottleneck"])
def test_attention_resnet_outputs(block, attention, gate):
    theirs, ours, variables = resnet_pair(block, "cifar", attention, gate)
    x = images(size=16)
    with torch.no_grad():
        expected = theirs.eval()(torch_images(x)).numpy()
    np.testing.assert_allclose(jax.jit(ours.apply)(variables, x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels", [24, 64, 192])
@pytest.mark.parametrize(("module", "gate"), [("SEModule", SqueezeExcite), ("EcaModule", EfficientChannelAttention)])
def test_attention_gates(module, gate, channels):
    theirs = jitter(getattr(timm.layers, module)(channels))
    x = jax.random.normal(jax.random.key(1), (2, 5, 6, channels))
    variables = from_torch(gate(), x, theirs.state_dict())
    with torch.no_grad():
        expected = np.moveaxis(theirs(torch_images(x)).numpy(), 1, -1)
    np.testing.assert_allclose(gate().apply(variables, x), expected, rtol=1e-5, atol=1e-6)


def vit_pair(pool="token", init_values=0.1, class_token=True):
    """A small ViT from timm with its twin and the twin's variables."""
    shape = {"patch_size": 4, "depth": 2, "num_heads": 3, "num_classes": 7, "class_token": class_token}
    theirs = timm.models.vision_transformer.VisionTransformer(
        img_size=32, embed_dim=48, init_values=init_values, global_pool=pool, **shape
    )
    ours = create_model("vit_tiny", dim=48, layer_scale=init_values, pool=pool, **shape)
    return theirs, ours, from_torch(ours, images(), jitter(theirs).state_dict())


@pytest.mark.parametrize(
    ("pool", "init_values", "class_token"),
    [("token", 0.1, True), ("token", None, True), ("avg", None, True), ("avg", 0.1, False)],
)
def test_vit_outputs_and_gradients(pool, init_values, class_token):
    theirs, ours, variables = vit_pair(pool, init_values, class_token)
    x = images()
    weights = np.linspace(-1, 1, 28, dtype=np.float32).reshape(4, 7)
    expected = theirs.eval()(torch_images(x))
    (expected * torch.from_numpy(weights)).sum().backward()

    def loss(params):
        out = ours.apply({"params": params}, x)
        return (out * weights).sum(), out

    gradient, out = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    np.testing.assert_allclose(out, expected.detach().numpy(), rtol=1e-4, atol=1e-5)
    wanted = from_torch(ours, x, {name: p.grad for name, p in theirs.named_parameters()})["params"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-4), gradient, wanted)


def test_initial_weights_have_the_same_spread():
    torch.manual_seed(0)
    theirs = timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=96, depth=1, num_heads=3, num_classes=50
    )
    ours = create_model("vit_tiny", num_classes=50, patch_size=8, dim=96, depth=1)
    params = ours.init(jax.random.key(0), images())["params"]

    def check(path, a, b):
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(np.std(a), np.std(b), rtol=0.35, err_msg=name)
        np.testing.assert_allclose(np.mean(a), np.mean(b), atol=8 * np.std(b) / np.sqrt(b.size), err_msg=name)

    jax.tree_util.tree_map_with_path(check, params, from_torch(ours, images(), theirs.state_dict())["params"])
