"""All arms over several seeds: ``python -m experiments.ablate CONFIG --seeds N --arms ... --out DIR [overrides]``.

Polyp sizing also goes over sets of streams and over test folds: ``--streams rgb mask+depth --folds 0 1 2``.

``--add-arm NAME key=value ...`` is one more arm. Every seed and fold gives every arm the same initial weights and the
same batches, wherever its overrides leave their shapes and sizes alone. Finished runs are never repeated; ``--resume``
continues, and several processes with ``--resume`` on one folder share the runs between them. ``--first-seed`` makes
other seeds, to be joined by ``python -m experiments.report DIR DIR ...``; ``--minutes`` begins no run that would not
end in time.
"""

import json
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from experiments import devices, pretrained
from experiments.budget import Budget, Took
from experiments.cli import AblateArgs, parse, with_added_arms
from experiments.config import ARMS, BaseExperiment, Variant, check_bounded, describe
from experiments.errors import NotFiniteError, TimeIsUp, UserError, run_main
from experiments.report import summary_table, write_report
from experiments.report.join import ABLATION as CONFIG
from experiments.run_folder import CONFIG as RUN_CONFIG
from experiments.run_folder import (
    RESULT,
    check_record,
    claim_folder,
    config_damage,
    identity,
    mend,
    seal,
    sound_record,
    writing_to,
)
from experiments.task import make_task, release_programs_if_many
from experiments.train import train_together
from fsg_jax._checks import check_positive
from fsg_jax._files import read_json, write_json, write_text

RESULTS = "results.jsonl"


class Group(NamedTuple):
    """Runs that differ in their seed alone."""

    experiment: BaseExperiment
    arm: str
    outs: dict[int, Path]
    """Folders by seed."""


def ablate(args: AblateArgs) -> list[Any]:
    """Trains what is not finished; all records, which are also ``out/results.jsonl``.

    Raises:
      UserError: there is no arm, one is given twice, the experiment has no such axis, or ``out`` is not empty without
        ``resume`` or holds another configuration, whose differing keys are named.
      ValueError, OSError: a run cannot start.
      NotFiniteError: after all other runs are finished, if some became NaN or Inf; they are named.
      TimeIsUp: runs were left out because of ``minutes``; they are named.
    """
    args = with_added_arms(args)
    args = replace(args, experiment=pretrained.pin(args.experiment))
    arms, seeds = args.arms, args.experiment.default_seeds if args.seeds is None else args.seeds
    check_bounded("--seeds", seeds, 1, 10_000)
    check_bounded("--first-seed", args.first_seed, 0, 2**32 - seeds)
    if args.minutes is not None:
        check_positive(**{"--minutes": args.minutes})
    if not arms or len(set(arms)) < len(arms):
        raise UserError(f"--arms: expected one or more distinct arms, found {' '.join(arms)}")
    variants = args.experiment.variants(args.streams, args.folds)
    sizes = [make_task(variant.experiment, arm).seeds_together for fold in variants for variant in fold for arm in arms]
    together = sizes[0] if args.together is None else args.together
    check_bounded("--together", together, 1, 10_000)
    numbers = range(args.first_seed, args.first_seed + seeds)
    groups = list(schedule(variants, arms, numbers, together, args.out))
    devices.on_first(lambda: claim(args.experiment, groups, args.out, args.resume))
    unfinished, budget = Unfinished(), Budget(args.minutes, [_took(file.parent) for file in _files(args.out, RESULT)])
    for group in groups:
        left = [path for path in group.outs.values() if not (path / RESULT).exists()]
        if devices.any_process(bool(left) and not budget.allows(left[0].parent, group[:2], len(left))):
            unfinished.late += [path.relative_to(args.out).as_posix() for path in left]
            continue
        began, compiled = time.monotonic(), devices.compile_seconds()
        if _train_seeds(group, unfinished) and left:
            compiling = devices.compile_seconds() - compiled
            each = (time.monotonic() - began - compiling) / len(left)
            each = max(each, *(_took(path).seconds for path in left))  # a run that was resumed took longer
            budget.add(Took(left[0].parent, each, compiling), program=group[:2])
        devices.on_first(lambda: collect(args.out))
        release_programs_if_many()
    records = devices.on_first(lambda: collect(args.out)) or []
    unfinished.report()
    return records


@dataclass
class Unfinished:
    """The runs of an ablation that did not finish here."""

    busy: list[str] = field(default_factory=list)
    """Those that another process is at work on."""
    diverged: list[str] = field(default_factory=list)
    """Those that became NaN or Inf, with their message."""
    late: list[str] = field(default_factory=list)
    """Those that were not begun."""

    def report(self) -> None:
        """Prints the busy ones.

        Raises:
          NotFiniteError: some diverged.
          TimeIsUp: some were not begun.
        """
        if self.busy and devices.is_first():
            print(f"left to another process that is at work on them: {', '.join(self.busy)}")
        late = f"not begun, for they would not have ended in the minutes that there were: {', '.join(self.late)}"
        if self.diverged:
            others = late if self.late else "other runs are not affected"
            raise NotFiniteError("; ".join([*self.diverged, others]))
        if self.late:
            raise TimeIsUp(late)


