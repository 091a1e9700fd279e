"""The one training loop: ``python -m experiments.train CONFIG --arm ARM --out DIR [overrides]``."""

import math
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

import fsg_jax as fsg
from experiments import devices, pretrained, provenance
from experiments.config import BaseExperiment, Train, describe, flatten, in_arm
from experiments.errors import NotFiniteError, StopRequested, UserError, run_main
from experiments.run_folder import FollowerFolder, RunFolder, writing_to
from experiments.run_log import RunLog
from experiments.saving import Clock, Snapshot, are_finite, best_epoch, restore
from experiments.stepper import Stepper
from experiments.stop import StopRequest
from experiments.task import Task, make_task, without_optimizer
from fsg_jax._checks import check_integer
from fsg_jax._files import BusyError
from fsg_jax.training.checkpoint_files import checksums

OnEpoch = Callable[[list[dict[str, Any]]], None]
"""Given the rows of an epoch, one a run, once they are logged. If it raises, the runs stop; they can be resumed."""


@dataclass
class Member:
    """One run: its folder, log and checkpoints, and its state until it starts."""

    seed: int
    config: dict[str, Any]
    folder: RunFolder
    log: RunLog
    checkpointer: fsg.Checkpointer
    state: Any
    """None once the run is in progress: its stepper has it."""
    weights: dict[str, str] | None
    """Type, shape and checksum of the initial weights by path; None if the checkpoint that is resumed lacks them."""
    logged: int
    """Steps in the log."""
    position: dict[str, Any] | None = None
    """The position in the data, in the checkpoint that is resumed."""
    seconds: float = 0.0
    best: Snapshot | None = None
    """The best epoch so far where it has not been saved: it is before any later one."""

    def close(self) -> None:
        """Waits for the checkpoint that is being saved, and closes the files."""
        self.checkpointer.close()
        self.log.close()


@dataclass
class Run:
    """Runs in progress that differ in their seed alone and move in step; mostly one."""

    options: Train
    task: Task
    members: list[Member]
    stepper: Stepper
    step: int
    seconds: float
    on_epoch: OnEpoch | None = None
    compiling: float = field(default_factory=devices.compile_seconds)
    """Seconds in the compiler before the runs."""
    pending: list[Any] = field(default_factory=list)
    """Metrics of the steps that are not logged."""
    ready: int = 0
    """How many of them were there when the log was written last: the device has computed these, or nearly so."""

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.task.steps_per_epoch * self.options.epochs


def train(
    experiment: BaseExperiment, arm: str, seed: int, out: Path, *, resume: bool = False, on_epoch: OnEpoch | None = None
) -> dict[str, Any]:
    """Trains one arm with one seed into `out` and returns its record, which is also ``out/result.json``.

    Raises:
      UserError: the folder cannot be used; see `RunFolder`.
      ValueError, OSError: a run cannot start with this configuration.
      NotFiniteError: a loss or gradient became NaN or Inf; the last good checkpoint stays.
      StopRequested: the user asked to stop; everything is saved.
      BusyError: another process works in the folder.
      Exception: what `on_epoch` raises.
    """
    records, busy = train_together(experiment, arm, {seed: out}, resume=resume, on_epoch=on_epoch)
    if busy:
        raise busy[seed]
    return records[seed]


def train_together(
    experiment: BaseExperiment,
    arm: str,
    outs: dict[int, Path],
    *,
    resume: bool = False,
    on_epoch: OnEpoch | None = None,
) -> tuple[dict[int, dict[str, Any]], dict[int, BusyError]]:
    """Trains several seeds; those that are equally far run in one program.

    Returns:
      The records by seed, and the errors of the seeds that another process is at work on.

    Raises:
      ValueError: a seed is out of range.
      Exception: as `train`.
    """
    for seed in outs:
        check_integer("seed", seed, 0, 2**32 - 1)
    experiment = pretrained.pin(experiment)
    task, options = make_task(experiment, arm), in_arm(experiment, arm).train
    records: dict[int, dict[str, Any]] = {}
    busy: dict[int, BusyError] = {}
    members: list[Member] = []
    with ExitStack() as stack, writing_to(next(iter(outs.values()))):
        for seed, out in outs.items():
            config = describe(experiment, arm, seed)
            try:
                folder = stack.enter_context(closing(_claim(out, config, resume=resume)))
            except BusyError as error:
                busy[seed] = error
                continue
            if devices.any_process(folder.result is not None):
                records[seed] = folder.result or {}
            else:
                members.append(stack.enter_context(closing(_open(options, task, seed, config, folder))))
        for step in sorted({int(member.state.step) for member in members}):
            group = [member for member in members if int(member.state.step) == step]
            records |= _train_group(options, task, group, on_epoch)
    return dict(sorted(records.items())), busy


