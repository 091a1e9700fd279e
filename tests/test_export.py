"""Exported models: equal outputs for every batch size, a process with jax alone, and what is refused."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reduced
from cases import fast

from fsg_jax.pretrained.artifacts import export_onnx, export_stablehlo, load_artifact

CASES = {
    "resnet18": {},  # the stem for small images
    "resnet50": {"stem": "imagenet"},
    "efficientnet_b0": {},
    "vit_tiny": {},
    "multistream": {},
}
BLOCKED = """
import sys
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("flax", "fsg_jax", "optax", "orbax"):
            raise ImportError(name)
sys.meta_path.insert(0, Nothing())
"""
FRESH = """
import numpy as np, jax
from jax import export
from pathlib import Path
folder = Path(sys.argv[1])
images = np.load(folder / "images.npy")
model = export.deserialize(bytearray((folder / "model.stablehlo").read_bytes()))
np.save(folder / "outputs.npy", model.call(images))
print(*model.platforms)
"""


class Small(nn.Module):
    """A convolution and BatchNorm, which act otherwise in training."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Conv(4, (3, 3))(x))
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(x).mean((1, 2)))


IMAGES = np.random.default_rng(0).normal(size=(5, 6, 7, 2)).astype(np.float32)


@pytest.fixture(scope="module")
def small():
    model = Small()
    variables = model.init(jax.random.key(0), IMAGES)
    variables["batch_stats"] = jax.tree.map(lambda x: x + 0.5, variables["batch_stats"])
    return model, variables


@pytest.fixture
def folder(small, tmp_path):
    export_stablehlo(tmp_path / "out", *small, IMAGES)
    return tmp_path / "out"


def outputs(name):
    model, variables = reduced.reduced(name, **CASES[name]), reduced.variables(name, **CASES[name])
    inputs = reduced.inputs(name)
    return model, variables, inputs, np.asarray(jax.jit(model.apply)(variables, inputs))


def check(artifact, inputs, wanted):
    """Batches of several sizes, each row the same whatever is beside it."""
    for rows in (slice(0, 4), slice(1, 2)):
        found = artifact.call(jax.tree.map(lambda x, rows=rows: x[rows], inputs))
        np.testing.assert_allclose(found, wanted[rows], atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize("name", fast(CASES, lambda name: name in ("resnet18", "vit_tiny")))
def test_stablehlo_gives_the_outputs_of_the_model(tmp_path, name):
    model, variables, inputs, wanted = outputs(name)
    facts = export_stablehlo(tmp_path, model, variables, inputs)
    assert facts["difference"] < 1e-5
    artifact = load_artifact(tmp_path)
    assert artifact.facts == facts == json.loads((tmp_path / "model.stablehlo.json").read_text())
    assert facts["platforms"] == ["cpu", "cuda"]
    shapes = {found["name"]: found["shape"] for found in facts["inputs"]}
    streams = inputs if isinstance(inputs, dict) else {"image": inputs}
    assert shapes == {key: ["batch", *value.shape[1:]] for key, value in streams.items()}
    assert facts["outputs"] == [{"name": "outputs", "shape": ["batch", reduced.CLASSES], "dtype": "float32"}]
    check(artifact, inputs, wanted)


@pytest.mark.onnx
@pytest.mark.parametrize("name", CASES)
def test_onnx_gives_the_outputs_of_the_model(tmp_path, name):
    pytest.importorskip("jax2onnx")
    model, variables, inputs, wanted = outputs(name)
    facts = export_onnx(tmp_path, model, variables, inputs, facts={"weights": "made up"})
    artifact = load_artifact(tmp_path / "model.onnx")
    assert artifact.facts == facts
    assert facts["weights"] == "made up"
    check(artifact, inputs, wanted)


@pytest.mark.onnx
def test_what_onnx_cannot_hold_is_refused(tmp_path):
    pytest.importorskip("jax2onnx")

    class Odd(nn.Module):
        @nn.compact
        def __call__(self, x):
            return jax.lax.platform_dependent(nn.Dense(2)(x), cpu=jnp.sin, default=jnp.cos)

    x = np.ones((1, 3), np.float32)
    with pytest.raises(ValueError, match="expected operations that jax2onnx converts"):
        export_onnx(tmp_path, Odd(), Odd().init(jax.random.key(0), x), x)
    with pytest.raises(ValueError, match="input image: expected float32, for ONNX, found bfloat16"):
        export_onnx(tmp_path, Odd(), Odd().init(jax.random.key(0), x), jnp.bfloat16(x))
    assert not list(tmp_path.iterdir())


def test_a_fresh_process_with_jax_alone_runs_it(small, folder):
    np.save(folder / "images.npy", IMAGES[:3])
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COV")} | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", BLOCKED + FRESH, str(folder)]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "cpu cuda\n"), done.stderr
    model, variables = small
    np.testing.assert_allclose(np.load(folder / "outputs.npy"), model.apply(variables, IMAGES[:3]), atol=1e-6)