def _took(run: Path) -> Took:
    """How long a finished run took."""
    facts = read_json(run / RESULT)["facts"]
    compiling = facts["compile_seconds"]
    return Took(run.parent, 60 * facts["minutes"] - compiling, compiling * len(facts.get("seeds_together", [0])))


def _train_seeds(group: Group, unfinished: Unfinished) -> bool:
    """Trains some seeds together; if one of them diverges, each by itself from its last checkpoint.

    Returns:
      Whether all are finished, by this process.
    """
    experiment, arm, outs = group
    try:
        _, busy = train_together(experiment, arm, outs, resume=True)
        unfinished.busy += [str(outs[seed]) for seed in busy]
        return not busy
    except NotFiniteError as error:
        if len(outs) == 1:
            (path,) = outs.values()
            unfinished.diverged.append(f"{path}: {error}")
        else:
            for seed, out in outs.items():
                _train_seeds(Group(experiment, arm, {seed: out}), unfinished)
    return False


def schedule(
    variants: list[list[Variant]], arms: tuple[str, ...], seeds: range, together: int, out: Path
) -> Iterator[Group]:
    """All streams and arms of some seeds of a fold before the next ones, so that what is finished can be compared."""
    for fold in variants:
        for some in (seeds[i : i + together] for i in range(0, len(seeds), together)):
            for variant in fold:
                for arm in arms:
                    outs = {seed: run_path(out, arm, seed, variant.folder, variant.prefix) for seed in some}
                    yield Group(variant.experiment, arm, outs)


def run_path(out: Path, arm: str, seed: int, folder: str = "", prefix: str = "") -> Path:
    """Folder of one run."""
    return out / folder / arm / f"{prefix}seed-{seed}"


def collect(out: Path) -> list[Any]:
    """Records of all finished runs, the paths in them relative to `out`; writes ``results.jsonl`` too."""
    found = [(file, check_record(read_json(file), file)) for file in _files(out, RESULT)]
    records = sorted((seal(_locate(record, file.parent.relative_to(out))) for file, record in found), key=_order)
    with writing_to(out):
        write_text(out / RESULTS, "".join(json.dumps(record) + "\n" for record in records))
    return records


def _locate(record: dict[str, Any], run: Path) -> dict[str, Any]:
    if "predictions" not in record:
        return record
    panels = [(run / panel).as_posix() for panel in record["panels"]]
    return record | {"predictions": (run / record["predictions"]).as_posix(), "panels": panels}


def _order(record: dict[str, Any]) -> tuple[Any, ...]:
    place = [*ARMS, record["arm"]].index(record["arm"]), record["arm"]  # added ones last, by name
    return record.get("streams", []), *place, record.get("fold", 0), record["seed"]


def claim(experiment: BaseExperiment, groups: list[Group], out: Path, resume: bool) -> None:
    """Makes `out` the folder of this experiment, whatever its arms, seeds, streams and folds.

    Raises:
      UserError: it holds another one, or this one and `resume` is False; or a run of `groups` with other values, as
        when an arm has been added under its name with others; or nothing would be tested.
    """
    if experiment.train.test_on == "none":
        raise UserError(
            "train.test_on: expected last or best, for an ablation compares arms on the test split, found none"
        )
    runs = {path: describe(each.experiment, each.arm, seed) for each in groups for seed, path in each.outs.items()}
    there = [file.parent for file in _files(out, RUN_CONFIG)]
    try:
        claim_folder(out / CONFIG, describe(experiment), "ablation", resume=resume)
    except ValueError as error:  # the file is damaged
        if not (resume and there and all(path in runs for path in there)):
            raise
        mend(out / CONFIG, str(error), "the runs say which ablation this is")
        write_json(out / CONFIG, describe(experiment))
    for path in there:
        if path in runs:
            config_damage(path, runs[path], resume)
    for file in _files(out, RESULT):
        config = runs.get(file.parent)
        sound_record(file, None if config is None else identity(config))


def _files(out: Path, name: str) -> list[Path]:
    """The files of that name in the folders of runs."""
    return [*out.glob(f"*/*/{name}"), *out.glob(f"*/*/*/{name}")]


def report(out: Path) -> None:
    """Writes the report of what is finished and prints its table."""
    if records := collect(out):
        paths = write_report(out)
        print(summary_table(records))
        print("report: " + ", ".join(str(path) for path in paths))


def main() -> None:
    """Command line."""
    args = parse(AblateArgs, "experiments.ablate")
    devices.start()
    try:
        ablate(args)
    except NotFiniteError:
        devices.on_first(lambda: report(args.out))
        raise
    except TimeIsUp as error:
        devices.on_first(lambda: report(args.out))
        words = [word for word in sys.argv[1:] if word != "--resume"]
        command = shlex.join(["python", "-m", "experiments.ablate", *words, "--resume"])
        raise TimeIsUp(f"{error}\nto go on: {command}") from None
    devices.on_first(lambda: report(args.out))


if __name__ == "__main__":
    run_main(main)