def _claim(out: Path, config: dict[str, Any], *, resume: bool) -> RunFolder:
    return devices.on_first(lambda: RunFolder(out, config, resume=resume)) or FollowerFolder(out, config)


def _open(options: Train, task: Task, seed: int, config: dict[str, Any], folder: RunFolder) -> Member:
    path = folder.path / "checkpoints"
    checkpointer = fsg.Checkpointer(path, keep_last=options.keep_last, best=f"val_{task.best}", smallest=task.smallest)
    state, position, seconds, log = task.placement.make_state(task.init, seed), None, 0.0, None
    weights: dict[str, str] | None = checksums(_by_path(state.params))
    if (restored := restore(checkpointer, state, options, task, folder)) is not None:
        state, position, extra = restored.state, restored.data, restored.extra
        seconds, weights, log = extra["seconds"], extra.get("initial_weights"), extra.get("log")
    run_log = RunLog(folder.path, int(state.step), task.step_metrics, log, write=devices.is_first())
    return Member(seed, config, folder, run_log, checkpointer, state, weights, int(state.step), position, seconds)


def _train_group(
    options: Train, task: Task, members: list[Member], on_epoch: OnEpoch | None
) -> dict[int, dict[str, Any]]:
    started = provenance.gather()
    states = [member.state for member in members]
    stepper = task.make_stepper([member.seed for member in members], states)
    seconds = max(member.seconds for member in members)
    run = Run(options, task, members, stepper, int(states[0].step), seconds, on_epoch)
    for member, position in zip(members, stepper.positions(), strict=True):
        member.state = None
        _check_position(member, position)
    with closing(stepper):
        _loop(run)
    states = stepper.states()
    return {m.seed: _record(run, m, s, started) for m, s in zip(members, states, strict=True)}


def _loop(run: Run) -> None:
    began, before, options = time.monotonic(), run.seconds, run.options
    clock = Clock(options.checkpoint_every_seconds)
    title = f"{run.members[0].config['arm']['name']} seed {', '.join(str(member.seed) for member in run.members)}"
    silent = not devices.is_first()
    hidden = {"disable": True} if silent else {}  # else TQDM_DISABLE decides
    bar = tqdm(total=run.total_steps, initial=run.step, desc=title, unit="step", dynamic_ncols=True, **hidden)
    with bar, StopRequest() as request:
        while run.step < run.total_steps:
            _advance(run, bar)
            in_epoch = run.step % run.task.steps_per_epoch
            epoch_ends, run_ends = in_epoch == 0, run.step == run.total_steps
            save, log = run_ends or _divides(options.checkpoint_every, run.step), _divides(options.log_every, in_epoch)
            stop, due = request.requested, clock.is_due(epoch_ends=epoch_ends)
            if jax.process_count() > 1:  # they agree, but not at every step
                stop, due = ((epoch_ends or save or log) and devices.any_process(flag) for flag in (stop, due))
            save |= stop or due
            if log or epoch_ends or save:
                _write_steps(run, wait=epoch_ends or save)
            run.seconds = before + time.monotonic() - began
            states, rows = run.stepper.states() if epoch_ends or save else [], None
            if epoch_ends:
                rows = _end_of_epoch(run, states)
                if means := [row[f"val_{run.task.best}"] for row in rows if f"val_{run.task.best}" in row]:
                    bar.set_postfix({run.task.best: f"{np.mean(means):.3f}"})
            if epoch_ends or save:
                _keep(run, states, rows, save=save)
            if save:
                clock.restart()
            if rows is not None and run.on_epoch is not None:
                run.on_epoch(rows)
            if stop and not run_ends:
                for member in run.members:
                    member.checkpointer.wait()
                raise StopRequested(f"stopped and saved at step {run.step}; the same command with --resume continues")


