"""All arms over several seeds: ``python -m experiments.ablate CONFIG --seeds N --arms ... --out DIR [overrides]``.

Every seed gives every arm the same initial weights and the same batches. Finished runs are never repeated;
``--resume`` continues, and several processes with ``--resume`` on one folder share the runs between them.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments import devices
from experiments.config import ARMS, describe
from experiments.errors import NotFiniteError, UserError, run_main
from experiments.report import summary_table, write_report
from experiments.run_folder import RESULT, claim_folder, read_json, write_text, writing_to
from experiments.tasks import make_task
from experiments.train import train_together

CONFIG, RESULTS = "ablation.json", "results.jsonl"


def ablate(
    experiment: Any, arms: tuple[str, ...], seeds: int, out: Path, *, resume: bool = False, together: int | None = None
) -> list[Any]:
    """Runs what is not finished and returns all records, which are also ``out/results.jsonl``.

    Args:
      experiment: everything but arm and seed.
      arms: names in `ARMS`.
      seeds: their number, from 0.
      out: folder of the ablation.
      resume: continue what is in it.
      together: seeds that run in one program; None: what suits model and device.

    Raises:
      UserError: no seed or arm, an arm given twice, or `out` is in the way: not empty without `resume`, or with
        another configuration, whose differing keys are named.
      NotFiniteError: at the end, when all other runs are finished: those that became NaN or Inf, with step and metric.
    """
    if seeds < 1 or not arms or len(set(arms)) < len(arms):
        raise UserError(f"need at least one seed and distinct arms; got --seeds {seeds} --arms {' '.join(arms)}")
    if together is not None and together < 1:
        raise UserError(f"--together is {together}; expected 1 or more")
    for arm in arms:
        make_task(experiment, arm)
    devices.on_first(lambda: claim(experiment, out, resume))
    left = Left()
    together = devices.seeds_together(experiment) if together is None else together
    for arm, some in schedule(arms, seeds, together):
        _train_seeds(experiment, arm, {s: run_path(out, arm, s) for s in some}, left)
        devices.on_first(lambda: collect(out))
    records = devices.on_first(lambda: collect(out)) or []
    left.tell()
    return records


@dataclass
class Left:
    """The runs of an experiment that did not finish here."""

    busy: list[str] = field(default_factory=list)
    """Those that another process is at work on."""
    diverged: list[str] = field(default_factory=list)
    """Those that became NaN or Inf, with their message."""

    def tell(self) -> None:
        """Prints the busy ones.

        Raises:
          NotFiniteError: there are diverged ones.
        """
        if self.busy and devices.is_first():
            print(f"left to another process that is at work on them: {', '.join(self.busy)}")
        if self.diverged:
            raise NotFiniteError("; ".join(self.diverged) + "; other runs are not affected")


def _train_seeds(experiment: Any, arm: str, outs: dict[int, Path], left: Left) -> None:
    """Trains some seeds together; if one of them diverges, each by itself from its last checkpoint."""
    try:
        _, busy = train_together(experiment, arm, outs, resume=True)
        left.busy += [f"{arm} seed {seed}" for seed in busy]
    except NotFiniteError as error:
        if len(outs) == 1:
            left.diverged.append(f"{arm} {error}")
            return
        for seed, out in outs.items():
            _train_seeds(experiment, arm, {seed: out}, left)


def schedule(arms: tuple[str, ...], seeds: int, together: int) -> Iterator[tuple[str, range]]:
    """All arms of some seeds before the next seeds, so that what is finished can be compared in pairs."""
    groups = [range(first, min(first + together, seeds)) for first in range(0, seeds, together)]
    return ((arm, group) for group in groups for arm in arms)


def run_path(out: Path, arm: str, seed: int) -> Path:
    """Folder of one run."""
    return out / arm / f"seed-{seed}"


def collect(out: Path) -> list[Any]:
    """Records of all finished runs, the paths in them relative to `out`, which are also ``results.jsonl``."""
    files = [*out.glob(f"*/*/{RESULT}"), *out.glob(f"*/*/*/{RESULT}")]
    records = sorted((_locate(read_json(file), file.parent.relative_to(out)) for file in files), key=_order)
    with writing_to(out):
        write_text(out / RESULTS, "".join(json.dumps(record) + "\n" for record in records))
    return records


def _locate(record: dict[str, Any], run: Path) -> dict[str, Any]:
    if "predictions" not in record:
        return record
    panels = [(run / panel).as_posix() for panel in record["panels"]]
    return record | {"predictions": (run / record["predictions"]).as_posix(), "panels": panels}


def _order(record: dict[str, Any]) -> tuple[Any, ...]:
    return record.get("streams", []), list(ARMS).index(record["arm"]), record.get("fold", 0), record["seed"]


def claim(experiment: Any, out: Path, resume: bool) -> None:
    """Makes `out` the folder of this experiment, whatever its arms and seeds.

    Raises:
      UserError: it holds another one, or this one and `resume` is False; or nothing would be tested.
    """
    if experiment.train.test_on == "none":
        raise UserError(
            "train.test_on is 'none'; an ablation compares arms on the test split, so expected last or best"
        )
    config = {k: v for k, v in describe(experiment, "baseline", 0).items() if k not in ("arm", "seed")}
    claim_folder(out / CONFIG, config, "ablation", resume=resume)


def main() -> None:
    """Command line."""
    from experiments.cli import AblateArgs, parse

    args = parse(AblateArgs, "experiments.ablate")
    devices.start()
    try:
        ablate(args.experiment, tuple(args.arms), args.seeds, args.out, resume=args.resume, together=args.together)
    except NotFiniteError:
        devices.on_first(lambda: report(args.out))
        raise
    devices.on_first(lambda: report(args.out))


def report(out: Path) -> None:
    """Writes the report of what is finished and prints its table."""
    if records := collect(out):
        paths = write_report(out)
        print(summary_table(records))
        print("report: " + ", ".join(str(path) for path in paths))


if __name__ == "__main__":
    run_main(main)
