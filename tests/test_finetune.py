"""Experiments that start from pretrained weights: what comes from the file, how images are prepared, refusals."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from flax.traverse_util import flatten_dict

import fsg_jax as fsg
from experiments import pretrained
from experiments.classification import load_splits
from experiments.cli import AblateArgs, overrides, parse
from experiments.config import ViT, describe
from experiments.configs import CONFIGS
from experiments.errors import UserError
from experiments.run_folder import identity
from experiments.task import make_task
from experiments.train import train
from fsg_jax.pretrained.preprocessing import Preprocessing

pytest.importorskip("safetensors", reason="needs the pretrained extra")

MEAN, STD = (0.2, 0.3, 0.4), (0.5, 0.4, 0.3)


def drawn(model, x, seed=0):
    """Variables of the model; normal numbers, for which nothing is compiled."""
    shapes, rng = jax.eval_shape(model.init, jax.random.key(0), x), np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.1, leaf.shape), leaf.dtype), shapes)


def save(folder, seed=0, **options):
    """A ViT of one block for RGB images of 16 pixels, with a head of its own."""
    model = fsg.create_model("vit_tiny", num_classes=7, patch_size=4, depth=1, **options)
    variables = drawn(model, jnp.zeros((1, 16, 16, 3)), seed)
    fsg.save_pretrained(folder, model, variables, preprocessing=Preprocessing(MEAN, STD, (16, 16), 1.0, "bicubic"))
    pretrained.load.cache_clear()
    return str(folder)


def experiment(source, **parts):
    """On digits, which are grey: the stem is adapted."""
    model = ViT(patch_size=4, depth=1, pretrained=source)
    changed = tiny.change(tiny.digits(), data={"image_size": 16, "num_train": 64}, **parts)
    return replace(changed, model=model)


def test_every_arm_starts_from_the_file_but_for_head_and_gates(tmp_path):
    config = experiment(save(tmp_path))
    of_file = flatten_dict(fsg.load_pretrained(tmp_path, num_classes=0, in_channels=1).variables["params"])
    heads = []
    for arm, seed in (("baseline", 0), ("fsg_gr", 0), ("baseline", 1)):
        state = make_task(config, arm).init(jax.random.key(seed))
        params = flatten_dict(state.params)
        heads.append(params.pop(("head", "kernel")))
        assert heads[-1].shape == (192, 10)
        assert params.pop(("head", "bias")).shape == (10,)
        jax.tree.map(np.testing.assert_array_equal, params, of_file)
        assert bool(state.gates) == (arm == "fsg_gr")
    np.testing.assert_array_equal(heads[0], heads[1])
    assert not np.array_equal(heads[0], heads[2])


@pytest.mark.slow
def test_images_are_resized_and_normalised_as_the_weights_ask(tmp_path):
    task = make_task(experiment(save(tmp_path)), "baseline")
    state = task.init(jax.random.key(0))
    images = load_splits(experiment(str(tmp_path)).data).validation
    x = jax.image.resize(images.images / np.float32(255), (len(images), 16, 16, 1), "linear")
    logits = state.model.apply(state.variables, (x - np.mean(MEAN)) / np.mean(STD))
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, images.labels).mean()
    assert task.validate(state)["loss"] == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.slow
def test_a_run_is_not_resumed_with_other_weights(tmp_path):
    config = experiment(save(tmp_path / "weights"), train={"epochs": 1, "test_on": "none"})
    record = train(config, "baseline", 0, tmp_path / "run")
    assert len(record["config"]["model"]["pretrained_digest"]) == 64
    assert train(config, "baseline", 0, tmp_path / "run", resume=True) == record
    save(tmp_path / "weights", seed=1)
    with pytest.raises(UserError, match=r"differ in model\.pretrained_digest"):
        train(config, "baseline", 0, tmp_path / "run", resume=True)
    pinned = tiny.change(config, model={"pretrained_digest": record["config"]["model"]["pretrained_digest"]})
    with pytest.raises(UserError, match=r"model\.pretrained: expected weights with the digest"):
        train(pinned, "baseline", 0, tmp_path / "other")


def test_runs_of_older_versions_stay_the_same():
    config = describe(tiny.digits(), "fsg", 0)
    older = json.loads(json.dumps(config))
    del older["data"]["image_size"], older["model"]["pretrained"], older["model"]["pretrained_digest"]
    assert identity(older) == identity(config)
    assert identity(config | {"data": config["data"] | {"image_size": 16}}) != identity(config)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"patch_size": 2}, r"model: patch_size: expected that of model\.pretrained, 4, found 2"),
        ({"depth": 2}, r"model: depth: .* 1, found 2"),
        ({"name": "vit_small"}, "model: dim: .* 192, found 384"),
        ({"pretrained": "no_such_folder"}, r"model\.pretrained: .*no_such_folder"),
        ({"pretrained": None, "pretrained_digest": "0"}, r"model\.pretrained_digest: expected None"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, model, message):
    config = tiny.change(experiment(save(tmp_path)), model=model)
    with pytest.raises((UserError, ValueError), match=message):
        make_task(pretrained.pin(config), "baseline").init(jax.random.key(0))


def test_leaves_that_do_not_fit_are_named(tmp_path):
    weights = pretrained.load(save(tmp_path), 3, None)
    model = fsg.create_model("vit_tiny", num_classes=3, patch_size=4, depth=1)
    variables = drawn(model, jnp.zeros((1, 8, 8, 3)))
    with pytest.raises(ValueError, match=r"the leaves of the model, found others: params/pos_embed"):
        pretrained.starting_from(variables, model, {"": weights})


def test_weights_without_statistics_are_refused(tmp_path):
    model = fsg.create_model("resnet18", num_classes=0, width=4)
    fsg.save_pretrained(tmp_path, model, drawn(model, jnp.zeros((1, 8, 8, 3))))
    with pytest.raises(UserError, match=r"model\.pretrained: .*expected weights that come with their mean and std"):
        pretrained.load(str(tmp_path), 3, None)


def test_every_stream_starts_from_one_backbone(tmp_path):
    model = fsg.create_model("resnet18", num_classes=0, width=4, stem="imagenet")
    saved = drawn(model, jnp.zeros((1, 8, 8, 3)), 5)
    fsg.save_pretrained(tmp_path, model, saved, preprocessing=Preprocessing(MEAN, STD, (32, 32), 1.0, "bilinear"))
    streams = {"rgb": 3, "depth": 1}
    model = fsg.create_model(
        "multistream", num_classes=1, streams=streams, gate=fsg.Gate, backbone_options={"width": 4}
    )
    shapes = jax.eval_shape(model.init, jax.random.key(0), {k: jnp.zeros((1, 8, 8, c)) for k, c in streams.items()})
    fresh = jax.tree.map(lambda leaf: np.full(leaf.shape, 7, leaf.dtype), shapes)
    parts = {name: pretrained.load(str(tmp_path), channels, None) for name, channels in streams.items()}
    start = pretrained.starting_from(fresh, model, parts)
    jax.tree.map(np.testing.assert_array_equal, start["params"]["rgb"], saved["params"])
    jax.tree.map(np.testing.assert_array_equal, start["batch_stats"]["depth"], saved["batch_stats"])
    stem = saved["params"]["conv1"]["kernel"]
    np.testing.assert_allclose(start["params"]["depth"]["conv1"]["kernel"][:, :, 0], stem.sum(2), rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, start["gates"], fresh["gates"])
    assert (start["params"]["head"]["kernel"] == 7).all()
    assert (start["params"]["fc1"]["kernel"] == 7).all()


def test_the_arms_of_a_configuration_come_with_it():
    config, _ = CONFIGS["cifar100_finetune"]
    names = ("baseline", "fsg", "fsg_open", "fsg_gr", "fsg_gr_open")
    args = parse(AblateArgs, "experiments.ablate", ["cifar100_finetune", "--out", "x", "--arms", *names])
    assert (args.experiment, args.arms) == (config, names)
    assert overrides(config) == ""
    found = [describe(config, name, 0) for name in names]
    assert [(c["gate"]["init"], c["arm"]["gate"], c["arm"]["routing"]) for c in found] == [
        ("xavier", "none", "none"),
        ("xavier", "static", "none"),
        ("open", "static", "none"),
        ("xavier", "static", "sequential"),
        ("open", "static", "sequential"),
    ]
    rest = [{k: v for k, v in c.items() if k not in ("gate", "arm")} for c in found]
    assert all(c == rest[0] for c in rest)