def _check_position(member: Member, position: dict[str, Any]) -> None:
    """Raises UserError unless the data are the same as before the checkpoint that is resumed."""
    saved = position if member.position is None else member.position
    if differ := [k for k in sorted(saved | position) if saved.get(k) != position.get(k)]:
        pairs = "; ".join(f"{k}: {saved.get(k)!r} there, {position.get(k)!r} now" for k in differ)
        raise UserError(f"{member.folder.path} was trained on other data or in another order: {pairs}")


def _evaluated(state: fsg.TrainState) -> fsg.TrainState:
    """The state with the variables that validation and test use: the averaged ones if there are any."""
    return state if state.ema is None else replace(state, variables=state.ema)


def _divides(every: int | None, step: int) -> bool:
    return bool(every and step % every == 0)


def _advance(run: Run, bar: Any) -> None:
    """Takes the steps up to the next log, checkpoint or end of an epoch, or as many as the stepper takes at once.

    Logging counts from the start of the epoch. So there are few numbers of steps; each of them is compiled.
    """
    options, in_epoch = run.options, run.step % run.task.steps_per_epoch
    until = [options.log_every - in_epoch % options.log_every, run.task.steps_per_epoch - in_epoch]
    if options.checkpoint_every:
        until.append(options.checkpoint_every - run.step % options.checkpoint_every)
    steps = min(run.stepper.most_steps, *until)
    run.pending.append(run.stepper.advance(steps))
    run.step += steps
    bar.update(steps)


def _write_steps(run: Run, *, wait: bool) -> None:
    """Logs the steps since the last call, or unless `wait` those before it, while the device goes on with the others.

    It checks them first: nothing that is not finite is logged or saved.
    """
    count = len(run.pending) if wait else run.ready
    pending, run.pending = jax.device_get(run.pending[:count]), run.pending[count:]
    run.ready = len(run.pending)
    flat = [{k.replace(".", "/"): v for k, v in flatten(metrics).items()} for metrics in pending]
    for i, member in enumerate(run.members if flat else []):
        columns = {k: np.concatenate([metrics[k][i] for metrics in flat]).tolist() for k in flat[0]}
        values = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        numbered = enumerate(values, member.logged + 1)
        rows = [{"step": t, "epoch": math.ceil(t / run.task.steps_per_epoch)} | v for t, v in numbered]
        for row in rows:
            _check_finite(row, member)
        member.log.add_steps(rows)
        member.logged += len(rows)


def _check_finite(values: dict[str, Any], member: Member) -> None:
    if bad := sorted(k for k, v in values.items() if not np.isfinite(v).all()):
        names = ", ".join(bad[:3]) + f" and {len(bad) - 3} more" * (len(bad) > 3)
        where = f"seed {member.seed}: {names} became NaN or Inf at step {values['step']}"
        raise NotFiniteError(f"{where}; the last good checkpoint is kept")


def _end_of_epoch(run: Run, states: list[fsg.TrainState]) -> list[dict[str, Any]]:
    """Logs the epoch of every run, with validation if it is its turn."""
    epoch, rows = run.step // run.task.steps_per_epoch, []
    validated = _divides(run.options.validate_every, epoch) or run.step == run.total_steps
    for member, state in zip(run.members, states, strict=True):
        gates = _gate_summary(_only_gates(state))
        metrics = {f"val_{k}": v for k, v in run.task.validate(state).items()} if validated else {}
        gates = jax.tree.map(float, jax.device_get(gates))
        row = {"epoch": epoch, "step": run.step} | metrics | {"gates": gates}
        _check_finite(flatten(row), member)
        rows.append(member.log.add_epoch(row))
    return rows


_gate_summary = jax.jit(fsg.gate_summary)


def _only_gates(state: fsg.TrainState) -> fsg.TrainState:
    """What the summary needs, so that arms with the same gates share its program."""
    gates = {k: v for k, v in _evaluated(state).variables.items() if k == fsg.GATES}
    return replace(without_optimizer(state), variables=gates, ema=None, forward=None)