def test_it_is_in_evaluation_mode(small, folder):
    found = load_artifact(folder).call(IMAGES)
    model, variables = small
    np.testing.assert_allclose(found, model.apply(variables, IMAGES, train=False), atol=1e-6)
    trained, _ = model.apply(variables, IMAGES, train=True, rngs={"dropout": jax.random.key(1)}, mutable="batch_stats")
    assert np.abs(found - trained).max() > 0.01


def test_it_says_what_it_is_for(small, tmp_path, folder):
    facts = export_stablehlo(tmp_path, *small, IMAGES, platforms=("cuda",), facts={"weights": "x", "folded": True})
    assert facts["difference"] is None
    assert (facts["weights"], facts["folded"]) == ("x", True)
    with pytest.raises(ValueError, match=r"model.stablehlo: expected to run on cuda, .*, found cpu"):
        load_artifact(tmp_path)
    exported = jax.export.deserialize(bytearray((folder / "model.stablehlo").read_bytes()))
    assert exported.platforms == ("cpu", "cuda")
    assert exported.calling_convention_version == load_artifact(folder).facts["calling_convention_version"]


def damaged(folder):
    (folder / "model.stablehlo").write_bytes((folder / "model.stablehlo").read_bytes()[:-100])


def not_ours(folder):
    facts = json.loads((folder / "model.stablehlo.json").read_text())
    (folder / "model.stablehlo").write_bytes(b"something else")
    digest = hashlib.sha256(b"something else").hexdigest()
    (folder / "model.stablehlo.json").write_text(json.dumps(facts | {"sha256": digest}))


def unknown(folder):
    facts = json.loads((folder / "model.stablehlo.json").read_text())
    (folder / "model.stablehlo.json").write_text(json.dumps(facts | {"format": "pickle"}))


@pytest.mark.parametrize(
    ("damage", "kind", "message"),
    [
        (damaged, ValueError, r"expected the SHA-256 of model.stablehlo.json, found another"),
        (not_ours, ValueError, r"expected an artifact of jax.export"),
        (unknown, ValueError, r"format: expected one of 'stablehlo', 'onnx', found 'pickle'"),
        (lambda f: (f / "model.stablehlo.json").write_text("[]"), ValueError, "expected a JSON object"),
        (lambda f: (f / "model.stablehlo.json").unlink(), FileNotFoundError, "model.stablehlo.json"),
        (lambda f: (f / "model.stablehlo").unlink(), FileNotFoundError, "expected model.stablehlo or model.onnx"),
    ],
)
def test_a_damaged_artifact_is_refused(folder, damage, kind, message):
    damage(folder)
    with pytest.raises(kind, match=message):
        load_artifact(folder)


def test_what_cannot_be_exported_is_refused(small, tmp_path):
    model, variables = small
    bad = jax.tree.map(lambda x: x, variables)
    bad["params"]["Dense_0"]["bias"] = jnp.full(3, jnp.nan)
    for arguments, options, message in (
        ((model, bad, IMAGES), {}, "finite values, found NaN or Inf in params/Dense_0/bias"),
        ((model, variables, IMAGES), {"platforms": ("gpu",)}, "expected one of 'cpu', 'cuda'"),
        ((model, variables, IMAGES), {"platforms": ()}, "platforms: expected some of"),
        ((model, variables, {}), {}, "inputs: expected arrays"),
        ((model, variables, IMAGES), {"facts": {"sha256": "0"}}, "facts: expected none of"),
    ):
        with pytest.raises(ValueError, match=message):
            export_stablehlo(tmp_path / "out", *arguments, **options)
    assert not (tmp_path / "out").exists()


def test_a_model_for_one_batch_size_is_refused(tmp_path):
    class Fixed(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(x) * (1.0 if x.shape[0] < 3 else 2.0)

    x = np.ones((2, 3), np.float32)
    variables = Fixed().init(jax.random.key(0), x)
    with pytest.raises(ValueError, match="expected one that takes any batch size"):
        export_stablehlo(tmp_path, Fixed(), variables, x)


def test_a_failed_write_leaves_no_description_of_another_file(small, folder, monkeypatch):
    monkeypatch.setattr(Path, "write_bytes", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        export_stablehlo(folder, *small, IMAGES)
    with pytest.raises(FileNotFoundError, match=r"model\.stablehlo\.json"):
        load_artifact(folder)
