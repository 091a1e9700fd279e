"""The public face: the README's code runs, the light install imports, nothing is printed."""

import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import fsg_jax as fsg

ROOT = Path(__file__).parent.parent
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


@pytest.mark.docs
def test_readme_code_runs():
    """The blocks of the pages are run when the site is built."""
    namespace: dict = {}
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL):
        exec(compile(block, "README.md", "exec"), namespace)
    assert namespace["metrics"]["loss"] > 0
    assert fsg.gate_summary(namespace["state"]).keys() == {"gate1", "gate2", "gate3", "gate4"}


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
