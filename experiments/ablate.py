"""All arms over several seeds: ``python -m experiments.ablate CONFIG --seeds N --arms ... --out DIR [overrides]``.

Every seed gives every arm the same initial weights and the same batches. Finished runs are never repeated;
``--resume`` continues, and several processes with ``--resume`` on one folder share the runs between them.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.build import build
from experiments.config import ARMS, Experiment, describe
from experiments.errors import UserError, run_main
from experiments.report import summary_table, write_report
from experiments.run_folder import RESULT, BusyError, holds, read_json, write_json, write_text, writing_to
from experiments.train import train

CONFIG, RESULTS = "ablation.json", "results.jsonl"


def ablate(experiment: Experiment, arms: tuple[str, ...], seeds: int, out: Path, *, resume: bool = False) -> list[Any]:
    """Runs what is not finished and returns all records, which are also ``out/results.jsonl``.

    Raises:
      UserError: no seed or arm, an arm given twice, or `out` is in the way: not empty without `resume`, or with
        another configuration, whose differing keys are named.
    """
    if seeds < 1 or not arms or len(set(arms)) < len(arms):
        raise UserError(f"need at least one seed and distinct arms; got --seeds {seeds} --arms {' '.join(arms)}")
    for arm in arms:
        build(experiment, arm)
    _claim(experiment, out, resume)
    busy = []
    for arm, seed in schedule(arms, seeds):
        try:
            train(experiment, arm, seed, run_path(out, arm, seed), resume=True)
        except BusyError:
            busy.append(f"{arm} seed {seed}")
        collect(out)
    records = collect(out)
    if busy:
        print(f"left to another process that is at work on them: {', '.join(busy)}")
    return records


def schedule(arms: tuple[str, ...], seeds: int) -> Iterator[tuple[str, int]]:
    """All arms of one seed before the next seed, so that what is finished can be compared in pairs."""
    return ((arm, seed) for seed in range(seeds) for arm in arms)


def run_path(out: Path, arm: str, seed: int) -> Path:
    """Folder of one run."""
    return out / arm / f"seed-{seed}"


def collect(out: Path) -> list[Any]:
    """Records of all finished runs, arms in their usual order, written to ``results.jsonl``."""
    files = [f for arm in ARMS for f in sorted((out / arm).glob(f"seed-*/{RESULT}"))]
    records = sorted((read_json(f) for f in files), key=lambda r: (list(ARMS).index(r["arm"]), r["seed"]))
    with writing_to(out):
        write_text(out / RESULTS, "".join(json.dumps(record) + "\n" for record in records))
    return records


def _claim(experiment: Experiment, out: Path, resume: bool) -> None:
    config = {k: v for k, v in describe(experiment, "baseline", 0).items() if k not in ("arm", "seed")}
    with writing_to(out):
        out.mkdir(parents=True, exist_ok=True)
        if not holds(out / CONFIG, config):
            write_json(out / CONFIG, config)
        elif not resume:
            raise UserError(f"{out} already holds this ablation; add --resume to continue it")


def main() -> None:
    """Command line."""
    from experiments.cli import AblateArgs, parse

    args = parse(AblateArgs, "experiments.ablate")
    records = ablate(args.experiment, tuple(args.arms), args.seeds, args.out, resume=args.resume)
    if records:
        paths = write_report(args.out)
        print(summary_table(records))
        print("report: " + ", ".join(str(p) for p in paths))


if __name__ == "__main__":
    run_main(main)
