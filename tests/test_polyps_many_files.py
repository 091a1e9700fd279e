"""Indexing many annotations: killed and called again, in bounded memory.

`FSG_JAX_INDEX_FILES` sets how many, 24,000 by default; with a million it takes some minutes.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.polyp_files import write_lesions, xml_text

ROOT = Path(__file__).parents[1]
FILES = int(os.environ.get("FSG_JAX_INDEX_FILES", 24_000))
OUTPUTS = ("index.parquet", "dropped.csv", "notes.csv")
GIB = 2**30


def write_many(root: Path, files: int, per_video: int) -> None:
    """Annotations without frames; every eighth has a box, every ten-thousandth is broken."""
    root.mkdir()
    videos = [f"001-{number:03d}" for number in range(files // per_video)]
    write_lesions(root, {f"{video}_1": "5" for video in videos})
    for video in videos:
        folder = root / f"{video}_annotations"
        folder.mkdir()
        for t in range(per_video):
            corners = (t % 200, 3, 230 + t % 300, 400)
            text = xml_text([] if t % 8 else [(f"{video}_1", corners)], (1920, 1080))
            (folder / f"{video}_{t}.xml").write_text(text[:100] if t % 10_000 == 1 else text)


class Memory(threading.Thread):
    """Samples the resident memory of a process and its children together, in bytes."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.peak = pid, 0

    def run(self) -> None:
        while total := sum(resident(pid) for pid in (self.pid, *children(self.pid))):
            self.peak = max(self.peak, total)
            time.sleep(0.2)


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (FileNotFoundError, ProcessLookupError):
        return 0


def is_worker(pid: int) -> bool:
    """Whether the process is there, and was spawned as a worker."""
    try:
        return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False


def start(root: Path, out: Path, **kwargs: object) -> subprocess.Popen:
    args = ["-m", "experiments.endoscopy.index", "real-colon", root, "--out", out, "--verify", "none", "--workers", "2"]
    return subprocess.Popen([sys.executable, *map(str, args)], cwd=ROOT, text=True, **kwargs)


def finish(root: Path, out: Path) -> tuple[dict, int]:
    """Runs the command to its end; the summary and the peak memory."""
    process = start(root, out, stdout=subprocess.DEVNULL)
    memory = Memory(process.pid)
    memory.start()
    assert process.wait() == 0
    return json.loads((out / "summary.json").read_text()), memory.peak


@pytest.mark.slow
def test_many_files_killed_and_called_again(tmp_path):
    root, out, whole = tmp_path / "root", tmp_path / "out", tmp_path / "whole"
    write_many(root, FILES, per_video=min(FILES // 12, 25_000))
    total, peak = finish(root, whole)
    print(json.dumps(total, indent=1), f"peak {peak / GIB:.2f} GiB")
    assert peak < 2 * GIB
    assert total["files"] == FILES
    assert total["rows"] == total["frames with boxes"]

    process, finished = start(root, out, stderr=subprocess.DEVNULL), len(list((whole / "parts").glob("*.json")))
    wait_until(lambda: len(list((out / "parts").glob("*.json"))) >= finished // 4)
    process.send_signal(signal.SIGSTOP)
    workers = children(process.pid)
    busy = start(root, out, stderr=subprocess.PIPE)
    assert "in use by another process" in busy.communicate()[1]
    assert busy.returncode == 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "index.parquet").exists()
    wait_until(lambda: not any(is_worker(pid) for pid in workers))

    again, _ = finish(root, out)
    print(f"read after the kill: {again['files_read_now']} of {again['files']}")
    assert again["files_read_now"] < FILES
    assert [(out / name).read_bytes() for name in OUTPUTS] == [(whole / name).read_bytes() for name in OUTPUTS]


def wait_until(condition) -> None:
    deadline = time.monotonic() + 60 + FILES / 1000
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
