"""The one training loop: ``python -m experiments.train CONFIG --arm ARM --out DIR [overrides]``."""

import math
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import fsg_jax as fsg
from experiments import devices, facts
from experiments.config import describe, flatten
from experiments.errors import BusyError, Interrupted, NotFiniteError, UserError, run_main
from experiments.feed import Feed
from experiments.run_folder import FollowerFolder, RunFolder, writing_to
from experiments.run_log import RunLog
from experiments.stop import StopRequest
from experiments.task import Task
from experiments.tasks import make_task
from fsg_jax._checks import check_integer

OnEpoch = Callable[[list[dict[str, Any]]], None]
"""Given the rows of an epoch, one a run, once they are logged and saved. What it raises ends the runs, which can be
resumed."""


@dataclass
class Member:
    """One run: its folder and log (in the first process), its checkpoints, its state when it was opened."""

    seed: int
    config: dict[str, Any]
    folder: RunFolder | FollowerFolder
    log: RunLog
    checkpointer: fsg.Checkpointer
    state: Any
    """None while the run is in progress: its feed has it."""
    position: dict[str, Any] | None = None
    """Of the data, in the checkpoint that is resumed."""
    seconds: float = 0.0

    def close(self) -> None:
        """Waits for the saving and closes the files."""
        self.checkpointer.close()
        self.log.close()


@dataclass
class Run:
    """Runs in progress that differ in their seed alone and move in step; mostly one."""

    experiment: Any
    task: Task
    members: list[Member]
    feed: Feed
    step: int
    seconds: float
    on_epoch: OnEpoch | None = None
    clock: devices.CompileClock = field(default_factory=devices.CompileClock)
    pending: list[Any] = field(default_factory=list)

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.task.steps_per_epoch * self.experiment.train.epochs


def train(
    experiment: Any, arm: str, seed: int, out: Path, *, resume: bool = False, on_epoch: OnEpoch | None = None
) -> dict[str, Any]:
    """Trains one arm with one seed into `out` and returns its record, which is also ``out/result.json``.

    Raises:
      UserError: the folder is in the way; see `RunFolder`.
      NotFiniteError: a loss or gradient became NaN or Inf; the last good checkpoint stays.
      Interrupted: the user asked to stop; everything is saved.
      Exception: what `on_epoch` raises.
    """
    records, busy = train_together(experiment, arm, {seed: out}, resume=resume, on_epoch=on_epoch)
    if busy:
        raise busy[seed]
    return records[seed]


def train_together(
    experiment: Any, arm: str, outs: dict[int, Path], *, resume: bool = False, on_epoch: OnEpoch | None = None
) -> tuple[dict[int, dict[str, Any]], dict[int, BusyError]]:
    """Trains several seeds, those that are equally far in one program; records by seed, and what others are at work on.

    Raises:
      ValueError: a seed out of range.
      Exception: as `train`.
    """
    for seed in outs:
        check_integer("seed", seed, 0, 2**32 - 1)
    task = make_task(experiment, arm)
    records: dict[int, dict[str, Any]] = {}
    busy: dict[int, BusyError] = {}
    members: list[Member] = []
    with ExitStack() as stack, writing_to(next(iter(outs.values()))):
        for seed, out in outs.items():
            config = describe(experiment, arm, seed)
            try:
                folder = stack.enter_context(closing(_claim(out, config, resume)))
            except BusyError as error:
                busy[seed] = error
                continue
            record = devices.on_first(partial(getattr, folder, "result"))
            if devices.any_process(record is not None):
                records[seed] = record or {}
                continue
            members.append(stack.enter_context(closing(_open(experiment, task, seed, config, folder))))
        for step in sorted({int(member.state.step) for member in members}):
            group = [member for member in members if int(member.state.step) == step]
            records |= _train_group(experiment, arm, task, group, on_epoch)
    return dict(sorted(records.items())), busy


def _claim(out: Path, config: dict[str, Any], resume: bool) -> RunFolder | FollowerFolder:
    return devices.on_first(lambda: RunFolder(out, config, resume=resume)) or FollowerFolder(out)


def _open(experiment: Any, task: Task, seed: int, config: dict[str, Any], folder: RunFolder | FollowerFolder) -> Member:
    options = experiment.train
    placement = devices.placement(options.fsdp, options.batch_size)
    state = placement.make_state(task.init, seed)
    checkpointer = _checkpointer(experiment, task, folder)
    if not checkpointer.steps():
        return Member(seed, config, folder, _open_log(folder, 0, task), checkpointer, state)
    restored = checkpointer.restore(state)
    log = _open_log(folder, restored.step, task)
    seconds = restored.extra["seconds"]
    return Member(seed, config, folder, log, checkpointer, restored.state, restored.data, seconds)


