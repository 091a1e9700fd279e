"""Two processes on this machine train together, are both killed, and resume."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

TESTS = Path(__file__).parent
DEVICES = 2


def start(
    folder: Path, processes: int, fsdp: int, wait_at: int = -1, tell: int = 2, devices: int = DEVICES
) -> list[subprocess.Popen]:
    """Starts the processes; each writes a byte to the file descriptor `tell` when it waits at step `wait_at`."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    env = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(TESTS.parent),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    started = []
    for index in range(processes):
        arguments = map(str, (folder, processes, index, port, fsdp, wait_at, tell))
        with (folder / f"log{index}").open("a") as log:
            command = [sys.executable, str(TESTS / "distributed_worker.py"), *arguments]
            started.append(subprocess.Popen(command, env=env, stdout=log, stderr=log, pass_fds=[tell]))
    return started


def logs(folder: Path) -> str:
    return "\n".join(path.read_text()[-3000:] for path in sorted(folder.glob("log*")))


def finish(folder: Path, processes: int, fsdp: int, **kwargs: int) -> list[np.ndarray]:
    """Runs to the end and returns the final parameters, optimizer state, averages and key."""
    running = start(folder, processes, fsdp, **kwargs)
    codes = [process.wait(timeout=300) for process in running]
    assert not any(codes), logs(folder)
    with np.load(folder / "final.npz") as arrays:
        return list(arrays.values())


def kill_all_at(folder: Path, step: int, fsdp: int) -> None:
    """SIGKILL to both processes, steps after the last checkpoint."""
    heard, tell = os.pipe()
    running = start(folder, 2, fsdp, wait_at=step, tell=tell)
    os.close(tell)
    for _ in running:
        assert os.read(heard, 1), logs(folder)  # nothing is left to read if both have ended
    os.close(heard)
    for process in running:
        process.send_signal(signal.SIGKILL)
    assert [process.wait() for process in running] == [-signal.SIGKILL] * 2


def damage_newest(folder: Path) -> Path:
    """Flips the bits of the middle byte of every file that holds arrays; those beside them are not all read."""
    newest = max((p for p in (folder / "checkpoints").iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
    victims = [p for p in (newest / "state").rglob("d/*") if p.is_file()]
    assert victims
    for victim in victims:
        content = bytearray(victim.read_bytes())
        content[len(content) // 2] ^= 255
        victim.write_bytes(content)
    return newest


def assert_identical(a: list[np.ndarray], b: list[np.ndarray]) -> None:
    for one, other in zip(a, b, strict=True):
        np.testing.assert_array_equal(one, other)


def assert_close(a: list[np.ndarray], b: list[np.ndarray]) -> None:
    for one, other in zip(a, b, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [1, 4])
def test_two_processes_are_killed_and_resume(tmp_path, fsdp):
    """Parameters copied to every device, or split over the devices of both processes."""
    straight = finish(tmp_path / "straight", 2, fsdp)
    kill_all_at(tmp_path / "killed", 5, fsdp)
    shutil.copytree(tmp_path / "killed", tmp_path / "alone")
    assert_identical(finish(tmp_path / "killed", 2, fsdp), straight)
    assert "process 1 of 2 starts at step 4" in logs(tmp_path / "killed")

    # A damaged checkpoint is set aside by agreement, and the one before it costs two steps.
    newest = damage_newest(tmp_path / "killed")
    assert_identical(finish(tmp_path / "killed", 2, fsdp), straight)
    assert newest.with_name("8.corrupt").is_dir()
    assert logs(tmp_path / "killed").count("starts at step 6") == 2

    # One process with one device goes on from what two processes saved, and gives the same from the start.
    assert_close(finish(tmp_path / "alone", 1, 1, devices=1), straight)
    assert "process 0 of 1 starts at step 4" in logs(tmp_path / "alone")
    assert_close(finish(tmp_path / "single", 1, 1, devices=1), straight)
