"""What the data-parallel step communicates on eight virtual devices, and what that predicts for more."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.bench.record import Bench
from experiments.bench.settings import Settings
from experiments.errors import UserError

SUITE = "collectives"
DEVICES = 8
ROUTINGS = ("none", "sequential")
DONE = "compiled"


def run(bench: Bench) -> None:
    """Rows by kind of collective and by number of devices, for a plain and a routed step of every model."""
    for model in bench.settings.models:
        settings = whole_batches(bench.settings)
        for routing in ROUTINGS:
            case = f"{'plain' if routing == 'none' else routing} step, {settings.label(model)}"
            if bench.missing(SUITE, case, [DONE]):
                _add(bench, case, compile_on_virtual_devices(settings, model, routing))


def whole_batches(settings: Settings) -> Settings:
    """The settings with the batch rounded up to whole rows a device."""
    return replace(settings, batch=-(-settings.batch // DEVICES) * DEVICES)


def _add(bench: Bench, case: str, found: dict[str, Any]) -> None:
    rows = {kind: {"count": total["instructions"], "bytes": total["nbytes"]} for kind, total in found["kinds"].items()}
    rows |= {f"sent by each of {devices} devices": each for devices, each in found["predictions"].items()}
    rows[DONE] = {"devices": DEVICES}
    for side in bench.missing(SUITE, case, rows):
        bench.add(SUITE, case, side, **rows[side])


def compile_on_virtual_devices(settings: Settings, model: str, routing: str) -> dict[str, Any]:
    """The result of `experiments.bench.virtual_devices` in a process with that many CPU devices.

    Raises:
      UserError: the process failed; the end of its output is given.
    """
    command = [sys.executable, "-m", "experiments.bench.virtual_devices"]
    command += [model, routing, json.dumps(settings.describe())]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root, check=False)
    if done.returncode:
        raise UserError(f"compiling {model} for {DEVICES} devices failed:\n{done.stderr.strip()[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))
