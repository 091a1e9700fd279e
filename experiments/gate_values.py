"""Where `experiments.inspect` finds gate values: runs, checkpoints, and saved models."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import fsg_jax as fsg
from experiments import sources
from experiments.errors import UserError
from experiments.trained import Run, find_runs, read_checkpoint, restore, run_around
from fsg_jax._checks import expect
from fsg_jax.linen.gate_kinds import find_gate_kinds


class Gates(NamedTuple):
    """The gate values of one network."""

    name: str
    group: str
    """Networks of one group are compared: runs that differ in their seed alone, or what else is given together."""
    values: dict[str, np.ndarray]
    """By gate, in the order of the forward pass."""
    origin: str
    """Where the values are from, in words."""
    initial: Mapping[str, str] | None = None
    """Type, shape and checksum of the initial weights, by path, where they are recorded."""


def read_gates(path: Path, kind: str | None = None) -> list[Gates]:
    """The gates of everything at a path: a run, a folder of runs, a checkpoint, or a saved model.

    Args:
      path: a folder.
      kind: of the gates of a checkpoint that is of no run.

    Raises:
      FileNotFoundError: there is no such folder.
      UserError: there is nothing of that in it.
      ValueError: something is damaged or has no static gates, or `kind` is needed and None.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: expected the folder of a run, a checkpoint or a model, found none")
    return [_checked(gates) for gates in _found(path, kind)]


def _found(path: Path, kind: str | None) -> list[Gates]:
    if (path / sources.MODEL).is_file():
        source = sources.load(str(path))
        kinds, _ = find_gate_kinds(source.model.init, jax.random.key(0), source.inputs)
        return [Gates(str(path), "models", _on_host(fsg.gate_values(source.variables, kinds)), "saved model")]
    if found := run_around(path):
        return [_of_run(*found)]
    if (path / "meta").is_dir():
        saved = read_checkpoint(path)
        expect(kind, "--kind", f"the kind of the gates in {path}, which is in no folder of a run", kind)
        values = _on_host(fsg.gate_values(saved.variables, kind))
        return [Gates(str(path), "checkpoints", values, f"step {saved.step}", saved.extra.get("initial_weights"))]
    if runs := find_runs(path):
        gated = [run for run in runs if run.config["arm"].get("gate") == "static"]
        expect(gated, str(path), "a run with static gates", f"{len(runs)} runs without")
        return [_of_run(run, None) for run in gated]
    raise UserError(f"{path}: expected a run, runs, a checkpoint, or {sources.MODEL} in it, found none of these")


def _of_run(run: Run, checkpoint: Path | None) -> Gates:
    if run.record is not None and checkpoint is None:
        values = {name: np.asarray(found, np.float32) for name, found in run.record["gates"].items()}
        return Gates(run.name, run.group, values, "record, 6 decimals", run.record.get("initial_weights"))
    found = restore(run, checkpoint)
    initial = found.saved.extra.get("initial_weights")
    values, step = _on_host(fsg.gate_values(found.variables, found.kinds)), f"step {found.saved.step}"
    return Gates(run.name if checkpoint is None else f"{run.name} {step}", run.group, values, step, initial)


def _on_host(values: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.asarray(found) for name, found in values.items()}


def _checked(gates: Gates) -> Gates:
    expect(gates.values, gates.name, "static gates", "none")
    for name, values in gates.values.items():
        right = values.ndim == 1 and values.size and np.isfinite(values).all()
        expect(
            right, f"{gates.name}: gate {name!r}", "finite values (channels,)", f"shape {values.shape}, or NaN or Inf"
        )
    return gates
