"""The benchmark: every suite at tiny sizes, the timer, the record and the command line."""

import itertools
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import flax.linen as nn
import jax
import numpy as np
import pytest
import tiny
from cases import fast

from experiments.bench import collectives, epochs, jax_steps, operations
from experiments.bench.__main__ import TABLE, bench, parse
from experiments.bench.comparisons import MODES, STEP, _over_first, _waiting, compare
from experiments.bench.jax_steps import make_state
from experiments.bench.layer_times import OPERATIONS, layers_of
from experiments.bench.measurements import ROWS, Bench, read_rows
from experiments.bench.settings import default_settings
from experiments.bench.suites import SUITES, render
from experiments.bench.timing import Side, interleave, quartiles, time_row
from experiments.errors import UserError
from fsg_jax.models.norms import FastBatchNorm, FastLayerNorm
from fsg_jax.models.vit import SelfAttention

ROOT = Path(__file__).parents[1]

VIT = replace(default_settings("cpu", smoke=True), models=("vit_tiny",), peers=())
RESNET = replace(VIT, models=("resnet18",))


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


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


@pytest.mark.slow
def test_models(tmp_path):
    rows = run(VIT, "models", tmp_path)
    plain, routed = rows["fsg_jax plain"], rows["fsg_jax sequential"]
    assert plain["images_per_second"] == pytest.approx(4 / plain["seconds"])
    peak = {row["side"]: row["flops_per_second"] for row in read_rows(tmp_path / ROWS) if row["suite"] == "peak"}
    rate = plain["images_per_second"] * plain["flops_per_image"]
    assert plain["share_of_peak"] == pytest.approx(rate / peak["float32"])
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


@pytest.mark.slow
def test_input(tmp_path):
    rows = run(VIT, "input", tmp_path)
    assert set(rows) == {"step on one batch", "Grain", "device-resident"}
    assert all("waiting" in rows[name] for name in ("Grain", "device-resident"))


def test_operations(tmp_path, monkeypatch):
    """Products of all blocks are one row, and the rows add up to the whole."""
    monkeypatch.setattr(operations, "SHOWN", 1000)
    bench(replace(VIT, depth=2), ["operations"], tmp_path)
    rows = read_rows(tmp_path / ROWS)
    for mode, backward in (("plain", 4), ("sequential", 8)):
        case = {row["side"]: row for row in rows if row["case"].startswith(f"{mode} step")}
        whole, parts = case.pop("all operations"), case.values()
        assert sum(row["seconds"] for row in parts) == pytest.approx(whole["seconds"])
        assert sum(row["share"] for row in parts) == pytest.approx(1)
        assert sum(row["count"] for row in parts) == whole["count"]
        assert whole["step"] > 0
        assert case["backward blocks_#/mlp/fc#/dot_general"]["count"] == backward
    bench(replace(VIT, depth=2), ["operations"], tmp_path, resume=True)
    assert read_rows(tmp_path / ROWS) == rows


PROGRAM = """
  %fusion.3 = f32[8]{0} fusion(%p), metadata={op_name="jit(step)/jvp(ViT)/blocks_11/attn/attn._attend/dot_general"}
  ROOT %gemm_fusion_dot.7 = f32[8] fusion(%p), metadata={op_name="jit(step)/transpose(jvp(V))/mlp/jvp(V)/mlp/fc2/mul"}
  %multiply.1 = f32[] multiply(%a, %b), metadata={op_name="jit(step)/add"}
  %copy.12 = f32[8]{0} copy(%p)
  %while.5 = (f32[8]) while(%t), metadata={op_name="jit(step)/while"}
"""


