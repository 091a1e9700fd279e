"""Hyper-parameters by validation metric: ``python -m experiments.tune CONFIG --out DIR --trials N [overrides]``.

The first trial is the configuration as it is, the others are suggested by optuna within the ranges beside the
configuration. The test split is not read. ``--resume`` continues, and several processes with ``--resume`` on one folder
share the trials between them.
"""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optuna
from optuna.trial import TrialState

from experiments import devices, pretrained, provenance
from experiments.cli import TuneArgs, parse, with_added_arms
from experiments.config import BaseExperiment, change, check_bounded, describe, in_arm, settings
from experiments.configs import SPACES
from experiments.errors import NotFiniteError, StopRequested, UserError, run_main
from experiments.report.trials import REPORT, trial_line, write_report
from experiments.run_folder import check_record, claim_folder, seal, writing_to
from experiments.run_log import EPOCHS
from experiments.search import TRIALS, ClaimedTrial, Search, make_pruner
from experiments.space import choose, resolve, spell
from experiments.stop import StopRequest
from experiments.task import make_task, release_programs
from experiments.train import OnEpoch, train
from fsg_jax._files import parse_json, read_json, read_text, write_json, write_text

CONFIG, RESULTS, TRIAL = "tune.json", "trials.jsonl", "trial.json"
ENDS = {"finished": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "diverged": TrialState.PRUNED}
"""What optuna is told; a trial that diverged counts there as a bad one, and one that could not run, ``failed``, not."""


def tune(args: TuneArgs) -> list[dict[str, Any]]:
    """Runs the trials that have not ended; the records of all that have, which are also ``out/trials.jsonl``.

    Raises:
      UserError, ValueError, OSError: the arguments make no sense, a run cannot start, or ``out`` is not empty without
        ``resume`` or holds another search.
      StopRequested: the user asked to stop; everything is saved.
    """
    args = with_added_arms(args)
    for option, low in {"trials": 1, "seeds": 1, "sampler_seed": 0}.items():
        check_bounded(f"--{option.replace('_', '-')}", getattr(args, option), low, 2**31 - 1)
    if args.experiment.name not in SPACES:
        raise UserError(f"--name: expected the name of a configuration, found {args.experiment.name!r}")
    if jax.process_count() > 1:
        raise UserError("a search runs in one process; start several alone, with --resume, to share its trials")
    experiment = pretrained.pin(change(args.experiment, {"train.test_on": "none"}))
    ranges = choose(SPACES[experiment.name], args.space, args.only)
    space = {key: resolve(key, text, experiment) for key, text in ranges.items()}
    resolved = in_arm(experiment, args.arm)
    gates = [key for key in space if key.startswith("gate.")]
    if gates and resolved.arm.gate == "none":
        raise UserError(f"--space {gates[0]}: the arm {args.arm} has no gates")
    if own := [key for key, _ in dict(experiment.added_arms).get(args.arm, ()) if key in space]:
        raise UserError(f"--space {own[0]}: the arm {args.arm} sets it; search the others with --only")
    task = make_task(experiment, args.arm)
    config: dict[str, Any] = {"seeds": args.seeds, "pruner": args.pruner, "sampler_seed": args.sampler_seed}
    config["space"] = {key: spell(found) for key, found in space.items()}
    claim_folder(args.out / CONFIG, describe(experiment, args.arm) | {"search": config}, "search", resume=args.resume)
    first = {key: settings(experiment)[key] for key in space}
    pruner = make_pruner(args.pruner, resolved.train.epochs)
    search = Search(args.out, space, first, smallest=task.smallest, pruner=pruner, seed=args.sampler_seed)
    with StopRequest() as request:
        while not request.requested and (claimed := search.take(args.trials)) is not None:
            with claimed.lock_file:
                record = run_trial(search, claimed, experiment, args.arm, args.seeds, task.best)
                search.tell(claimed.trial, ENDS.get(record["state"], TrialState.FAIL), record["validation"])
            print(trial_line(record))
            _collect(args, search, smallest=task.smallest)
        if request.requested:
            raise StopRequested("stopped between two trials; the same command with --resume continues")
    if others := search.running():
        print(f"left to another process that is at work on them: trials {', '.join(map(str, others))}")
    return _collect(args, search, smallest=task.smallest)


