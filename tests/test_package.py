"""Wheel and source distribution: built, the same inside, installed into an empty environment, and used there."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import fsg_jax

pytestmark = pytest.mark.docs

ROOT = Path(__file__).parents[1]
USE = """
import jax, jax.numpy as jnp, optax, sys
import fsg_jax as fsg
assert "site-packages" in fsg.__file__, fsg.__file__
model = fsg.create_model("resnet18", num_classes=4, width=4, gate=fsg.Gate)
images = jnp.zeros((2, 8, 8, 3))
tx = fsg.routed(params=optax.sgd(0.1), gates=optax.adam(1e-2))
state = fsg.init_state(model, tx, jax.random.key(0), images)
assert len(fsg.gate_values(state)) == 4
print(fsg.__version__)
"""


def run(*command, cwd):
    """Output of a command; its errors are those of the test."""
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with the source distribution, and the wheel that is made of it."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", out, ROOT, cwd=out)
    return out


def test_an_empty_environment_takes_the_wheel(built, tmp_path):
    (wheel,) = built.glob("*.whl")
    run(sys.executable, "-m", "venv", tmp_path / "env", cwd=tmp_path)
    python = tmp_path / "env/bin/python"
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel, cwd=tmp_path)
    assert run(python, "-W", "error", "-c", USE, cwd=tmp_path).strip() == fsg_jax.__version__


def test_what_is_in_them(built):
    """The wheel has the library, the typing marker and the licence, no tests; the source has all that is committed."""
    (wheel,), (source,) = built.glob("*.whl"), built.glob("*.tar.gz")
    assert f"-{fsg_jax.__version__}-" in wheel.name
    assert source.name.endswith(f"-{fsg_jax.__version__}.tar.gz")
    inside = zipfile.ZipFile(wheel).namelist()
    code = {str(p.relative_to(ROOT)) for p in (ROOT / "fsg_jax").rglob("*.py")}
    assert code <= set(inside)
    assert "fsg_jax/py.typed" in inside
    assert any(name.endswith("licenses/LICENSE") for name in inside)
    assert {name.split("/")[0] for name in inside} == {"fsg_jax", f"fsg_jax-{fsg_jax.__version__}.dist-info"}
    with tarfile.open(source) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    git = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    committed = [name for name in git.stdout.split() if not name.startswith(".")]
    assert len(committed) > 400
    assert not [name for name in committed if name not in packed]
