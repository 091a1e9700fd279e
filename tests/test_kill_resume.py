"""Exact resume: kill -9 at random moments, and the run ends as if nothing had happened."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest

ROOT = Path(__file__).parent.parent
ARGS = """
digits --arm fsg_gr --seed 1 --model.width 4 --data.num-train 600 --data.augment crop flip --data.crop-padding 1
--train.epochs 10 --train.batch-size 32 --optimizer.warmup-epochs 1 --train.ema-decay 0.9
--train.log-every 3 --train.checkpoint-every 4
"""
KILLS = 10


def start(out: Path, cache: Path) -> subprocess.Popen:
    env = {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = [sys.executable, "-m", "experiments.train", *ARGS.split(), "--out", str(out), "--resume"]
    with (out.parent / f"{out.name}.log").open("a") as log:
        return subprocess.Popen(command, cwd=ROOT, env=os.environ | env, stdout=log, stderr=log)


def finish(out: Path, cache: Path) -> None:
    assert start(out, cache).wait(timeout=600) == 0, (out.parent / f"{out.name}.log").read_text()[-3000:]


def steps_logged(out: Path) -> int:
    log = out / "steps.jsonl"
    return len(log.read_text().splitlines()) if log.exists() else 0


def kill_after(process: subprocess.Popen, out: Path, more_steps: int, delay: float) -> None:
    """SIGKILL `delay` seconds after `more_steps` new steps are in the log, whatever is being written then."""
    goal = steps_logged(out) + more_steps
    while process.poll() is None and steps_logged(out) < goal:
        time.sleep(0.002)
    time.sleep(delay)
    process.kill()
    process.wait()


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


@pytest.mark.slow
def test_ten_kills_leave_no_trace(tmp_path):
    cache, straight, killed = tmp_path / "cache", tmp_path / "straight", tmp_path / "killed"
    finish(straight, cache)
    rng = random.Random(0)
    mid_save = 0
    for _ in range(KILLS):
        kill_after(start(killed, cache), killed, rng.choice([1, 3, 4, 5]), rng.uniform(0.0, 0.1))
        mid_save += any("tmp" in p.name for p in (killed / "checkpoints").glob("*"))
        assert not (killed / "result.json").exists()
    finish(killed, cache)
    print(f"{KILLS} kills, {mid_save} of them while a checkpoint was being written")
    assert_same_run(straight, killed)


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_costs_steps_but_not_exactness(tmp_path):
    cache, straight, killed = tmp_path / "cache", tmp_path / "straight", tmp_path / "killed"
    finish(straight, cache)
    kill_after(start(killed, cache), killed, 40, 0.1)
    newest = max((p for p in (killed / "checkpoints").iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
    shutil.rmtree(newest / "state" / "d")
    finish(killed, cache)
    assert f"checkpoint {newest} is damaged" in (tmp_path / "killed.log").read_text()
    assert_same_run(straight, killed)


@pytest.mark.slow
def test_a_polite_stop_is_exact_too(tmp_path):
    cache, straight, stopped = tmp_path / "cache", tmp_path / "straight", tmp_path / "stopped"
    finish(straight, cache)
    process = start(stopped, cache)
    while steps_logged(stopped) < 5:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=120) == 130
    assert "--resume" in (tmp_path / "stopped.log").read_text()
    finish(stopped, cache)
    assert_same_run(straight, stopped)
