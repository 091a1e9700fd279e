"""One trial of a search: its seeds trained, or as many of their epochs as it is worth, and its record."""

import gc
import json
import shutil
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optuna

from experiments import facts
from experiments.config import change
from experiments.errors import NotFiniteError, UserError
from experiments.run_folder import read_json, write_json, writing_to
from experiments.run_log import EPOCHS
from experiments.search import Search, Taken
from experiments.tasks import make_task
from experiments.train import OnEpoch, train

TRIAL = "trial.json"


def carry_out(search: Search, taken: Taken, experiment: Any, arm: str, seeds: int, best: str) -> dict[str, Any]:
    """The record of a trial, which is also its ``trial.json``; its checkpoints are removed.

    Args:
      search: that it is of.
      taken: the trial.
      experiment: of which the trial changes some values.
      arm: that is trained.
      seeds: their number, from 0.
      best: the validation metric that is compared.

    Raises:
      Interrupted: the user asked to stop; taken again, the trial goes on.
      UserError: as `train`.
    """
    file = taken.path / TRIAL
    if not file.exists():  # else a process ended between writing it and telling the study
        began = time.monotonic()
        state, reason = _end(search, taken, change(experiment, taken.values), arm, seeds, best)
        rows = [row for seed in range(seeds) if (row := _seed_row(taken.path, seed, best))]
        record = {
            "trial": taken.trial.number,
            "state": state,
            "reason": reason,
            "values": taken.values,
            "metric": best,
            "validation": float(np.mean([row["last"] for row in rows])) if state == "finished" else None,
            "seeds": rows,
            "seconds": round(time.monotonic() - began, 1),
            "facts": facts.gather(),
        }
        with writing_to(taken.path):
            write_json(file, record)
    gc.collect()  # the programs compiled for earlier trials refer to themselves
    for checkpoints in taken.path.glob("*/checkpoints"):
        shutil.rmtree(checkpoints)
    return read_json(file)


def _end(search: Search, taken: Taken, experiment: Any, arm: str, seeds: int, best: str) -> tuple[str, str]:
    """Trains the seeds; how that ended, and why."""
    try:
        make_task(experiment, arm)
    except (ValueError, UserError) as error:  # values that do not go together
        return "failed", str(error)
    on_epoch = _pruning(search, taken.trial, best, experiment.train.epochs)
    try:
        for seed in range(seeds):
            hook = on_epoch if seed == 0 else None
            train(experiment, arm, seed, _seed_path(taken.path, seed), resume=True, on_epoch=hook)
    except optuna.TrialPruned as error:
        return "pruned", str(error)
    except NotFiniteError as error:
        return "diverged", str(error).split(";")[0]
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return "failed", str(error).splitlines()[0]
    return "finished", ""


def _pruning(search: Search, trial: optuna.Trial, best: str, epochs: int) -> OnEpoch:
    """Ends a trial that is behind the others; never the first, with which all are compared."""

    def on_epoch(rows: list[dict[str, Any]]) -> None:
        (row,) = rows
        behind = search.is_behind(trial, row["epoch"], row[f"val_{best}"])
        if behind and trial.number > 0 and row["epoch"] < epochs:
            raise optuna.TrialPruned(f"behind the other trials after epoch {row['epoch']}")

    return on_epoch


def _seed_path(path: Path, seed: int) -> Path:
    return path / f"seed-{seed}"


def _seed_row(path: Path, seed: int, best: str) -> dict[str, Any] | None:
    """The epochs that a seed has run, and the metric of the last."""
    file = _seed_path(path, seed) / EPOCHS
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return {"seed": seed, "epochs": len(rows), "last": rows[-1][f"val_{best}"]} if rows else None