def test_operations_are_named_by_pass_and_module():
    """On a GPU a kernel may state the command buffer that it is in, and a library's has no name in the program."""
    names = operations.operation_names(PROGRAM)
    assert names == {
        "fusion.3": "forward blocks_#/attn/dot_general",
        "gemm_fusion_dot.7": "backward mlp/fc#/mul",
        "multiply.1": "update add",
        "copy.12": "copy",
    }

    def event(name, operation):
        return SimpleNamespace(name=name, stats=[("hlo_op", operation)] if operation else [], duration_ns=2)

    kernels = [event("k", "fusion.3")]
    kernels += [event(name, "command_buffer_1") for name in ("gemm_fusion_dot_7", "nvjet_tst_1")]
    kernels += [event("launch", None), event("while.5", "while.5")]
    host = SimpleNamespace(name="/host:CPU", lines=[SimpleNamespace(events=kernels[:1] + kernels[3:])])
    device = SimpleNamespace(name="/device:GPU:0", lines=[SimpleNamespace(events=kernels[:4])])
    assert list(operations.times_of([host], names)) == [("forward blocks_#/attn/dot_general", 2)]
    found = [name for name, _ in operations.times_of([host, device], names)]
    assert found == ["forward blocks_#/attn/dot_general", "backward mlp/fc#/mul", "library nvjet"]


def test_waiting_is_what_exceeds_the_step_in_the_same_round():
    times = {
        STEP: np.array([1.0, 2.0, 4.0]),
        "slow": np.array([2.0, 4.0, 5.0]),
        "slow alone": np.array([1.0, 0.5, 2.0]),
    }
    row = _waiting(8, "slow", {}, times)
    assert row["waiting"] == 0.5
    assert (row["images_per_second"], row["path_images_per_second"]) == (2.0, 8.0)
    assert _waiting(8, "slow", {}, times | {"slow": times[STEP] / 2})["waiting"] == 0
    assert "waiting" not in _waiting(8, STEP, {}, times)


def test_the_fastest_way_and_its_ratio_to_the_first():
    times = {"loop": np.array([4.0, 2.0]), "scan": np.array([1.0, 1.0])}
    rows = {name: _over_first(name, {}, times) for name in times}
    assert [(row["time_ratio"], row["fastest"]) for row in rows.values()] == [(1.0, False), (0.375, True)]


@pytest.mark.slow
def test_what_an_epoch_costs_beside_its_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(epochs, "SIDES", {"saved at every epoch": {}})
    monkeypatch.setattr(epochs, "experiment", lambda *_: tiny.digits(data={"resident": "yes"}, train={"epochs": 4}))
    (row,) = run(replace(VIT, epochs=2), "epochs", tmp_path).values()
    assert row["rounds"] == 2
    assert row["books_least"] <= row["books"]
    assert min(row["epoch"], row["steps"], row["validation"], row["end"]) > 0


@pytest.mark.parametrize("suite", fast(["dispatch", "seeds"]))
def test_ways_to_dispatch(suite, tmp_path):
    run(replace(VIT, batch=1), suite, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / ROWS).read_text().splitlines()]
    assert len(rows) == {"seeds": 3, "dispatch": 2}[suite]
    best = min(rows, key=lambda row: row["seconds"])
    assert [row["fastest"] for row in rows] == [row is best for row in rows]


@pytest.mark.slow
def test_collectives(tmp_path):
    rows = run(VIT, "collectives", tmp_path)
    bytes_of_parameters = 4 * sum(x.size for x in jax.tree.leaves(make_state(VIT, "vit_tiny").params))
    reduced = sum(row["bytes"] for row in rows.values() if "count" in row)
    assert bytes_of_parameters <= reduced < 1.2 * bytes_of_parameters
    plain = [row for row in read_rows(tmp_path / ROWS) if row["case"].startswith("plain step")]
    sizes = [row["bytes"] for row in plain if "count" in row]
    for devices in (8, 64, 512):
        sent = next(row["bytes"] for row in plain if row["side"] == f"sent by each of {devices} devices")
        assert sent == pytest.approx(2 * (devices - 1) / devices * sum(sizes))


