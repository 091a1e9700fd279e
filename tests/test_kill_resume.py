"""Exact resume: kill -9 at random uses of a file, and the run ends as if nothing had happened."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest

TESTS = Path(__file__).parent
ARGS = """
digits --arm fsg_gr --seed 1 --model.width 4 --data.num-train 600 --data.augment crop flip --data.crop-padding 1
--train.epochs 10 --train.batch-size 32 --optimizer.warmup-epochs 1 --train.ema-decay 0.9 --train.log-every 3
"""
BY_STEPS = ("--train.checkpoint-every", "4", "--train.checkpoint-every-seconds", "0")
BY_CLOCK = ("--train.checkpoint-every-seconds", "0.25", "--train.validate-every", "3", "--train.test-on", "best")


def run(out: Path, cache: Path, options: tuple[str, ...], stop: tuple[int, int] | None = None) -> int:
    """Runs the command, to the end or to the signal `stop` = (signal, n-th use of a file); its exit status."""
    env = {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = ["-m", "experiments.train"]
    if stop is not None:
        command = [str(TESTS / "stopped_command.py"), *map(str, stop), str(out)]
        env["PYTHONPATH"] = str(TESTS.parent)
    command = [sys.executable, *command, *ARGS.split(), *options, "--out", str(out), "--resume"]
    with (out.parent / f"{out.name}.log").open("a") as log:
        return subprocess.run(command, cwd=TESTS.parent, env=os.environ | env, stdout=log, stderr=log).returncode


def finish(out: Path, cache: Path, options: tuple[str, ...] = BY_STEPS) -> None:
    assert run(out, cache, options) == 0, (out.parent / f"{out.name}.log").read_text()[-3000:]


def kill_at(out: Path, cache: Path, use: int, options: tuple[str, ...] = BY_STEPS) -> None:
    assert run(out, cache, options, (signal.SIGKILL, use)) == -signal.SIGKILL
    assert not (out / "result.json").exists()


def final_arrays(out: Path) -> dict[str, np.ndarray]:
    """Every array of the last checkpoint: parameters, gates, statistics, averages, optimizer state, key."""
    steps = sorted(int(p.name) for p in (out / "checkpoints").iterdir() if p.name.isdigit())
    restored = ocp.StandardCheckpointer().restore((out / "checkpoints" / str(steps[-1]) / "state").absolute())
    return {"last_step": np.array(steps[-1])} | {k: np.asarray(v) for k, v in restored.items()}


def assert_same_run(a: Path, b: Path) -> None:
    for name in ("steps.jsonl", "epochs.jsonl"):
        assert (a / name).read_text() == (b / name).read_text(), name
    first, second = (json.loads((p / "result.json").read_text()) for p in (a, b))
    for key in ("history", "gates", "test", "validation"):
        assert first[key] == second[key], key
    left, right = final_arrays(a), final_arrays(b)
    assert left.keys() == right.keys()
    for name, value in left.items():
        np.testing.assert_array_equal(value, right[name], err_msg=name)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def straight(tmp_path_factory, cache):
    """The run that nothing stops, saved by steps."""
    out = tmp_path_factory.mktemp("straight") / "run"
    finish(out, cache)
    return out


@pytest.mark.slow
@pytest.mark.parametrize(("options", "kills"), [(BY_STEPS, 10), (BY_CLOCK, 5)], ids=["steps", "clock"])
def test_kills_leave_no_trace(tmp_path, cache, straight, options, kills):
    killed = tmp_path / "killed"
    if options != BY_STEPS:
        finish(straight := tmp_path / "straight", cache, options)
    rng = random.Random(0)
    mid_save = 0
    for _ in range(kills):
        kill_at(killed, cache, rng.randint(1, 150), options)
        mid_save += any("tmp" in p.name for p in (killed / "checkpoints").glob("*"))
    finish(killed, cache, options)
    print(f"{kills} kills, {mid_save} of them while a checkpoint was being written")
    assert mid_save > 0
    assert_same_run(straight, killed)


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_costs_steps_but_not_exactness(tmp_path, cache, straight):
    killed = tmp_path / "killed"
    kill_at(killed, cache, 250)
    newest = max((p for p in (killed / "checkpoints").iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
    shutil.rmtree(newest / "state" / "d")
    finish(killed, cache)
    assert f"checkpoint {newest} is damaged" in (tmp_path / "killed.log").read_text()
    assert_same_run(straight, killed)


@pytest.mark.slow
def test_a_polite_stop_is_exact_too(tmp_path, cache, straight):
    stopped = tmp_path / "stopped"
    assert run(stopped, cache, BY_STEPS, (signal.SIGINT, 100)) == 130
    assert "--resume" in (tmp_path / "stopped.log").read_text()
    finish(stopped, cache)
    assert_same_run(straight, stopped)