def _by_path(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _keep(run: Run, states: list[fsg.TrainState], rows: list[dict[str, Any]] | None, *, save: bool) -> None:
    """Saves every run, the best epoch before, or else holds what is the best epoch now, until it is saved.

    So whatever is resumed has the checkpoint of its best epoch.

    Args:
      run: the runs.
      states: of them.
      rows: of the epoch that has ended, if one has.
      save: whether to save.
    """
    for i, (member, position) in enumerate(zip(run.members, run.stepper.positions(), strict=True)):
        row = {} if rows is None else rows[i]
        about = {"data": position, "metrics": {k: v for k, v in row.items() if k == f"val_{run.task.best}"}}
        about["extra"] = {"seconds": round(run.seconds, 3), "initial_weights": member.weights}
        about["extra"] |= {"run": member.folder.run, "log": member.log.position()}
        now = Snapshot(states[i], about)
        if rows is not None and row is best_epoch(member.log.epochs, run.task):
            member.best = None if save else now.copied()
        if save:
            for snapshot in filter(None, (member.best, now)):
                _save(member, snapshot)
            member.best = None


def _save(member: Member, snapshot: Snapshot) -> None:
    """Saves a run. It checks the state first: an update can overflow although its loss is finite."""
    state = snapshot.state
    leaves = _by_path(state.variables | {"opt_state": state.opt_state, "ema": state.ema})
    finite = jax.device_get(are_finite(list(leaves.values()))).tolist()
    sums = {name: 0.0 if ok else np.nan for name, ok in zip(leaves, finite, strict=True)}
    _check_finite(sums | {"step": int(state.step)}, member)
    member.log.sync()
    member.checkpointer.save(state, **snapshot.about)


def _record(run: Run, member: Member, state: fsg.TrainState, started: dict[str, Any]) -> dict[str, Any]:
    """Tests the state and writes the record of a finished run into its folder."""
    epoch = member.log.epochs[-1]
    if run.options.test_on == "best":
        epoch = best_epoch(member.log.epochs, run.task) or epoch
        state = member.checkpointer.restore(state, epoch["step"], expect={"run": member.folder.run}).state
    each, compiling = 1 / len(run.members), devices.compile_seconds() - run.compiling
    times = {"minutes": round(each * run.seconds / 60, 3), "compile_seconds": round(each * compiling, 2)}
    together = {"seeds_together": [m.seed for m in run.members]} if len(run.members) > 1 else {}
    gates = {k: np.round(v, 6).tolist() for k, v in jax.device_get(fsg.gate_values(_evaluated(state))).items()}
    counts = fsg.count_parameters(state.trainable)
    record = {
        "experiment": member.config["name"],
        "arm": member.config["arm"]["name"],
        "seed": member.seed,
        "status": "finished",
        "config": member.config,
        "facts": started | times | together,
        "parameters": {"params": counts["params"], "gates": counts.get("gates", 0)},
        "initial_weights": member.weights,
        "validation": {k.removeprefix("val_"): v for k, v in epoch.items() if k.startswith("val_")},
        **({"test": {}} if run.options.test_on == "none" else run.task.test(state, member.folder.path)),
        **run.task.info,
        "history": member.log.epochs,
        "gates": gates,
    }
    member.checkpointer.wait()  # a run is finished when its weights are kept
    return member.folder.finish(record)


def main() -> None:
    """Command line."""
    from experiments.cli import TrainArgs, parse, with_added_arms

    args = with_added_arms(parse(TrainArgs, "experiments.train"))
    devices.start()
    experiment = pretrained.pin(args.experiment)
    record = train(experiment, args.arm, args.seed, args.out, resume=args.resume)
    if not devices.is_first():
        return
    best = make_task(experiment, args.arm).best
    tested = f"test {best} {record['test'][best]:.4f}" if record["test"] else "not tested"
    print(
        f"{args.arm} seed {args.seed}: {tested}, validation {record['validation'][best]:.4f}, "
        f"{record['facts']['minutes']:.1f} minutes, in {args.out}"
    )


if __name__ == "__main__":
    run_main(main)