def _checkpointer(experiment: Any, task: Task, folder: RunFolder | FollowerFolder) -> fsg.Checkpointer:
    keep = experiment.train.keep_last
    path = folder.path / "checkpoints"
    return fsg.Checkpointer(path, keep_last=keep, best=f"val_{task.best}", smallest=task.smallest)


def _train_group(
    experiment: Any, arm: str, task: Task, members: list[Member], on_epoch: OnEpoch | None
) -> dict[int, dict[str, Any]]:
    started = facts.gather()
    states = [member.state for member in members]
    feed = task.make_feed([member.seed for member in members], states)
    seconds = max(member.seconds for member in members)
    run = Run(experiment, task, members, feed, int(states[0].step), seconds, on_epoch)
    for member, position in zip(members, feed.positions(), strict=True):
        member.state = None
        _check_position(member, position)
    title = f"{arm} seed {', '.join(str(member.seed) for member in members)}"
    with closing(feed):
        _loop(run, title)
    states = feed.states()
    return {m.seed: _record(run, arm, m, s, started) for m, s in zip(members, states, strict=True)}


def _loop(run: Run, title: str) -> None:
    began, before = time.monotonic(), run.seconds
    bar = tqdm(
        total=run.total_steps,
        initial=run.step,
        desc=title,
        unit="step",
        dynamic_ncols=True,
        mininterval=0.5,
        disable=not devices.is_first(),
    )
    with bar, StopRequest() as request:
        while run.step < run.total_steps:
            _advance(run, bar)
            in_epoch = run.step % run.task.steps_per_epoch
            epoch_ends = in_epoch == 0
            checkpoint = epoch_ends or _divides(run.experiment.train.checkpoint_every, run.step)
            log = checkpoint or _divides(run.experiment.train.log_every, in_epoch)
            alone = jax.process_count() == 1
            stop = request.requested if alone else log and devices.any_process(request.requested)
            if log or stop:
                _write_steps(run)
            run.seconds = before + time.monotonic() - began
            if epoch_ends:
                rows = _end_of_epoch(run)
                bar.set_postfix({run.task.best: f"{np.mean([row[f'val_{run.task.best}'] for row in rows]):.3f}"})
                _save(run, rows)
                if run.on_epoch is not None:
                    run.on_epoch(rows)
            elif checkpoint or stop:
                _save(run, None)
            if stop and run.step < run.total_steps:
                for member in run.members:
                    member.checkpointer.wait()
                raise Interrupted(f"stopped and saved at step {run.step}; the same command with --resume continues")


def _open_log(folder: RunFolder | FollowerFolder, step: int, task: Task) -> RunLog:
    return RunLog(folder.path, step, task.step_metrics, write=devices.is_first())


def _check_position(member: Member, position: dict[str, Any]) -> None:
    """Raises UserError unless the data are those that the resumed checkpoint was trained on."""
    saved = position if member.position is None else member.position
    if differ := [k for k in sorted(saved | position) if saved.get(k) != position.get(k)]:
        pairs = "; ".join(f"{k}: {saved.get(k)!r} there, {position.get(k)!r} now" for k in differ)
        raise UserError(f"{member.folder.path} was trained on other data or in another order: {pairs}")


def _evaluated(state: fsg.TrainState) -> fsg.TrainState:
    """The state with the variables that validation and test use: the averaged ones, where there are."""
    return state if state.ema is None else replace(state, variables=state.ema)


def _divides(every: int | None, step: int) -> bool:
    return bool(every and step % every == 0)


def _advance(run: Run, bar: Any) -> None:
    """Takes the steps up to the next one at which something is to be done, or as many as the feed takes at once.

    Logging counts from the start of the epoch: so there are few lengths, each of which is compiled.
    """
    options, in_epoch = run.experiment.train, run.step % run.task.steps_per_epoch
    until = [options.log_every - in_epoch % options.log_every, run.task.steps_per_epoch - in_epoch]
    if options.checkpoint_every:
        until.append(options.checkpoint_every - run.step % options.checkpoint_every)
    steps = min(run.feed.most_steps, *until)
    run.pending.append(run.feed.advance(steps))
    run.step += steps
    bar.update(steps)


def _write_steps(run: Run) -> None:
    """Logs the steps since the last time, checked: nothing that is not finite is logged or saved."""
    pending, run.pending = jax.device_get(run.pending), []
    first = run.step + 1 - sum(_steps_of(metrics) for metrics in pending)
    for i, member in enumerate(run.members):
        values = (row for metrics in pending for row in _rows(metrics, i))
        rows = [
            {"step": at, "epoch": math.ceil(at / run.task.steps_per_epoch)} | v for at, v in enumerate(values, first)
        ]
        for row in rows:
            _check_finite(row, member)
        member.log.add_steps(rows)


