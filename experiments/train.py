"""The one training loop: ``python -m experiments.train CONFIG --arm ARM --out DIR [overrides]``."""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

import fsg_jax as fsg
from experiments import facts
from experiments.build import Program, build, load_split, load_splits, steps_per_epoch
from experiments.config import Experiment, describe, flatten
from experiments.errors import Interrupted, NotFiniteError, run_main
from experiments.run_folder import RunFolder, writing_to
from experiments.run_log import RunLog
from experiments.stop import StopRequest
from fsg_jax import data


@dataclass
class Run:
    """A run in progress."""

    experiment: Experiment
    program: Program
    folder: RunFolder
    checkpointer: fsg.Checkpointer
    state: fsg.TrainState
    loader: data.LoaderIterator
    log: RunLog
    per_epoch: int
    seconds: float = 0.0
    compile_seconds: float = 0.0

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.per_epoch * self.experiment.train.epochs


def train(experiment: Experiment, arm: str, seed: int, out: Path, *, resume: bool = False) -> dict[str, Any]:
    """Trains one arm with one seed into `out` and returns its record, which is also ``out/result.json``.

    Raises:
      UserError: the folder is in the way; see `RunFolder`.
      NotFiniteError: a loss or gradient became NaN or Inf; the last good checkpoint stays.
      Interrupted: the user asked to stop; everything is saved.
    """
    config = describe(experiment, arm, seed)
    build(experiment, arm)
    splits = load_splits(experiment.data)
    loader = data.make_loader(splits.train, experiment.train.batch_size, seed=seed, workers=experiment.data.workers)
    with RunFolder(out, config, resume=resume) as folder, writing_to(out):
        if folder.result is not None:
            return folder.result
        started = facts.gather()
        run = _open(experiment, arm, seed, folder, iter(loader))
        try:
            _loop(run, f"{arm} seed {seed}")
        finally:
            run.checkpointer.close()
            run.log.close()
        record = _record(run, arm, seed, config, started)
        folder.finish(record)
        return record


def _open(experiment: Experiment, arm: str, seed: int, folder: RunFolder, loader: data.LoaderIterator) -> Run:
    program = build(experiment, arm)
    state = program.init(jax.random.key(seed))
    checkpointer = fsg.Checkpointer(
        folder.path / "checkpoints", keep_last=experiment.train.keep_last, best="val_accuracy"
    )
    seconds = 0.0
    if checkpointer.steps():
        restored = checkpointer.restore(state)
        state, seconds = restored.state, restored.extra["seconds"]
        loader.set_state(restored.data)
    log = RunLog(folder.path, int(state.step))
    return Run(experiment, program, folder, checkpointer, state, loader, log, steps_per_epoch(experiment), seconds)


def _loop(run: Run, title: str) -> None:
    options, step = run.experiment.train, int(run.state.step)
    pending: list[Any] = []
    began, before = time.monotonic(), run.seconds
    bar = tqdm(total=run.total_steps, initial=step, desc=title, unit="step", dynamic_ncols=True, mininterval=0.5)
    with bar, StopRequest() as stop:
        while step < run.total_steps:
            pending.append(_train_step(run, step))
            step += 1
            bar.update()
            epoch_ends = step % run.per_epoch == 0
            checkpoint = epoch_ends or bool(options.checkpoint_every and step % options.checkpoint_every == 0)
            if len(pending) >= options.log_every or checkpoint or stop.requested:
                run.log.add_steps(_rows(pending, step, run.per_epoch))
                pending = []
            run.seconds = before + time.monotonic() - began
            if epoch_ends:
                row = run.log.add_epoch(_end_of_epoch(run, step))
                bar.set_postfix(loss=f"{row['train_loss']:.3f}", val=f"{row['val_accuracy']:.3f}")
                _save(run, {"val_accuracy": row["val_accuracy"]})
            elif checkpoint or stop.requested:
                _save(run, None)
            if stop.requested and step < run.total_steps:
                run.checkpointer.wait()
                raise Interrupted(f"stopped and saved at step {step}; the same command with --resume continues")


def _train_step(run: Run, step: int) -> Any:
    batch = next(run.loader)
    began = time.monotonic()
    run.state, metrics = run.program.train_step(run.state, {k: batch[k] for k in ("image", "label")})
    if not run.compile_seconds:
        run.compile_seconds = time.monotonic() - began
    return metrics


