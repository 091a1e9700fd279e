"""Where a result comes from: commit, command, versions, hardware."""

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def gather() -> dict[str, Any]:
    """Describes this process, JSON-able; the minutes are added when a run ends."""
    commit = _git("rev-parse", "HEAD")
    return {
        "commit": commit or "unknown",
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")) if commit else None,
        "command": " ".join(["python", "-m", _module(), *sys.argv[1:]]),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "hardware": f"{jax.default_backend()}: {_device()}",
        "device": jax.default_backend(),
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _module() -> str:
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return spec.name.removesuffix(".__main__") if spec else Path(sys.argv[0]).name


def _device() -> str:
    devices = jax.devices()
    if jax.default_backend() != "cpu":
        return f"{len(devices)} x {devices[0].device_kind}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {cores} core{'s' * (cores != 1)}"


def _git(*args: str) -> str:
    here = Path(__file__).parent
    try:
        done = subprocess.run(["git", *args], cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