def run_trial(
    search: Search, claimed: ClaimedTrial, experiment: BaseExperiment, arm: str, seeds: int, best: str
) -> dict[str, Any]:
    """Trains the seeds of a trial, or as many of their epochs as it is worth, and removes their checkpoints.

    Args:
      search: the search of the trial.
      claimed: the trial.
      experiment: the configuration, of which the trial changes some values.
      arm: that is trained.
      seeds: number of seeds, from 0.
      best: the validation metric that is compared.

    Returns:
      The record of the trial, which is also its ``trial.json``.

    Raises:
      StopRequested: the user asked to stop; taken again, the trial goes on.
      Exception: as `train`.
    """
    file = claimed.path / TRIAL
    if not file.exists():  # else a process ended between writing it and telling the study
        began = time.monotonic()
        epochs = in_arm(experiment, arm).train.epochs
        outs = [claimed.path / f"seed-{seed}" for seed in range(seeds)]
        state, reason = _end(
            change(experiment, claimed.values), arm, outs, _pruning(search, claimed.trial, best, epochs)
        )
        rows = [row for seed, out in enumerate(outs) if (row := _seed_row(seed, out / EPOCHS, f"val_{best}"))]
        record = {
            "trial": claimed.trial.number,
            "state": state,
            "reason": reason,
            "values": claimed.values,
            "metric": best,
            "validation": float(np.mean([row["last"] for row in rows])) if state == "finished" else None,
            "seeds": rows,
            "seconds": round(time.monotonic() - began, 1),
            "facts": provenance.gather(),
        }
        with writing_to(claimed.path):
            write_json(file, seal(record))
    release_programs()
    for checkpoints in claimed.path.glob("*/checkpoints"):
        shutil.rmtree(checkpoints)
    return check_record(read_json(file), file)


def _end(experiment: BaseExperiment, arm: str, outs: list[Path], on_epoch: OnEpoch) -> tuple[str, str]:
    """Trains the seeds; how that ended, and why. The first seed decides whether the trial goes on."""
    try:
        make_task(experiment, arm)
    except (ValueError, UserError) as error:  # values that do not go together
        return "failed", str(error)
    try:
        for seed, out in enumerate(outs):
            train(experiment, arm, seed, out, resume=True, on_epoch=on_epoch if seed == 0 else None)
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
        if f"val_{best}" not in row:  # an epoch that was not validated
            return
        behind = search.is_behind(trial, row["epoch"], row[f"val_{best}"])
        if behind and trial.number > 0 and row["epoch"] < epochs:
            raise optuna.TrialPruned(f"behind the other trials after epoch {row['epoch']}")

    return on_epoch


def _seed_row(seed: int, log: Path, metric: str) -> dict[str, Any] | None:
    """The number of epochs that a seed has run, and the metric of the last that was validated; None without one."""
    lines = read_text(log).splitlines() if log.exists() else []
    rows = [parse_json(line, f"{log}, line {number}") for number, line in enumerate(lines, start=1)]
    values = [row[metric] for row in rows if metric in row]
    return {"seed": seed, "epochs": len(rows), "last": values[-1]} if values else None


def _collect(args: TuneArgs, search: Search, *, smallest: bool) -> list[dict[str, Any]]:
    """Records of all trials that have ended; writes ``trials.jsonl`` and the report too."""
    with search.alone():
        files = sorted((args.out / TRIALS).glob(f"*/{TRIAL}"))
        records = [check_record(read_json(file), file) for file in files]
        write_text(args.out / RESULTS, "".join(json.dumps(record) + "\n" for record in records))
        if records:
            write_report(args.out, args.experiment, args.arm, args.seeds, records, smallest=smallest)
    return records


def main() -> None:
    """Command line."""
    args = parse(TuneArgs, "experiments.tune")
    devices.start()
    if tune(args):
        print(f"\n{(args.out / REPORT).read_text()}\nreport: {args.out / REPORT}")


if __name__ == "__main__":
    run_main(main)