def _rows(pending: list[Any], step: int, per_epoch: int) -> list[dict[str, Any]]:
    """Log rows of the last steps, checked: nothing that is not finite is logged or saved."""
    rows = []
    first = step - len(pending) + 1
    for at, metrics in enumerate(jax.device_get(pending), first):
        values = {k.replace(".", "/"): float(v) for k, v in flatten(metrics).items()}
        _check_finite(values, at)
        rows.append({"step": at, "epoch": math.ceil(at / per_epoch)} | values)
    return rows


def _check_finite(values: dict[str, Any], step: int) -> None:
    bad = sorted(k for k, v in values.items() if not np.isfinite(v).all())
    if bad:
        names = ", ".join(bad[:3]) + f" and {len(bad) - 3} more" * (len(bad) > 3)
        raise NotFiniteError(f"{names} became NaN or Inf at step {step}; the last good checkpoint is kept")


def _end_of_epoch(run: Run, step: int) -> dict[str, Any]:
    validation = evaluate(run, load_splits(run.experiment.data).validation)
    gates = jax.tree.map(float, jax.device_get(fsg.gate_summary(run.state)))
    metrics = {f"val_{k}": v for k, v in validation.items()}
    row = {"epoch": step // run.per_epoch, "step": step} | metrics | {"gates": gates}
    _check_finite(flatten(row), step)
    return row


def evaluate(run: Run, dataset: data.ImageDataset) -> dict[str, float]:
    """Mean loss and accuracy over every image of `dataset`, each counted once."""
    rows = []
    for batch in data.eval_batches(dataset, min(run.experiment.train.eval_batch_size, len(dataset))):
        inputs = {k: batch[k] for k in ("image", "label", "valid")}
        rows.append(jax.device_get(run.program.eval_step(run.state, inputs)))
    weights = [row["count"] for row in rows]
    return {k: float(np.average([row[k] for row in rows], weights=weights)) for k in ("loss", "accuracy")}


def _save(run: Run, metrics: dict[str, float] | None) -> None:
    """Saves the state, checked: finite losses do not rule out an update that overflowed."""
    trees = jax.device_get(run.state.variables | {"opt_state": run.state.opt_state, "ema": run.state.ema})
    leaves = jax.tree_util.tree_leaves_with_path(trees)
    _check_finite({jax.tree_util.keystr(k, simple=True, separator="/"): v for k, v in leaves}, int(run.state.step))
    run.checkpointer.save(
        run.state, data=run.loader.get_state(), metrics=metrics, extra={"seconds": round(run.seconds, 3)}
    )


def _record(run: Run, arm: str, seed: int, config: dict[str, Any], started: dict[str, Any]) -> dict[str, Any]:
    """The record of a finished run; the only place that reads the test split."""
    splits, options = load_splits(run.experiment.data), run.experiment.train
    validation = {k: run.log.epochs[-1][f"val_{k}"] for k in ("accuracy", "loss")}
    if options.test_on == "best":
        reader = fsg.Checkpointer(run.folder.path / "checkpoints", keep_last=options.keep_last, best="val_accuracy")
        run.state = reader.restore(run.state, reader.best_step()).state
        reader.close()
        validation = evaluate(run, splits.validation)
    test = load_split(run.experiment.data, "test")
    minutes = {"minutes": round(run.seconds / 60, 3), "compile_seconds": round(run.compile_seconds, 2)}
    gates = {k: np.round(v, 6).tolist() for k, v in jax.device_get(fsg.gate_values(run.state)).items()}
    counts = fsg.count_parameters(run.state.trainable)
    return {
        "experiment": run.experiment.name,
        "arm": arm,
        "seed": seed,
        "status": "finished",
        "config": config,
        "facts": started | minutes,
        "parameters": {"params": counts["params"], "gates": counts.get("gates", 0)},
        "validation": validation,
        "test": evaluate(run, test),
        "num_train": len(splits.train),
        "num_validation": len(splits.validation),
        "num_test": len(test),
        "dropped_per_epoch": len(splits.train) - run.per_epoch * options.batch_size,
        "history": run.log.epochs,
        "gates": gates,
    }


def main() -> None:
    """Command line."""
    from experiments.cli import TrainArgs, parse

    args = parse(TrainArgs, "experiments.train")
    record = train(args.experiment, args.arm, args.seed, args.out, resume=args.resume)
    print(
        f"{args.arm} seed {args.seed}: test accuracy {record['test']['accuracy']:.4f}, "
        f"validation {record['validation']['accuracy']:.4f}, {record['facts']['minutes']:.1f} minutes, in {args.out}"
    )


if __name__ == "__main__":
    run_main(main)