def _steps_of(metrics: Any) -> int:
    return jax.tree.leaves(metrics)[0].shape[1]


def _rows(metrics: Any, run: int) -> Iterable[dict[str, float]]:
    flat = {k.replace(".", "/"): v[run].tolist() for k, v in flatten(metrics).items()}
    return ({k: v[i] for k, v in flat.items()} for i in range(_steps_of(metrics)))


def _check_finite(values: dict[str, Any], member: Member) -> None:
    bad = sorted(k for k, v in values.items() if not np.isfinite(v).all())
    if bad:
        names = ", ".join(bad[:3]) + f" and {len(bad) - 3} more" * (len(bad) > 3)
        raise NotFiniteError(
            f"seed {member.seed}: {names} became NaN or Inf at step {values['step']}; the last good checkpoint is kept"
        )


def _end_of_epoch(run: Run) -> list[dict[str, Any]]:
    rows = []
    for member, state in zip(run.members, run.feed.states(), strict=True):
        gates = jax.tree.map(float, jax.device_get(fsg.gate_summary(_evaluated(state))))
        metrics = {f"val_{k}": v for k, v in run.task.validate(state).items()}
        row = {"epoch": run.step // run.task.steps_per_epoch, "step": run.step} | metrics | {"gates": gates}
        _check_finite(flatten(row), member)
        rows.append(member.log.add_epoch(row))
    return rows


@jax.jit
def _finite(leaves: list[jax.Array]) -> list[jax.Array]:
    return [jnp.isfinite(leaf).all() for leaf in leaves]


def _save(run: Run, rows: list[dict[str, Any]] | None) -> None:
    """Saves every run, its state checked: finite losses do not rule out an update that overflowed."""
    best = f"val_{run.task.best}"
    states, positions = run.feed.states(), run.feed.positions()
    for i, (member, state, position) in enumerate(zip(run.members, states, positions, strict=True)):
        trees = state.variables | {"opt_state": state.opt_state, "ema": state.ema}
        paths, leaves = zip(*jax.tree_util.tree_leaves_with_path(trees), strict=True)
        names = [jax.tree_util.keystr(path, simple=True, separator="/") for path in paths]
        finite = dict(zip(names, jax.device_get(_finite(list(leaves))), strict=True))
        _check_finite({k: 0.0 if ok else np.nan for k, ok in finite.items()} | {"step": run.step}, member)
        member.checkpointer.save(
            state,
            data=position,
            metrics=None if rows is None else {best: rows[i][best]},
            extra={"seconds": round(run.seconds, 3)},
        )


def _record(run: Run, arm: str, member: Member, state: fsg.TrainState, started: dict[str, Any]) -> dict[str, Any]:
    """The record of a finished run, written into its folder; tests the state."""
    validation = {k.removeprefix("val_"): v for k, v in member.log.epochs[-1].items() if k.startswith("val_")}
    if run.experiment.train.test_on == "best":
        member.checkpointer.wait()
        best = member.checkpointer.best_step()
        state = member.checkpointer.restore(state, best).state
        epoch = next(row for row in member.log.epochs if row["step"] == best)
        validation = {k.removeprefix("val_"): v for k, v in epoch.items() if k.startswith("val_")}
    each = run.seconds / len(run.members)
    times = {"minutes": round(each / 60, 3), "compile_seconds": round(run.clock.seconds / len(run.members), 2)}
    together = {"seeds_together": [m.seed for m in run.members]} if len(run.members) > 1 else {}
    gates = {k: np.round(v, 6).tolist() for k, v in jax.device_get(fsg.gate_values(_evaluated(state))).items()}
    counts = fsg.count_parameters(state.trainable)
    tested = run.experiment.train.test_on != "none"
    record = {
        "experiment": run.experiment.name,
        "arm": arm,
        "seed": member.seed,
        "status": "finished",
        "config": member.config,
        "facts": started | times | together,
        "parameters": {"params": counts["params"], "gates": counts.get("gates", 0)},
        "validation": validation,
        **(run.task.test(state, member.folder.path) if tested else {"test": {}}),
        **run.task.facts,
        "history": member.log.epochs,
        "gates": gates,
    }
    member.folder.finish(record)
    return record


def main() -> None:
    """Command line."""
    from experiments.cli import TrainArgs, parse

    args = parse(TrainArgs, "experiments.train")
    devices.start()
    record = train(args.experiment, args.arm, args.seed, args.out, resume=args.resume)
    if not devices.is_first():
        return
    tested = f"test accuracy {record['test']['accuracy']:.4f}" if record["test"] else "not tested"
    print(
        f"{args.arm} seed {args.seed}: {tested}, "
        f"validation {record['validation']['accuracy']:.4f}, {record['facts']['minutes']:.1f} minutes, in {args.out}"
    )


if __name__ == "__main__":
    run_main(main)
