"""save_pretrained and load_pretrained: every model comes back, bit for bit; what cannot be written is named."""

import json
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from reduced import REDUCED, by_family, reduced, variables

import fsg_jax as fsg
from fsg_jax.gates.channel_attention import EfficientChannelAttention, SqueezeExcite
from fsg_jax.pretrained.model_json import from_json, model_from_json, model_to_json, to_json

pytest.importorskip("safetensors")

PREPROCESSING = fsg.Preprocessing((0.4, 0.5, 0.6), (0.2, 0.2, 0.3), (16, 24), 0.9, "bicubic")
CASES = [
    by_family(name, placement, gate, also=0 < i < len(REDUCED[name].placements), id=f"{name}-{i}")
    for name in REDUCED
    for i, (placement, gate) in enumerate(
        [
            *((placement, fsg.Gate) for placement in REDUCED[name].placements),
            ({}, None),
            ({"dtype": jnp.bfloat16, "remat": True}, partial(fsg.Gate, kind="hard_concrete", logits_init="open")),
        ]
    )
]


def same(a, b):
    a, b = flatten_dict(a), flatten_dict(b)
    return a.keys() == b.keys() and all(
        np.asarray(a[p]).tobytes() == np.asarray(b[p]).tobytes() and a[p].dtype == b[p].dtype for p in a
    )


@pytest.mark.parametrize(("name", "options", "gate"), CASES)
def test_every_model_comes_back(tmp_path, name, options, gate):
    model, weights = reduced(name, gate, **options), variables(name, gate, **options)
    fsg.save_pretrained(tmp_path / "a", model, weights, preprocessing=PREPROCESSING)
    found = fsg.load_pretrained(tmp_path / "a")
    assert same(found.variables, weights)
    assert model_to_json(found.model) == model_to_json(model)
    assert type(found.model) is type(model)
    if not isinstance(gate, partial):  # partials are equal to themselves alone
        assert found.model == model
    assert found.preprocessing == PREPROCESSING


@pytest.mark.parametrize("gate", [SqueezeExcite, partial(EfficientChannelAttention, kind="hard_sigmoid")])
def test_data_dependent_gates_come_back(tmp_path, gate):
    model, weights = reduced("resnet18", gate), variables("resnet18", gate)
    fsg.save_pretrained(tmp_path / "a", model, weights)
    found = fsg.load_pretrained(tmp_path / "a")
    assert same(found.variables, weights)
    assert model_to_json(found.model) == model_to_json(model)


def test_every_dtype_and_scalar_comes_back(tmp_path):
    """Weights in bfloat16, a NaN-free -0.0, and the step of gates with a schedule."""
    model, weights = reduced("resnet18"), variables("resnet18")
    weights = {
        **weights,
        "params": jax.tree.map(lambda x: x.astype(jnp.bfloat16).at[..., 0].set(-0.0), weights["params"]),
    }
    fsg.save_pretrained(tmp_path / "a", model, weights)
    assert same(fsg.load_pretrained(tmp_path / "a").variables, weights)


def test_a_saved_model_is_fitted_too(tmp_path):
    model, weights = reduced("vit_tiny", None), variables("vit_tiny", None)
    fsg.save_pretrained(tmp_path / "a", model, weights, preprocessing=PREPROCESSING._replace(size=(12, 8)))
    found = fsg.load_pretrained(tmp_path / "a", num_classes=3, gate=fsg.Gate, in_channels=4, image_size=(8, 16))
    shapes = jax.eval_shape(found.model.init, jax.random.key(0), jnp.zeros((1, 8, 16, 4)))
    assert jax.tree.map(jnp.shape, found.variables) == jax.tree.map(jnp.shape, shapes)
    assert same({"b": found.variables["params"]["blocks_0"]}, {"b": weights["params"]["blocks_0"]})
    assert (found.preprocessing.size, len(found.preprocessing.mean)) == ((8, 16), 4)
    fsg.save_pretrained(tmp_path / "b", model, weights)
    with pytest.raises(ValueError, match=r"pos_embed: expected the positions of a square grid, found 6"):
        fsg.load_pretrained(tmp_path / "b", image_size=16)
    fsg.save_pretrained(tmp_path / "c", model.clone(grid=(3, 2)), weights)
    known = fsg.load_pretrained(tmp_path / "c", image_size=(8, 16))
    assert known.model.grid == (2, 4)
    np.testing.assert_array_equal(known.variables["params"]["pos_embed"], found.variables["params"]["pos_embed"])


def test_gates_of_a_saved_model_stay(tmp_path):
    gate = partial(fsg.Gate, kind="relu")
    model, weights = reduced("resnet18", gate), variables("resnet18", gate)
    fsg.save_pretrained(tmp_path / "a", model, weights)
    assert same(fsg.load_pretrained(tmp_path / "a", gate=partial(fsg.Gate, kind="relu")).variables, weights)
    with pytest.raises(ValueError, match=r"gate: expected None, for .* has gates or fixed scales of its own"):
        fsg.load_pretrained(tmp_path / "a", gate=fsg.Gate)


