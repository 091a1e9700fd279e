"""The benchmark: every suite at tiny sizes, the timer, the record and the command line."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jax
import pytest

from experiments.bench.__main__ import SUITES, TABLE, bench, parse
from experiments.bench.models_jax import make_state
from experiments.bench.profile_ops import resnet18_convs
from experiments.bench.record import ROWS, Bench
from experiments.bench.routing_cost import MODES
from experiments.bench.settings import default_settings
from experiments.bench.timing import interleave, paired_ratio
from experiments.errors import UserError

VIT = replace(default_settings("cpu", smoke=True), models=("vit_tiny",), peers=())
RESNET = replace(VIT, models=("resnet18",))


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def run(settings, suite, out):
    page = bench(settings, [suite], out)
    assert page == (out / TABLE).read_text()
    rows = [json.loads(line) for line in (out / ROWS).read_text().splitlines()]
    for row in rows:
        assert row["side"] in page or row["side"] == "compiled"
        for key, value in row.items():
            if "seconds" in key and value is not None:
                assert 0 < value < 1e3, (key, row)
    return {(row["side"]): row for row in rows if row["suite"] == suite}


def test_models(tmp_path):
    rows = run(VIT, "models", tmp_path)
    plain, routed = rows["fsg_jax plain"], rows["fsg_jax sequential"]
    assert plain["images_per_second"] == pytest.approx(4 / plain["seconds"])
    assert 0 < plain["share_of_peak"] < 1
    assert plain["flops_per_image"] > 1e4
    assert plain["memory_bytes"] > plain["temporary_bytes"] > 0
    assert routed["compile_seconds"] > 0


@pytest.mark.slow
def test_routing(tmp_path):
    rows = run(VIT, "routing", tmp_path)
    assert list(rows) == list(MODES)
    flops = {name: row["flops_ratio"] for name, row in rows.items()}
    assert flops["plain"] == rows["plain"]["time_ratio"] == 1
    assert 1 <= flops["none"] == pytest.approx(flops["joint"], rel=0.01)
    assert flops["joint"] < flops["sequential, every 4"] < flops["sequential, every 2"]
    assert flops["sequential, every 2"] < flops["sequential"] < flops["reference"] < 2.2


def test_input(tmp_path):
    rows = run(VIT, "input", tmp_path)
    assert set(rows) == {"step on one batch", "Grain", "device-resident"}
    assert all(0 <= rows[name]["waiting"] < 1 for name in ("Grain", "device-resident"))


@pytest.mark.parametrize("suite", [pytest.param("seeds", marks=pytest.mark.slow), "dispatch"])
def test_ways_to_dispatch(suite, tmp_path):
    run(replace(VIT, batch=1), suite, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / ROWS).read_text().splitlines()]
    assert len(rows) == {"seeds": 3, "dispatch": 2}[suite]
    best = min(rows, key=lambda row: row["seconds"])
    assert [row["fastest"] for row in rows] == [row is best for row in rows]


@pytest.mark.slow
def test_collectives(tmp_path):
    rows = run(VIT, "collectives", tmp_path)
    assert rows["sent by each of 64 devices"]["bytes"] < rows["sent by each of 512 devices"]["bytes"]
    bytes_of_parameters = 4 * sum(x.size for x in jax.tree.leaves(make_state(VIT, "vit_tiny", **PLAIN).params))
    reduced = sum(row["bytes"] for row in rows.values() if "count" in row)
    assert bytes_of_parameters <= reduced < 1.2 * bytes_of_parameters


PLAIN = {"gated": False, "routing": "none"}


def test_convolutions_are_those_of_the_model(tmp_path):
    params = make_state(RESNET, "resnet18", **PLAIN).params
    kernels = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 4]
    convs = resnet18_convs(RESNET.width, RESNET.image)
    assert sum(conv.occurrences for conv in convs) == len(kernels)
    assert sum(c.occurrences * c.kernel**2 * c.inputs * c.outputs for c in convs) == sum(k.size for k in kernels)
    assert sum(conv.occurrences - conv.after_gate for conv in convs) == 5  # the stem and the four of the first stage


@pytest.mark.slow
def test_convolutions(tmp_path):
    rows = run(RESNET, "convolutions", tmp_path)["XLA"]
    assert rows["plain step"] < rows["sequential step"] < rows["two full passes"]


class Sleeper:
    def __init__(self, name, seconds, log):
        self.name, self.seconds, self.log = name, seconds, log

    def run(self, steps):
        self.log.append(self.name)
        time.sleep(steps * self.seconds)


def test_sides_take_turns():
    log = []
    sides = [Sleeper("a", 0.002, log), Sleeper("b", 0.006, log)]
    timings = interleave(sides, 3, 0.012, multiple=2)
    assert log[-12:] == ["a", "a", "b", "b"] * 3  # in each round one step untimed, then the sample
    assert timings["a"].steps % 2 == timings["b"].steps % 2 == 0
    ratio = paired_ratio(timings["b"], timings["a"])
    assert 1 < ratio.low <= ratio.median <= ratio.high < 30
    assert timings["a"].spread.median >= 0.002


def test_timing_needs_two_rounds_and_distinct_names():
    side = Sleeper("a", 0.0, [])
    with pytest.raises(ValueError, match="repeats of 2 or more"):
        interleave([side], 1, 0.1)
    with pytest.raises(ValueError, match="distinct names"):
        interleave([side, side], 2, 0.1)


def test_resuming_measures_nothing_twice(tmp_path):
    bench(VIT, ["peak"], tmp_path)
    before = (tmp_path / ROWS).read_text()
    with (tmp_path / ROWS).open("a") as file:
        file.write('{"suite": "mod')
    with pytest.raises(UserError, match="--resume"):
        bench(VIT, ["peak"], tmp_path)
    bench(VIT, ["peak"], tmp_path, resume=True)
    assert (tmp_path / ROWS).read_text() == before


def test_a_folder_holds_one_benchmark(tmp_path):
    Bench(VIT, tmp_path, "cpu: this one")
    with pytest.raises(UserError, match=r"settings\.batch: 4 there, 8 now"):
        Bench(replace(VIT, batch=8), tmp_path, "cpu: this one", resume=True)
    with pytest.raises(UserError, match="hardware"):
        Bench(VIT, tmp_path, "cpu: another one", resume=True)


def test_a_damaged_line_is_named(tmp_path):
    Bench(VIT, tmp_path, "cpu")
    (tmp_path / ROWS).write_text('{"suite": "peak"}\nnonsense\n{"suite": "peak"}\n')
    with pytest.raises(UserError, match="line 2"):
        Bench(VIT, tmp_path, "cpu", resume=True)


def test_settings_from_the_command_line():
    _, settings = parse(["--smoke", "--models", "vit_tiny", "--batch", "2", "--peers", "--seeds", "2", "3"])
    assert settings == replace(VIT, batch=2, seeds=(2, 3))
    _, default = parse([])
    assert default == default_settings("cpu")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nonsense"], "no suite is named 'nonsense'; there are " + ", ".join(SUITES)),
        (["--batch", "0"], "expected 1 or more, found 0"),
        (["--repeats", "1"], "--repeats is 1; expected 2 or more"),
        (["--dim", "100"], "expected multiples of 3 heads"),
        (["--batch", "6000"], "at most --examples, 5000"),
    ],
)
def test_bad_command_lines(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(argv)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_runs_without_tyro_grain_and_torch(tmp_path):
    block = "import sys; sys.modules.update(tyro=None, grain=None, torch=None)\n"
    code = block + f"sys.argv[1:] = ['peak', '--smoke', '--out', {str(tmp_path / 'out')!r}]\n"
    code += "import runpy; runpy.run_module('experiments.bench', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    assert "64 x 64 matrix product" in done.stdout
