"""The training command on several devices and in several processes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = str(Path(__file__).parent.parent)
TRAIN = ["-m", "experiments.train", "digits", "--arm", "fsg_gr"]
OPTIONS = {
    "data.num-train": "256",
    "model.width": "4",
    "train.epochs": "2",
    "train.batch-size": "16",
    "train.checkpoint-every": "4",
    "optimizer.warmup-epochs": "0.5",
    "optimizer.learning-rate": "0.01",
}
COMMAND = TRAIN + [word for key, value in OPTIONS.items() for word in (f"--{key}", value)]


def start(out: Path, *options: str, devices: int = 1, process: int = 0, processes: int = 1, port: int = 0):
    """One process of a run, with virtual devices."""
    env = os.environ | {"PYTHONPATH": ROOT, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    if processes > 1:
        address = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": str(processes)}
        env |= address | {"JAX_PROCESS_ID": str(process)}
    line = [sys.executable, *COMMAND, "--out", str(out), *options]
    return subprocess.Popen(line, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(*processes: subprocess.Popen) -> None:
    for process in processes:
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors[-3000:]


def two(out: Path, *options: str) -> list[subprocess.Popen]:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    return [start(out, *options, process=i, processes=2, port=port) for i in (0, 1)]


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "steps.jsonl").read_text().splitlines()]


def assert_same(out: Path, alone: Path) -> None:
    """Rounding differs with the number of devices, and training makes it grow: the first steps tell."""
    assert len(losses(out)) == len(losses(alone)) == 32
    assert losses(out)[:12] == pytest.approx(losses(alone)[:12], rel=1e-3)
    assert losses(out) == pytest.approx(losses(alone), rel=0.05)


def record(out: Path) -> dict:
    return json.loads((out / "result.json").read_text())


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "run"
    finish(start(out))
    return out


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--data.resident", "yes", "--train.dispatch", "scan"), ("--train.fsdp", "2")])
def test_eight_devices_train_as_one(alone, tmp_path, options):
    finish(start(tmp_path / "run", *options, devices=8))
    assert_same(tmp_path / "run", alone)
    assert record(tmp_path / "run")["facts"]["devices"] == 8


@pytest.mark.slow
def test_two_seeds_side_by_side_on_four_devices(alone, tmp_path):
    env = os.environ | {"PYTHONPATH": ROOT, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    words = COMMAND[2:3] + COMMAND[5:] + ["--data.resident", "yes", "--train.dispatch", "scan", "--arms", "fsg_gr"]
    line = [sys.executable, "-m", "experiments.ablate", *words, "--seeds", "2", "--together", "2"]
    done = subprocess.run([*line, "--out", str(tmp_path / "out")], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same(tmp_path / "out" / "fsg_gr" / "seed-0", alone)


@pytest.mark.slow
def test_two_processes_are_killed_and_resume(alone, tmp_path):
    out = tmp_path / "run"
    processes = two(out)
    deadline = time.monotonic() + 400
    while not any(p.name.isdigit() for p in (out / "checkpoints").glob("*")):
        assert time.monotonic() < deadline, "no checkpoint"
        assert all(p.poll() is None for p in processes), [p.communicate()[1][-2000:] for p in processes]
        time.sleep(0.1)
    for process in processes:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    finish(*two(out, "--resume"))
    assert_same(out, alone)
    assert record(out)["facts"]["processes"] == 2