def test_models_of_several_streams_take_no_other_images(tmp_path):
    fsg.save_pretrained(tmp_path / "a", reduced("multistream"), variables("multistream"))
    assert fsg.load_pretrained(tmp_path / "a", num_classes=2).model.num_classes == 2
    with pytest.raises(ValueError, match="in_channels: expected None for a model of several streams"):
        fsg.load_pretrained(tmp_path / "a", in_channels=1)


def schedule(step):
    return 1.0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gate": partial(fsg.Gate, temperature=schedule)}, ("gate.temperature", "schedule")),
        ({"gate": lambda name: fsg.Gate(name=name)}, ("gate", "lambda")),
        ({"norm": partial(nn.BatchNorm, scale_init=nn.initializers.zeros)}, ("norm.scale_init", "zeros")),
    ],
)
def test_what_cannot_be_written_is_named(tmp_path, options, words):
    with pytest.raises(ValueError, match="expected what can be written") as error:
        fsg.save_pretrained(tmp_path / "a", reduced("resnet18", **options), {})
    assert [word for word in words if word not in str(error.value)] == []
    assert not list(tmp_path.iterdir())


def test_a_model_of_ones_own_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"model: expected one of ResNet, .*, ExpertHead, found Dense"):
        fsg.save_pretrained(tmp_path / "a", nn.Dense(3), {})


def test_wrong_variables_are_refused(tmp_path):
    model, weights = reduced("resnet18"), variables("resnet18")
    broken = jax.tree.map(lambda x: x.at[0].set(jnp.nan), weights["gates"])
    with pytest.raises(ValueError, match=r"NaN or infinite ones in gates/gate1/logits, gates/gate2/logits"):
        fsg.save_pretrained(tmp_path / "a", model, {**weights, "gates": broken})
    with pytest.raises(ValueError, match=r"gates/gate1/logits: expected \(8,\), found none \(missing\)"):
        fsg.save_pretrained(tmp_path / "a", model, {**weights, "gates": {}})
    assert not list(tmp_path.iterdir())


def test_an_earlier_folder_is_replaced_and_no_other(tmp_path):
    fsg.save_pretrained(tmp_path / "a", reduced("resnet18"), variables("resnet18"))
    fsg.save_pretrained(tmp_path / "a", reduced("vit_tiny"), variables("vit_tiny"), card="# Mine")
    assert type(fsg.load_pretrained(tmp_path / "a").model) is fsg.models.ViT
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    (tmp_path / "b").mkdir()
    (tmp_path / "b/thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"expected a new folder.*found \['thesis.tex'\]"):
        fsg.save_pretrained(tmp_path / "b", reduced("resnet18"), variables("resnet18"))
    assert (tmp_path / "b/thesis.tex").read_text() == "years of work"


def test_a_failure_leaves_the_earlier_folder(tmp_path, monkeypatch):
    fsg.save_pretrained(tmp_path / "a", reduced("resnet18"), variables("resnet18"))

    def fails(*_):
        raise OSError("disk full")

    monkeypatch.setattr(fsg.pretrained.save, "write_text", fails)
    with pytest.raises(OSError, match="disk full"):
        fsg.save_pretrained(tmp_path / "a", reduced("vit_tiny"), variables("vit_tiny"))
    assert same(fsg.load_pretrained(tmp_path / "a").variables, variables("resnet18"))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_the_card_has_the_facts(tmp_path):
    card = {"data": "CIFAR-100", "test accuracy": "71 % | 3 seeds"}
    fsg.save_pretrained(tmp_path / "a", reduced("resnet18"), variables("resnet18"), card=card)
    text = (tmp_path / "a/README.md").read_text()
    for line in (
        "| architecture | ResNet |",
        "| gates | 24 |",
        "| data | CIFAR-100 |",
        r"| test accuracy | 71 % \| 3 seeds |",
    ):
        assert line in text


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        0.5,
        "a",
        (1, (2.0, "b")),
        {"a": (1, 2)},
        jnp.bfloat16,
        fsg.Gate,
        nn.Conv,
        fsg.models.Stage(1, 8, 1, 3, 1),
    ],
)
def test_values_come_back(value):
    assert from_json(json.loads(json.dumps(to_json(value, "x"))), "x") == value


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ({"is": "factory", "name": "os.system"}, ("factory 'os.system'",)),
        ({"is": "factory", "name": ["Gate"]}, ("['Gate']",)),
        ({"is": "factory", "name": "Gate", "arguments": 3, "keywords": {}}, ("arguments of a factory",)),
        ({"is": "dtype", "name": "object"}, ("dtype 'object'",)),
        ({"is": "Stage", "values": [1]}, ("as this version writes it",)),
        ({"a": 3}, ("as this version writes it",)),
    ],
)
def test_other_codes_are_refused(code, words):
    with pytest.raises(ValueError, match="gate") as error:
        model_from_json({"class": "ResNet", "attributes": {"gate": code}}, "here")
    assert [word for word in words if word not in str(error.value)] == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "fsg_jax 9"}, "'fsg_jax 1'"),
        ({"model": {"class": "System", "attributes": {}}}, "unknown .*model 'System'"),
        ({"model": {"class": "ResNet", "attributes": {"colour": 3}}}, "attributes of ResNet, found colour"),
        ({"model": {"class": "ResNet", "attributes": {"width": "wide"}}}, "expected attributes of ResNet"),
        ({"model": 3}, "the class and attributes of a model"),
        ({"files": {"../../etc/passwd": {"sha256": "0"}}}, r"file inside its folder, found '\.\./\.\./etc/passwd'"),
        ({"files": {"/etc/passwd": {}}}, "file inside its folder, found '/etc/passwd'"),
        ({"files": {"model.safetensors": {"sha256": "0" * 64}}}, f"expected sha256 {'0' * 64}"),
        ({"files": {}}, "model.safetensors with its sha256"),
        ({"preprocessing": {"mean": [0]}}, "expected mean, std, size, crop, interpolation, found mean"),
        ({"preprocessing": {**PREPROCESSING._asdict(), "crop": 0}}, r"crop: expected a number in \(0, 1\], found 0"),
        (
            {"preprocessing": {**PREPROCESSING._asdict(), "std": (0.2, 0, 0.2)}},
            r"std\[1\]: expected a finite number > 0",
        ),
    ],
)
def test_wrong_configurations_are_refused(tmp_path, change, words):
    fsg.save_pretrained(tmp_path, reduced("resnet18"), variables("resnet18"))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=words):
        fsg.load_pretrained(tmp_path)


