"""Hyper-parameters by validation accuracy: ``python -m experiments.tune CONFIG --out DIR --trials N [overrides]``.

The first trial is the configuration as it is, the others are suggested by optuna within the ranges beside the
configuration. The test split is not read. ``--resume`` continues, and several processes with ``--resume`` on one folder
share the trials between them.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
from optuna.trial import TrialState

from experiments import devices
from experiments.config import change, describe, flatten, get_arm
from experiments.configs import SPACES
from experiments.errors import Interrupted, UserError, run_main
from experiments.report.trials import REPORT, trial_line, write_report
from experiments.run_folder import claim_folder, read_json, write_text
from experiments.search import TRIALS, PrunerName, Search, make_pruner
from experiments.space import Space, choose, resolve
from experiments.stop import StopRequest
from experiments.tasks import make_task
from experiments.trial import TRIAL, carry_out

CONFIG, RESULTS = "tune.json", "trials.jsonl"
ENDS = {"finished": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "diverged": TrialState.PRUNED}
"""What optuna is told; a trial that diverged counts there as a bad one, and one that could not run, ``failed``, not."""


@dataclass(frozen=True)
class Plan:
    """What is searched, and how; see `cli.TuneArgs`."""

    experiment: Any
    arm: str
    space: Space
    trials: int = 20
    seeds: int = 1
    pruner: PrunerName = "median"
    sampler_seed: int = 0


def tune(plan: Plan, out: Path, *, resume: bool = False) -> list[dict[str, Any]]:
    """Carries out the trials that have not ended; the records of all that have, which are also ``out/trials.jsonl``.

    Raises:
      UserError: a plan that makes no sense, or `out` is in the way: not empty without `resume`, or with another search.
      ValueError, OSError: what a run cannot start with.
      Interrupted: the user asked to stop; everything is saved.
    """
    _check(plan)
    experiment = change(plan.experiment, {"train.test_on": "none"})
    task = make_task(experiment, plan.arm)
    space = resolve(plan.space, experiment)
    claim_folder(out / CONFIG, _config(plan, experiment, space), "search", resume=resume)
    own = {key: flatten(asdict(experiment))[key] for key in space}
    pruner = make_pruner(plan.pruner, experiment.train.epochs)
    search = Search(out, space, own, smallest=task.smallest, pruner=pruner, seed=plan.sampler_seed)
    with StopRequest() as request:
        while not request.requested and (taken := search.take(plan.trials)) is not None:
            with taken.held:
                record = carry_out(search, taken, experiment, plan.arm, plan.seeds, task.best)
                search.tell(taken.trial, ENDS.get(record["state"], TrialState.FAIL), record["validation"])
            print(trial_line(record))
            _collect(plan, search, smallest=task.smallest)
        if request.requested:
            raise Interrupted("stopped between two trials; the same command with --resume continues")
    if others := search.running():
        print(f"left to another process that is at work on them: trials {', '.join(map(str, others))}")
    return _collect(plan, search, smallest=task.smallest)


def _check(plan: Plan) -> None:
    if plan.trials < 1 or plan.seeds < 1:
        raise UserError(f"need at least one trial and one seed; got --trials {plan.trials} --seeds {plan.seeds}")
    if plan.experiment.name not in SPACES:
        raise UserError(f"--name is {plan.experiment.name!r}; a search keeps the name of a configuration")
    if plan.sampler_seed < 0:
        raise UserError(f"--sampler-seed is {plan.sampler_seed}; expected 0 or more")
    if jax.process_count() > 1:
        raise UserError("a search runs in one process; start several alone, with --resume, to share its trials")
    gates = [key for key in plan.space if key.startswith("gate.")]
    if gates and get_arm(plan.arm).gate == "none":
        raise UserError(f"--space {gates[0]}: the arm {plan.arm} has no gates")


def _config(plan: Plan, experiment: Any, space: Space) -> dict[str, Any]:
    search = {
        "seeds": plan.seeds,
        "pruner": plan.pruner,
        "sampler_seed": plan.sampler_seed,
        "space": {key: str(domain) for key, domain in space.items()},
    }
    return {k: v for k, v in describe(experiment, plan.arm, 0).items() if k != "seed"} | {"search": search}


def _collect(plan: Plan, search: Search, *, smallest: bool) -> list[dict[str, Any]]:
    """Records of all trials that have ended, which are also ``trials.jsonl``, and the report."""
    with search.alone():
        records = [read_json(file) for file in sorted((search.out / TRIALS).glob(f"*/{TRIAL}"))]
        write_text(search.out / RESULTS, "".join(json.dumps(record) + "\n" for record in records))
        if records:
            write_report(search.out, plan.experiment, plan.arm, plan.seeds, records, smallest=smallest)
    return records


def main() -> None:
    """Command line."""
    from experiments.cli import TuneArgs, parse

    args = parse(TuneArgs, "experiments.tune")
    devices.start()
    space = choose(SPACES.get(args.experiment.name, {}), args.space, args.only)
    plan = Plan(args.experiment, args.arm, space, args.trials, args.seeds, args.pruner, args.sampler_seed)
    if tune(plan, args.out, resume=args.resume):
        print(f"\n{(args.out / REPORT).read_text()}\nreport: {args.out / REPORT}")


if __name__ == "__main__":
    run_main(main)
