"""Checkpoints by the clock, validation every n epochs, and what is compiled: no epoch pays for what it does not use."""

import itertools
import json
from collections import Counter
from pathlib import Path

import jax
import pytest
import tiny

import fsg_jax as fsg
from experiments import saving
from experiments import train as loop
from experiments.classification import _eval_step
from experiments.config import describe
from experiments.run_folder import differences, identity
from experiments.run_log import RunLog
from experiments.task import make_task
from experiments.train import train

NEVER = 1e6
EPOCHS = 4
SCORES = {2: 0.1, 4: 0.9, 6: 0.5, 8: 0.6}
"""Made-up validation accuracy by step, the best after the second epoch."""


def test_the_clock_saves_short_epochs_at_their_ends(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(saving.time, "monotonic", lambda: now[0])
    clock, saved = saving.Clock(10.0), []
    for tick in range(1, 200):  # epochs of 4 seconds, steps of 0.5
        now[0] = tick / 2
        if clock.is_due(epoch_ends=tick % 8 == 0):
            saved.append(now[0])
            clock.restart()
    assert saved[:3] == [8.0, 16.0, 24.0]
    assert all(time % 4 == 0 for time in saved)


def test_the_clock_saves_within_long_epochs(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(saving.time, "monotonic", lambda: now[0])
    clock, saved = saving.Clock(10.0), []
    for tick in range(1, 101):  # epochs of 25 seconds
        now[0] = float(tick)
        if clock.is_due(epoch_ends=tick % 25 == 0):
            saved.append(now[0])
            clock.restart()
    assert saved == [10.0, 20.0, 25.0, 35.0, 45.0, 50.0, 60.0, 70.0, 75.0, 85.0, 95.0, 100.0]


def test_with_zero_every_epoch_is_saved_and_nothing_else(monkeypatch):
    monkeypatch.setattr(saving.time, "monotonic", lambda: 5.0)
    clock = saving.Clock(0.0)
    assert [clock.is_due(epoch_ends=ends) for ends in (False, True, False, True)] == [False, True, False, True]


def scripted(monkeypatch: pytest.MonkeyPatch, saves: set[int]) -> None:
    """Validation gives `SCORES`, and the clock is due after the epochs `saves`."""
    real, epochs = make_task, itertools.count(1)

    def validate(state: fsg.TrainState) -> dict[str, float]:
        return {"loss": 1.0, "accuracy": SCORES[int(state.step)]}

    monkeypatch.setattr(loop, "make_task", lambda *args: real(*args)._replace(validate=validate))

    def is_due(self: saving.Clock, *, epoch_ends: bool) -> bool:
        return epoch_ends and next(epochs) in saves

    monkeypatch.setattr(saving.Clock, "is_due", is_due)


def stopped_after(epoch: int):
    def stop(rows: list[dict]) -> None:
        if rows[0]["epoch"] == epoch:
            raise KeyboardInterrupt

    return stop


def steps(out: Path) -> list[int]:
    return sorted(int(path.name) for path in (out / "checkpoints").iterdir())


def same(one: dict, other: dict) -> bool:
    return {**one, "facts": None} == {**other, "facts": None}


EXPERIMENT = tiny.digits(train={"epochs": EPOCHS, "test_on": "best", "checkpoint_every_seconds": NEVER})


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    """The run that saves every epoch."""
    out = tmp_path_factory.mktemp("straight")
    with pytest.MonkeyPatch.context() as patch:
        scripted(patch, {1, 2, 3, 4})
        record = train(EXPERIMENT, "fsg_gr", 0, out)
    assert steps(out) == [4, 6, 8]  # the last two and the best
    assert record["validation"]["accuracy"] == 0.9
    return out


@pytest.mark.parametrize(
    ("stopped", "saves", "kept", "at_end"),
    [
        (3, {3}, [4, 6], [4, 6, 8]),  # the second epoch was held, and is saved before the third
        (3, set(), [], [4, 8]),  # nothing was saved: the run begins anew
        (3, {1}, [2], [4, 8]),  # the best epoch was lost with the process, and comes again
        (2, {2}, [4], [4, 8]),
    ],
)
def test_the_best_epoch_is_saved_before_any_later_one(tmp_path, monkeypatch, straight, stopped, saves, kept, at_end):
    out = tmp_path / "stopped"
    scripted(monkeypatch, saves)
    with pytest.raises(KeyboardInterrupt):
        train(EXPERIMENT, "fsg_gr", 0, out, on_epoch=stopped_after(stopped))
    assert steps(out) == kept
    scripted(monkeypatch, set())
    record = train(EXPERIMENT, "fsg_gr", 0, out, resume=True)
    assert same(record, json.loads((straight / "result.json").read_text()))
    assert steps(out) == at_end
    for name in ("steps.jsonl", "epochs.jsonl"):
        assert (out / name).read_text() == (straight / name).read_text()


@pytest.mark.slow
def test_validation_every_three_epochs(tmp_path):
    experiment = tiny.digits(train={"epochs": 4, "validate_every": 3, "test_on": "best"})
    record = train(experiment, "baseline", 0, tmp_path / "third")
    every = train(tiny.change(experiment, train={"validate_every": 1}), "baseline", 0, tmp_path / "every")
    assert [row["epoch"] for row in record["history"] if "val_accuracy" in row] == [3, 4]
    for row, whole in zip(record["history"], every["history"], strict=True):
        assert row == {key: value for key, value in whole.items() if key in row}
        assert row.keys() >= {"epoch", "step", "train_loss", "train_accuracy", "gates"}
    best = max(record["history"][2:], key=lambda row: (row["val_accuracy"], row["step"]))
    assert record["validation"] == {"accuracy": best["val_accuracy"], "loss": best["val_loss"]}
    assert best["step"] in steps(tmp_path / "third")


def test_within_an_epoch_the_log_waits_for_no_step_that_was_just_begun(tmp_path, monkeypatch):
    """Steps are logged one interval later than they are begun, but for those at the end of an epoch."""
    written, add = [], RunLog.add_steps
    monkeypatch.setattr(RunLog, "add_steps", lambda log, rows: written.append(len(rows)) or add(log, rows))
    plan = {"batch_size": 16, "log_every": 3, "dispatch": "scan", "checkpoint_every_seconds": NEVER}
    record = train(tiny.digits(data={"resident": "yes"}, train=plan), "baseline", 0, tmp_path)
    assert written == [3, 5, 3, 5]
    rows = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert [(row["step"], row["epoch"]) for row in rows] == [(step, 1 + (step > 8)) for step in range(1, 17)]
    losses = [row["loss"] for row in rows]
    assert record["history"][1]["train_loss"] == pytest.approx(sum(losses[8:]) / 8)


def test_what_older_runs_did_is_the_same_run():
    """They had a checkpoint and a validation at every epoch, and a configuration that says neither."""
    now = describe(tiny.digits(), "fsg", 0)
    then = json.loads(json.dumps(now))
    for name in ("validate_every", "checkpoint_every_seconds"):
        del then["train"][name]
    assert identity(then) == identity(now)
    assert differences(then, now) == {}
    now["train"] |= {"checkpoint_every_seconds": 7.0}
    assert identity(then) == identity(now)
    now["train"] |= {"validate_every": 2}
    assert identity(then) != identity(now)
    assert differences(then, now) == {"train.validate_every": (1, 2)}


@pytest.mark.slow
@pytest.mark.parametrize("dispatch", ["scan", "loop"])
def test_seeds_compile_nothing_and_arms_share_their_evaluation(tmp_path, dispatch):
    compiled: list[str] = []

    def listen(event: str, seconds: float, **about: str) -> None:
        if event.endswith("backend_compile_duration"):
            compiled.append(about["fun_name"])

    resident = "yes" if dispatch == "scan" else "no"
    train_part = {"dispatch": dispatch, "checkpoint_every_seconds": NEVER, "epochs": 1}
    experiment = tiny.digits(data={"resident": resident}, train=train_part)
    for known in (make_task, _eval_step):
        known.cache_clear()
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        tiny.ablation(experiment, ("fsg", "fsg_gr"), 1, tmp_path)
        first = Counter(compiled)
        compiled.clear()
        tiny.ablation(experiment, ("fsg", "fsg_gr"), 2, tmp_path, resume=True)
        assert compiled == []
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert first["jit(scan)" if dispatch == "scan" else "jit(stacked)"] == 2
    assert first["jit(sums)"] == 1
    assert first["jit(gate_summary)"] <= 1  # perhaps by another test before
