"""The one training loop: ``python -m experiments.train CONFIG --arm ARM --out DIR [overrides]``."""

import math
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import fsg_jax as fsg
from experiments import devices, pretrained, provenance
from experiments.config import BaseExperiment, Train, describe, flatten, in_arm
from experiments.errors import NotFiniteError, StopRequested, UserError, run_main
from experiments.run_folder import FollowerFolder, RunFolder, writing_to
from experiments.run_log import RunLog
from experiments.stepper import Stepper
from experiments.stop import StopRequest
from experiments.task import Task, make_task
from fsg_jax._checks import check_integer
from fsg_jax._files import BusyError
from fsg_jax.training.checkpoint import Restored
from fsg_jax.training.checkpoint_files import checksums

OnEpoch = Callable[[list[dict[str, Any]]], None]
"""Given the rows of an epoch, one a run, once they are logged and saved. If it raises, the runs stop; they can be
resumed."""


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
    position: dict[str, Any] | None = None
    """The position in the data, in the checkpoint that is resumed."""
    seconds: float = 0.0

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
    if (restored := _restore(checkpointer, state, options, task, folder)) is not None:
        state, position, extra = restored.state, restored.data, restored.extra
        seconds, weights, log = extra["seconds"], extra.get("initial_weights"), extra.get("log")
    run_log = RunLog(folder.path, int(state.step), task.step_metrics, log, write=devices.is_first())
    return Member(seed, config, folder, run_log, checkpointer, state, weights, position, seconds)


def _restore(
    checkpointer: fsg.Checkpointer, like: fsg.TrainState, options: Train, task: Task, folder: RunFolder
) -> Restored | None:
    """The newest sound checkpoint of the run; None without one, and the run begins anew.

    Where the best epoch is tested its checkpoint must be sound too, or else the run goes back to before that epoch.
    """
    expect = {"run": folder.run}
    while checkpointer.steps():
        try:
            restored = checkpointer.restore(like, expect=expect)
        except fsg.CheckpointError:
            if checkpointer.steps():
                raise
            break
        epochs = restored.extra.get("log", {}).get("epochs")
        if options.test_on != "best" or not epochs:
            return restored
        best = _best_epoch(epochs, task)["step"]
        if best == restored.step:
            return restored
        try:
            checkpointer.restore(like, best, expect=expect)
        except fsg.CheckpointError as error:
            for step in [step for step in checkpointer.steps() if step >= best]:
                checkpointer.set_aside(step, f"the weights of step {best}, which are to be tested, are lost: {error}")
        else:
            return restored
    return None


def _best_epoch(epochs: list[dict[str, Any]], task: Task) -> dict[str, Any]:
    """The row with the best validation metric, the last of equals."""
    sign = -1 if task.smallest else 1
    return max(epochs, key=lambda row: (sign * row[f"val_{task.best}"], row["step"]))


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
    title = f"{run.members[0].config['arm']['name']} seed {', '.join(str(member.seed) for member in run.members)}"
    silent = not devices.is_first()
    bar = tqdm(total=run.total_steps, initial=run.step, desc=title, unit="step", dynamic_ncols=True, disable=silent)
    with bar, StopRequest() as request:
        while run.step < run.total_steps:
            _advance(run, bar)
            in_epoch = run.step % run.task.steps_per_epoch
            epoch_ends = in_epoch == 0
            checkpoint = epoch_ends or _divides(options.checkpoint_every, run.step)
            log = checkpoint or _divides(options.log_every, in_epoch)
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


def _write_steps(run: Run) -> None:
    """Logs the steps since the last call. It checks them first: nothing that is not finite is logged or saved."""
    pending, run.pending = jax.device_get(run.pending), []
    flat = [{k.replace(".", "/"): v for k, v in flatten(metrics).items()} for metrics in pending]
    for i, member in enumerate(run.members):
        columns = {k: np.concatenate([metrics[k][i] for metrics in flat]).tolist() for k in flat[0]}
        values = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        first = run.step + 1 - len(values)
        rows = [{"step": t, "epoch": math.ceil(t / run.task.steps_per_epoch)} | v for t, v in enumerate(values, first)]
        for row in rows:
            _check_finite(row, member)
        member.log.add_steps(rows)


def _check_finite(values: dict[str, Any], member: Member) -> None:
    if bad := sorted(k for k, v in values.items() if not np.isfinite(v).all()):
        names = ", ".join(bad[:3]) + f" and {len(bad) - 3} more" * (len(bad) > 3)
        where = f"seed {member.seed}: {names} became NaN or Inf at step {values['step']}"
        raise NotFiniteError(f"{where}; the last good checkpoint is kept")


def _end_of_epoch(run: Run) -> list[dict[str, Any]]:
    rows = []
    for member, state in zip(run.members, run.stepper.states(), strict=True):
        gates = jax.tree.map(float, jax.device_get(fsg.gate_summary(_evaluated(state))))
        metrics = {f"val_{k}": v for k, v in run.task.validate(state).items()}
        row = {"epoch": run.step // run.task.steps_per_epoch, "step": run.step} | metrics | {"gates": gates}
        _check_finite(flatten(row), member)
        rows.append(member.log.add_epoch(row))
    return rows


def _by_path(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


@jax.jit
def _finite(leaves: list[jax.Array]) -> list[jax.Array]:
    return [jnp.isfinite(leaf).all() for leaf in leaves]


def _save(run: Run, rows: list[dict[str, Any]] | None) -> None:
    """Saves every run. It checks the states first: an update can overflow although its loss is finite."""
    best = f"val_{run.task.best}"
    states, positions = run.stepper.states(), run.stepper.positions()
    for i, (member, state, position) in enumerate(zip(run.members, states, positions, strict=True)):
        leaves = _by_path(state.variables | {"opt_state": state.opt_state, "ema": state.ema})
        finite = jax.device_get(_finite(list(leaves.values())))
        sums = {name: 0.0 if ok else np.nan for name, ok in zip(leaves, finite, strict=True)}
        _check_finite(sums | {"step": run.step}, member)
        metrics = None if rows is None else {best: rows[i][best]}
        extra: dict[str, Any] = {"seconds": round(run.seconds, 3), "initial_weights": member.weights}
        extra |= {"run": member.folder.run, "log": member.log.position()}
        member.checkpointer.save(state, data=position, metrics=metrics, extra=extra)


def _record(run: Run, member: Member, state: fsg.TrainState, started: dict[str, Any]) -> dict[str, Any]:
    """Tests the state and writes the record of a finished run into its folder."""
    epoch = member.log.epochs[-1]
    if run.options.test_on == "best":
        epoch = _best_epoch(member.log.epochs, run.task)
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