def test_weights_of_another_model_are_refused(tmp_path):
    """Their digest being right."""
    for name in ("resnet18", "vit_tiny"):
        fsg.save_pretrained(tmp_path / name, reduced(name), variables(name))
    paths = [tmp_path / name / "config.json" for name in ("resnet18", "vit_tiny")]
    configs = [json.loads(path.read_text()) for path in paths]
    paths[0].write_text(json.dumps({**configs[0], "model": configs[1]["model"]}))
    with pytest.raises(ValueError, match=r"expected the tensors of ViT, found \d+ others: batch_stats/bn1/mean"):
        fsg.load_pretrained(tmp_path / "resnet18")


def test_a_folder_of_something_else(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config.json: no such file; expected a folder of save_pretrained"):
        fsg.load_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        fsg.load_pretrained(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("shape", "resized"), [((40, 60, 3), (40, 60)), ((61, 50, 3), (48, 40)), ((20, 20, 3), (40, 40))]
)
def test_preprocessing(shape, resized):
    """A flat image stays flat, the centre of a ramp stays the centre, values are normalised."""
    pre = fsg.Preprocessing((0.4, 0.5, 0.6), (0.2, 0.2, 0.3), (32, 32), 0.8, "bilinear")
    flat = pre(np.full(shape, 102, np.uint8))
    assert (flat.shape, flat.dtype) == ((32, 32, 3), np.float32)
    np.testing.assert_allclose(flat[3, 4], (0.4 - np.array(pre.mean)) / pre.std, rtol=1e-5, atol=1e-6)
    ramp = np.broadcast_to(np.linspace(0, 255, shape[1]).astype(np.uint8)[None, :, None], shape)
    row = (pre(ramp)[16, :, 0] * 0.2 + 0.4) * 255
    assert abs(row.mean() - 127.5) < 255 / min(shape[:2])
    np.testing.assert_allclose(row[-1] - row[0], 255 * 31 / resized[1], atol=255 / min(shape[:2]))


def test_preprocessing_of_pillow_and_of_other_channels():
    image = pytest.importorskip("PIL.Image").fromarray(np.random.default_rng(0).integers(0, 256, (30, 20, 3), np.uint8))
    np.testing.assert_array_equal(PREPROCESSING(image), PREPROCESSING(np.asarray(image)))
    assert PREPROCESSING.with_channels(1)(image).shape == (16, 24, 1)
    assert PREPROCESSING.with_channels(5).mean == (0.4, 0.5, 0.6, 0.4, 0.5)
    for wrong in (np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(ValueError, match=r"image: expected uint8 \(height, width, 3\)"):
            PREPROCESSING(wrong)
    with pytest.raises(ValueError, match="image: expected an array of 5 channels"):
        PREPROCESSING.with_channels(5)(image)
