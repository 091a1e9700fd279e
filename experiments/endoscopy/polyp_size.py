"""Polyp sizing over folds, arms and streams: ``python -m experiments.polyp_size CONFIG --out DIR [overrides]``.

Every fold gives all arms and streams the same roles and batches. Finished runs are never repeated; ``--resume``
continues, and several processes with ``--resume`` on one folder share the runs between them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, cast

import tyro

from experiments import devices
from experiments.ablate import Left, claim, collect
from experiments.config import ARMS
from experiments.configs import polyp_phantom, polyp_size
from experiments.endoscopy import cohort as data
from experiments.endoscopy.polyp_config import PolypExperiment
from experiments.errors import BusyError, NotFiniteError, UserError, run_main
from experiments.report import write_report
from experiments.tasks import make_task
from experiments.train import train

CONFIGS: dict[str, tuple[PolypExperiment, str]] = {
    m.CONFIG.name: (m.CONFIG, m.__doc__ or "") for m in (polyp_size, polyp_phantom)
}


@dataclass(frozen=True)
class Args:
    """All folds of some arms and streams."""

    experiment: Annotated[PolypExperiment, tyro.conf.arg(name="")]
    out: Path
    """Folder of the experiment: one folder a run, results.jsonl and the report."""
    arms: tuple[str, ...] = ("baseline", "fsg", "fsg_gr")
    """What the gates are and who moves them; ``baseline`` is what the others are compared with."""
    streams: tuple[str, ...] = ("rgb",)
    """Sets of streams to train with, each joined with plus signs: rgb mask+depth."""
    folds: tuple[int, ...] = ()
    """Test folds; none given: all."""
    seed: int = 0
    resume: bool = False
    """Continue what is in `out`."""


@dataclass(frozen=True)
class Plan:
    """One run."""

    experiment: PolypExperiment
    arm: str
    path: Path


def run(args: Args) -> list[Any]:
    """Trains what is not finished; all records, which are also ``out/results.jsonl``.

    Raises:
      UserError: unknown arms or streams, a fold that does not exist, or `out` is in the way.
      NotFiniteError: at the end, when all other runs are finished: those that became NaN or Inf.
    """
    plans = list(schedule(args))
    for plan in plans:
        make_task(plan.experiment, plan.arm)
    whole = replace(args.experiment, data=replace(args.experiment.data, fold=0))
    devices.on_first(lambda: claim(whole, args.out, args.resume))
    left = Left()
    for plan in plans:
        try:
            train(plan.experiment, plan.arm, args.seed, plan.path, resume=True)
        except BusyError:
            left.busy.append(str(plan.path))
        except NotFiniteError as error:
            left.diverged.append(f"{plan.path}: {error}")
        devices.on_first(lambda: collect(args.out))
    records = devices.on_first(lambda: collect(args.out)) or []
    left.tell()
    return records


def schedule(args: Args) -> Iterator[Plan]:
    """All arms and streams of one fold before the next fold, so that what is finished can be compared."""
    if unknown := [arm for arm in args.arms if arm not in ARMS]:
        raise UserError(f"--arms: no arm is named {unknown[0]!r}; there are {', '.join(ARMS)}")
    for fold in args.folds or range(data.num_folds(args.experiment.data)):
        for streams in args.streams:
            for arm in args.arms:
                experiment = replace(
                    args.experiment,
                    data=replace(args.experiment.data, fold=fold),
                    model=replace(args.experiment.model, streams=cast(Any, tuple(streams.split("+")))),
                )
                yield Plan(experiment, arm, args.out / streams / arm / f"fold-{fold}-seed-{args.seed}")


def main() -> None:
    """Command line."""
    defaults = {name: (doc, Args(config, tyro.MISSING)) for name, (config, doc) in CONFIGS.items()}
    args = tyro.extras.overridable_config_cli(defaults, prog="python -m experiments.polyp_size")
    devices.start()
    try:
        run(args)
    except NotFiniteError:
        devices.on_first(lambda: report(args.out))
        raise
    devices.on_first(lambda: report(args.out))


def report(out: Path) -> None:
    """Writes the report of what is finished."""
    if collect(out):
        print("report: " + ", ".join(str(path) for path in write_report(out)))


if __name__ == "__main__":
    run_main(main)