def test_a_failed_compilation_is_told_in_one_line(monkeypatch, tmp_path):
    def fail(*_):
        raise RuntimeError("no memory")

    monkeypatch.setattr(collectives, "ProcessPoolExecutor", lambda workers, context: ThreadPoolExecutor(workers))
    monkeypatch.setattr(collectives, "describe_step", fail)
    with pytest.raises(UserError, match="compiling vit_tiny for 8 devices failed: no memory"):
        collectives.count_collectives(Bench(VIT, tmp_path, "cpu"))


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0"])
def test_layers_are_those_of_the_model(name):
    state = jax.eval_shape(lambda: make_state(RESNET, name))
    kernels = [leaf for leaf in jax.tree.leaves(state.params) if leaf.ndim == 4]
    layers = layers_of(RESNET, name)
    convs = [layer for layer in layers if "convolution" in layer.kind]
    assert sum(layer.count for layer in convs) == len(kernels)
    channels = [(c.shape[-1] // c.module.feature_group_count, c.count * c.module.features * c.kernel**2) for c in convs]
    assert sum(inputs * rest for inputs, rest in channels) == sum(k.size for k in kernels)
    norms = [layer for layer in layers if "BatchNorm" in layer.kind]
    assert 2 * sum(layer.count * layer.shape[-1] for layer in norms) == sum(
        leaf.size for leaf in jax.tree.leaves(state.batch_stats)
    )
    first = {"resnet18": 5, "efficientnet_b0": 3}[name]  # the stem and the convolutions of the first stage
    assert sum(layer.count - layer.after_gate for layer in convs) == first
    assert [layer.image for layer in layers] == [True] + [False] * (len(layers) - 1)


@pytest.mark.slow
def test_layers(tmp_path):
    run(RESNET, "layers", tmp_path)
    rows = {row["case"]: row for row in read_rows(tmp_path / ROWS) if row["side"] == "JAX"}
    for kind in ("convolution", "1x1 convolution", "BatchNorm and activation"):
        total = next(row for case, row in rows.items() if case.startswith(f"every {kind}"))
        assert total["count"] == {"convolution": 17, "1x1 convolution": 3, "BatchNorm and activation": 20}[kind]
        plain = again = 0.0
        for layer in layers_of(RESNET, "resnet18"):
            if layer.kind == kind:
                forward, inputs, weights = (rows[layer.label("float32")].get(name, 0) for name in OPERATIONS)
                plain += layer.count * (forward + weights + inputs * (not layer.image))  # nobody needs the images'
                again += layer.after_gate * (forward + inputs)
        assert total["plain step"] == pytest.approx(plain)
        assert total["sequential step"] == pytest.approx(plain + again)
        assert total["two full passes"] == pytest.approx(2 * plain)


class Clock:
    """Time that passes only where a side takes a step."""

    def __init__(self):
        self.now, self.log = 0.0, []

    def side(self, name, *seconds, units=1):
        """Its steps take the given seconds in turn."""
        calls = itertools.cycle(seconds)

        def call():
            self.log.append(name)
            self.now += next(calls)

        return Side(call, wait=lambda _: None, units=units)


def test_sides_take_turns():
    clock = Clock()
    sides = {"a": clock.side("a", 2.0), "b": clock.side("b", 6.0, units=2), "c": clock.side("c", 1.0, 2.0)}
    times = interleave(sides, 3, 12.0, multiple=2, clock=lambda: clock.now)
    warm_up = ["a"] * 4 + ["b"] * 4 + ["c"] * 4
    one_round = ["a"] * (1 + 6) + ["b"] * (1 + 2) + ["c"] * (1 + 8)  # one step untimed, then 12 seconds of whole pairs
    assert clock.log == warm_up + one_round * 3
    assert {name: list(t) for name, t in times.items()} == {"a": [2.0] * 3, "b": [3.0] * 3, "c": [1.5] * 3}


def test_quartiles_are_those_of_the_rounds():
    times = np.array([1.0, 2.0, 3.0, 4.0, 10.0])
    assert time_row(times) == {"seconds": 3.0, "seconds_low": 2.0, "seconds_high": 4.0, "rounds": 5}
    assert quartiles(times / times, "x", "low", "high") == {"x": 1.0, "low": 1.0, "high": 1.0}


def test_timing_needs_two_rounds():
    with pytest.raises(ValueError, match="repeats: expected an integer >= 2, found 1"):
        interleave({"a": Clock().side("a", 1.0)}, 1, 0.1)


def test_only_missing_rows_are_added_and_what_is_not_measured_says_why(tmp_path):
    settings = replace(VIT, seconds=1e-9)
    made = Bench(settings, tmp_path, "cpu")
    made.add("peak", "case", "old", seconds=1.0)
    clock, taken = Clock(), []
    makers = {"old": lambda: clock.side("old", 1.0), "new": lambda: clock.side("new", 1.0), "none": lambda: "no reason"}
    beside = {"beside": lambda: clock.side("beside", 1.0)}
    for _ in range(2):  # the second time all rows are there
        compare(made, "peak", "case", makers, lambda name, sides, times: {"sides": list(times)}, beside=beside)
        taken.append(set(clock.log))
        clock.log.clear()
    assert taken == [{"old", "new", "beside"}, set()]
    assert [row["side"] for row in made.rows] == ["old", "new", "none"]
    assert made.rows[1]["sides"] == ["old", "new", "beside"]
    assert made.rows[2]["note"] == "no reason"


FACTS = {
    "versions": {"jax": "1"},
    "commit": "c",
    "dirty": False,
    "command": "x",
    "hardware": "h",
    "started": "s",
    "compilation_cache": "off",
    "xla_flags": "",
}


@pytest.mark.parametrize("folder", sorted(f.parent for f in (ROOT / "experiments/results").glob("*/bench.jsonl")))
def test_recorded_measurements_give_the_recorded_tables(folder):
    """What precedes the tables, facts and notes, is of its day."""
    page = render(read_rows(folder / ROWS), FACTS)
    lines = [[line for line in text.splitlines() if line[:1] == "|"] for text in (page, (folder / TABLE).read_text())]
    assert lines[0] == lines[1] != []


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


@pytest.mark.parametrize("line", ["nonsense", "[1]", '{"suite": "peak"}', "[" * 100_000])
def test_a_damaged_line_is_named(tmp_path, line):
    Bench(VIT, tmp_path, "cpu")
    row = '{"suite": "peak", "case": "a", "side": "b"}'
    (tmp_path / ROWS).write_text(f"{row}\n{line}\n{row}\n")
    with pytest.raises(UserError, match="line 2"):
        Bench(VIT, tmp_path, "cpu", resume=True)


def test_settings_from_the_command_line():
    _, settings = parse(["--smoke", "--models", "vit_tiny", "--batch", "2", "--peers", "--seeds", "2", "3"])
    assert settings == replace(VIT, batch=2, seeds=(2, 3))
    _, default = parse([])
    assert default == default_settings("cpu")


def test_the_kernels_of_a_model_can_be_chosen():
    _, settings = parse(["--smoke", "--attention", "xla", "--norm", "flax"])
    plain = replace(settings, attention="einsum", norm="fast")
    (resnet, vit), usual = (
        [jax_steps.make_model(s, name, gated=False) for name in ("resnet18", "vit_tiny")] for s in (settings, plain)
    )
    assert [m.norm.func for m in (resnet, vit, *usual)] == [nn.BatchNorm, nn.LayerNorm, FastBatchNorm, FastLayerNorm]
    assert (vit.mixer.func, usual[1].mixer) == (SelfAttention, None)
    labels = [s.label(name) for s in (settings, plain) for name in ("resnet18", "vit_tiny")]
    assert [("attention by xla" in each, "norm flax" in each) for each in labels[:2]] == [(False, True), (True, True)]
    assert len(set(labels)) == 4


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nonsense"], f"SUITE: expected one of {', '.join(map(repr, SUITES))}, found 'nonsense'"),
        (["--batch", "0"], "batch: expected an integer >= 1, found 0"),
        (["--seeds", "2", "0"], "seeds: expected an integer >= 1, found 0"),
        (["--repeats", "1"], "repeats: expected an integer >= 2, found 1"),
        (["--seconds", "0"], "seconds: expected a finite number > 0, found 0.0"),
        (["--dim", "100"], "dim and image: expected multiples of 3 heads and of patches of 4, found 100 and 32"),
        (["--batch", "6000"], "batch: expected at most examples, 5000, found 6000"),
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
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "64 x 64 matrix product" in done.stdout
