"""Every program of examples/, run as a user runs it: no warning, and the numbers that its docstring promises."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.py"))


def numbers(pattern: str, output: str) -> list[float]:
    """The groups of the one line that matches."""
    (found,) = re.findall(pattern, output)
    return [float(x) for x in (found if isinstance(found, tuple) else (found,))]


def selection(output, *, count, selected, unit, loss, gain, most):
    """The chosen units are nearly worth all of them, and worth more than as many others."""
    (plain,) = numbers(rf"without gates, {count} {unit}: test accuracy (.*)%", output)
    kept, chosen = numbers(rf"the (\d+) {selected} {unit}: test accuracy (.*)%", output)
    _, chance = numbers(rf"(\d+) {unit} at random: test accuracy (.*)%", output)
    assert plain > 94  # an untrained network has 10 %
    assert chosen > plain - loss
    assert chance < chosen - gain
    assert kept < most


def linen_model(output):
    selection(output, count=48, selected="selected", unit="channels", loss=3, gain=4, most=32)


def nnx_model(output):
    selection(output, count=128, selected="open", unit="units", loss=4, gain=6, most=90)


def equinox_model(output):
    assert numbers(r"a step, from two by hand: (.*)", output)[0] < 1e-6
    count, chosen = numbers(r"the (\d+) of the gates: (.*)%", output)
    assert output.count("#") == count < 40
    assert chosen > numbers(r"all 64 pixels: test accuracy (.*)%", output)[0] - 2
    assert chosen > numbers(r"at random: (.*)%", output)[0] + 3


def text_transformer(output):
    """Without attention in the first layer it is guessing."""
    (right,) = numbers(r"answered right: (.*)%", output)
    layers = re.findall(r"layers/(\w+)\[(\d)\]: (\d+) of 32 channels open; without them (.*)%", output)
    assert right > 95
    assert len(layers) == 6
    kind, layer, count, closed = min(layers, key=lambda row: float(row[-1]))
    assert (kind, layer) == ("attention", "0")
    assert 0 < int(count) < 32
    assert float(closed) < 70


def unet(output):
    dice = numbers(r"as trained: Dice (.*)", output)[0]
    first, last = (numbers(rf"skip{i}: (\d+) of 8 channels open; without them Dice (.*)", output) for i in (0, 2))
    assert dice > 0.85
    assert first[1] < dice - 0.2 < last[1]
    assert first[0] > last[0]


def tabular_selection(output):
    informative, gates = (re.search(rf"{name}: (\[.*\])", output)[1] for name in ("informative", "gates"))
    assert gates == informative
    by_gates, by_lasso = (numbers(rf"{name}.*: \[.*\], R2 (.*)", output)[0] for name in ("gates", "lasso"))
    assert by_gates > by_lasso + 0.2
    assert by_gates > numbers(r"all: .*, R2 (.*)", output)[0]


def shard_map_loop(output):
    """To float32 precision; and the mean of means would be seen."""
    assert numbers(r"4 devices, means over all rows: loss .*, distance (.*)", output)[0] < 1e-5
    assert numbers(r"4 devices, means of means: loss .*, distance (.*)", output)[0] > 1e-3


def multi_task_head(output):
    (alone,) = numbers(r"digit alone, of \d+ labels: test accuracy (.*)%", output)
    (together,) = numbers(r"with the other tasks: digit (.*?)%", output)
    assert 60 < alone < together - 3
    assert numbers(r"moves the gate by (.*)", output) == [0]
    assert numbers(r"moves the weights by (.*)", output)[0] > 1e-4


@pytest.mark.docs
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_does_what_it_says(name):
    kept = ("PATH", "HOME", "PYTHONPATH", "SYSTEMROOT")
    env = {key: os.environ[key] for key in kept if key in os.environ} | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-W", "error", f"examples/{name}.py"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr == ""
    globals()[name](done.stdout)


def test_every_example_says_how_to_run_it_and_is_in_the_table():
    table = (ROOT / "examples/README.md").read_text()
    for name in EXAMPLES:
        assert f"python examples/{name}.py" in (ROOT / f"examples/{name}.py").read_text()
        assert f"[{name}.py]({name}.py)" in table
