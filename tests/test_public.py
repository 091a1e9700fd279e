"""The public face: the README's code runs, the light install imports, nothing is printed."""

import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import fsg_jax as fsg

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [block for page in PAGES for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)]
HEAVY = (
    "grain",
    "tensorflow",
    "tensorflow_datasets",
    "matplotlib",
    "torch",
    "tqdm",
    "pooch",
    "PIL",
    "sklearn",
    "safetensors",
    "huggingface_hub",
)


@pytest.mark.slow
def test_readme_code_runs(capsys):
    """All Python blocks of README and docs, one after another in one namespace, as a reader would type them."""
    assert len(BLOCKS) >= 3
    namespace: dict = {}
    for block in BLOCKS:
        exec(compile(block, "README.md", "exec"), namespace)
    assert namespace["metrics"]["loss"] > 0
    assert np.flatnonzero(fsg.selected(namespace["state"])["features"]).tolist() == [0, 1, 2, 3, 4]


def test_every_public_name_exists_and_has_a_docstring():
    for name in fsg.__all__:
        thing = getattr(fsg, name)
        assert name.isupper() or name in ("TrainStep", "EvalStep") or thing.__doc__, name


def test_no_public_name_hides_a_module():
    for package in [fsg, *(m for m in vars(fsg).values() if isinstance(m, ModuleType) and hasattr(m, "__path__"))]:
        for module in pkgutil.iter_modules(package.__path__):
            found = getattr(package, module.name, None)
            assert found is None or isinstance(found, ModuleType), f"{package.__name__}.{module.name}"


def test_import_is_light():
    code = f"import fsg_jax, sys; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""


@pytest.mark.parametrize("word", ["resnet19", "vit_tinny"])
def test_unknown_model_suggests_the_nearest(word):
    with pytest.raises(ValueError, match=r"resnet18|vit_tiny"):
        fsg.create_model(word, num_classes=10)
