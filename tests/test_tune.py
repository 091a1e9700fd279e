"""Searches end to end on the validation split: what is recorded, what a kill leaves, what is refused."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import tiny

from experiments import classification, search, task, tune
from experiments.cli import AblateArgs, TuneArgs, overrides, parse
from experiments.config import change
from experiments.configs import CONFIGS, SPACES
from experiments.errors import StopRequested, UserError, run_main
from experiments.space import choose, resolve, spell
from experiments.stop import StopRequest
from experiments.train import train

ROOT = Path(__file__).parent.parent
LR = "optimizer.learning_rate"
RATE = {LR: "0.01:0.1:log"}


def plan(*space: str, **options: Any) -> TuneArgs:
    """A search of some ranges, by default of the learning rate."""
    space = space or (f"{LR}=0.01:0.1:log",)
    only = tuple(text.partition("=")[0] for text in space)
    experiment = tiny.digits(train={"epochs": 2}, data={"resident": "no"})
    return TuneArgs(experiment, Path(), space=space, only=only, **{"trials": 3, "pruner": "none"} | options)


def search_in(args: TuneArgs, out: Path, *, resume: bool = False) -> list[dict]:
    return tune.tune(replace(args, out=out, resume=resume))


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def rates(records: list[dict]) -> list[float]:
    return [record["values"]["optimizer.learning_rate"] for record in records]


@pytest.fixture
def no_test_split(monkeypatch: pytest.MonkeyPatch) -> None:
    load = classification.load_split

    def guarded(config: Any, split: str) -> Any:
        assert split == "train"
        return load(config, split)

    monkeypatch.setattr(classification, "load_split", guarded)
    task.make_task.cache_clear()


@pytest.mark.usefixtures("no_test_split")
def test_a_search_tries_the_configuration_first_and_reads_no_test_split(tmp_path):
    (only,) = search_in(plan(seeds=2, trials=1), tmp_path)
    records = search_in(plan(seeds=2, trials=2), tmp_path, resume=True)
    assert records[0] == only
    assert rows(tmp_path / "trials.jsonl") == records
    assert [(r["trial"], r["state"], r["reason"]) for r in records] == [(i, "finished", "") for i in range(2)]
    assert rates(records)[0] == plan().experiment.optimizer.learning_rate
    assert 0.01 <= rates(records)[1] <= 0.1
    assert rates(records)[1] != rates(records)[0]
    for record in records:
        assert [(row["seed"], row["epochs"]) for row in record["seeds"]] == [(0, 2), (1, 2)]
        assert record["validation"] == pytest.approx(sum(row["last"] for row in record["seeds"]) / 2)
        assert record["facts"].keys() >= {"commit", "hardware", "command"}
        run = tmp_path / "trials" / f"{record['trial']:04d}" / "seed-1"
        assert not (run / "checkpoints").exists()
        result = json.loads((run / "result.json").read_text())
        assert result["test"] == {}
        assert "num_test" not in result
        assert result["history"][-1]["val_accuracy"] == record["seeds"][1]["last"]
    report = (tmp_path / "tune.md").read_text()
    best = max(record["validation"] for record in records)
    assert f"{100 * best:.2f}" in report
    assert "The test split was not read" in report
    assert "python -m experiments.ablate digits --seeds 3 --arms baseline --out runs/digits_tuned " in report
    assert search_in(plan(seeds=2, trials=2), tmp_path, resume=True) == records
    file = tmp_path / "trials" / "0000" / "trial.json"
    for damaged in ("[1]", "", "{}", file.read_text().replace('"validation": 0', '"validation": 1')):
        file.write_text(damaged)
        with pytest.raises(ValueError, match=r"0000/trial\.json is damaged"):
            search_in(plan(seeds=2, trials=2), tmp_path, resume=True)


@pytest.mark.slow
def test_a_search_that_is_killed_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch):
    straight = search_in(plan(trials=2), tmp_path / "straight")
    behind, reports = search.Search.is_behind, []

    def killed(self: search.Search, *args: Any) -> bool:
        reports.append(args)
        behind(self, *args)
        if len(reports) == 3:
            raise MemoryError
        return False

    monkeypatch.setattr(search.Search, "is_behind", killed)
    with pytest.raises(MemoryError):
        search_in(plan(trials=2), tmp_path / "killed")
    assert len(rows(tmp_path / "killed" / "trials.jsonl")) == 1
    journal = tmp_path / "killed" / "journal.jsonl"
    journal.write_text(journal.read_text() + '{"op_code":')
    with pytest.raises(UserError, match="already holds this search; add --resume"):
        search_in(plan(), tmp_path / "killed")
    killed = search_in(plan(trials=2), tmp_path / "killed", resume=True)
    assert len(reports) == 2 * 2  # the epoch before the kill was not trained again
    for key in ("trial", "state", "values", "seeds", "validation"):
        assert [record[key] for record in killed] == [record[key] for record in straight]


@pytest.mark.slow
def test_trials_that_diverge_or_cannot_run_are_recorded_and_the_search_goes_on(tmp_path):
    records = search_in(plan(f"{LR}=0.05,1e12", "train.batch_size=64,129", trials=10), tmp_path)
    states = {record["state"]: record["reason"] for record in records}
    assert states["finished"] == ""
    assert "loss" in states["diverged"]
    assert "became NaN or Inf at step" in states["diverged"]
    assert states["failed"] == "train.batch_size: expected an integer from 1 to 128, found 129"
    report = (tmp_path / "tune.md").read_text()
    assert "None of 10 trials was better" in report
    assert states["failed"] in report


@pytest.mark.slow
def test_a_trial_behind_the_others_is_pruned_but_not_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(tune, "make_pruner", lambda name, epochs: optuna.pruners.ThresholdPruner(lower=1.1))
    first, second = search_in(plan(trials=2, seeds=2), tmp_path)
    assert (first["state"], second["state"]) == ("finished", "pruned")
    assert second["reason"] == "behind the other trials after epoch 1"
    assert second["validation"] is None
    assert [(row["seed"], row["epochs"]) for row in second["seeds"]] == [(0, 1)]
    run = tmp_path / "trials" / "0001" / "seed-0"
    assert not (run / "result.json").exists()
    assert not (run / "checkpoints").exists()
    assert f"| 1 | ({100 * second['seeds'][0]['last']:.2f}) |" in (tmp_path / "tune.md").read_text()


def test_epochs_that_are_not_validated_neither_prune_nor_count(tmp_path):
    asked = []
    behind = SimpleNamespace(is_behind=lambda trial, epoch, value: asked.append((epoch, value)) or True)
    hook = tune._pruning(behind, SimpleNamespace(number=1), "accuracy", 4)
    hook([{"epoch": 1}])
    with pytest.raises(optuna.TrialPruned, match="after epoch 2"):
        hook([{"epoch": 2, "val_accuracy": 0.5}])
    assert asked == [(2, 0.5)]
    (tmp_path / "log").write_text('{"epoch": 1}\n{"epoch": 2, "val_accuracy": 0.5}\n{"epoch": 3}\n')
    assert tune._seed_row(0, tmp_path / "log", "val_accuracy") == {"seed": 0, "epochs": 3, "last": 0.5}
    assert tune._seed_row(0, tmp_path / "log", "val_loss") is None


def test_what_a_hook_raises_leaves_a_run_that_can_be_resumed(tmp_path):
    experiment, rows_seen = change(plan().experiment, {"train.test_on": "none"}), []

    def once(rows: list[dict]) -> None:
        rows_seen.extend(rows)
        if len(rows_seen) == 1:
            raise optuna.TrialPruned

    with pytest.raises(optuna.TrialPruned):
        train(experiment, "baseline", 0, tmp_path, on_epoch=once)
    record = train(experiment, "baseline", 0, tmp_path, resume=True, on_epoch=once)
    assert rows_seen == record["history"]
    assert train(experiment, "baseline", 0, tmp_path, resume=True, on_epoch=once) == record


def test_a_request_to_stop_reaches_the_search_and_the_run(tmp_path, monkeypatch):
    def interrupt(self: search.Search, *args: Any) -> bool:
        signal.raise_signal(signal.SIGINT)
        return False

    monkeypatch.setattr(search.Search, "is_behind", interrupt)
    with pytest.raises(StopRequested, match="saved at step 3; the same command with --resume continues"):
        search_in(plan(), tmp_path)
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert [record["trial"] for record in search_in(plan(trials=1), tmp_path, resume=True)] == [0]
    with StopRequest() as outer:
        with StopRequest():
            signal.raise_signal(signal.SIGINT)
        assert outer.requested
        with StopRequest() as later:
            assert later.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.slow
def test_another_search_in_the_folder_is_refused_by_key(tmp_path):
    search_in(plan(trials=1), tmp_path)
    longer = replace(plan(), experiment=tiny.digits(train={"epochs": 3}, data={"resident": "no"}))
    for other, message in (
        (longer, "differ in train.epochs: 2 there, 3 now"),
        (replace(plan(), arm="fsg"), "differ in arm.gate: 'none' there, 'static' now"),
        (
            plan(f"{LR}=0.01:0.2:log"),
            "differ in search.space.optimizer.learning_rate: '0.01:0.1:log' there, '0.01:0.2:log' now",
        ),
    ):
        with pytest.raises(UserError, match=message):
            search_in(other, tmp_path, resume=True)
    (tmp_path / "journal.jsonl").write_text("[]\n" * 3)
    with pytest.raises(UserError, match=r"journal\.jsonl is damaged: expected the journal of a search"):
        search_in(plan(), tmp_path, resume=True)


BAD_SPACES = [
    ([f"{LR}=0.1"], "--space optimizer.learning_rate=0.1: expected two or more different values"),
    ([f"{LR}=1:2:3"], "--space optimizer.learning_rate=1:2:3: expected KEY=LOW:HIGH, KEY=LOW:HIGH:log or KEY=VALUE"),
    (["0.1:0.2"], "--space 0.1:0.2: expected KEY=LOW:HIGH"),
    ([f"{LR}=0.1:0.01"], "expected LOW below HIGH, both finite"),
    ([f"{LR}=0:0.1:log"], "expected LOW below HIGH, both finite, above 0"),
    ([f"{LR}=a,b"], "optimizer.learning_rate: expected float, found 'a'"),
    (
        [f"{LR}=0.1:0.2"],
        "the configuration's own value, 0.05, which is tried first, is not in it; widen it or give --",
    ),
    ([f"{LR}=0.05,-1"], "optimizer.learning_rate: expected a finite number >= 0, found -1.0"),
    (
        ["optimizer.lr=0.1:1"],
        "unknown setting 'optimizer.lr' (did you mean 'optimizer.clip'?); there are data.augment, ",
    ),
    (["train.batch-size=32,6.5"], "--space train.batch_size=32,6.5: train.batch_size: expected int, found 6.5"),
    (["train.batch_size=32,True"], "train.batch_size: expected int, found True"),
    (["train.batch_size=32,32"], "expected two or more different values"),
    (["optimizer.name=sgd,adam"], "optimizer.name: expected one of 'sgd', 'adamw', found 'adam'"),
    (["train.ema-decay=0.9:0.99"], "the configuration's own value, None, which is tried first, is not in it"),
    (["train.ema-decay=None,1.5"], "train.ema_decay: expected a number in [0, 1), found 1.5"),
    (["optimizer.warmup-epochs=0:2"], "optimizer.warmup_epochs: expected less than train.epochs, 2, found 2.0"),
    (["data.augment=crop,flip"], "data.augment: expected tuple, found 'crop'"),
    (["data.validation=100,200"], "--space data.validation: cannot be searched"),
    (["train.test-on=last,best"], "--space train.test_on: cannot be searched"),
    (["gate.learning-rate=1e-3:1e-1:log"], "--space gate.learning_rate: the arm baseline has no gates"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_SPACES)
def test_bad_space(tmp_path, capsys, changes, message):
    with pytest.raises(SystemExit) as exited:
        run_main(lambda: search_in(plan(*changes), tmp_path / "out") and None)
    assert exited.value.code == 2
    line = capsys.readouterr().err
    assert message in line
    assert line.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_bad_plan(tmp_path):
    for options, message in (
        ({"trials": 0}, "--trials: expected an integer >= 1, found 0"),
        ({"seeds": 0}, "--seeds: expected an integer >= 1, found 0"),
        (
            {"experiment": replace(tiny.digits(), name="mine")},
            "--name: expected the name of a configuration, found 'mine'",
        ),
        ({"sampler_seed": -1}, "--sampler-seed: expected an integer >= 0, found -1"),
    ):
        with pytest.raises((UserError, ValueError), match=message):
            search_in(replace(plan(), **options), tmp_path / "out")
    with pytest.raises(
        UserError, match=r"--only train\.epochs: expected --space train\.epochs=\.\.\. too, or one of opt"
    ):
        choose(RATE, [], ["train.epochs"])
    assert not (tmp_path / "out").exists()


def test_spaces_of_the_command_line():
    space = choose(RATE, ["train.ema-decay=None,0.9", "model.width=8:64:log"], [])
    assert list(space) == [LR, "train.ema_decay", "model.width"]
    assert choose(space, [f"{LR}=0.02:1"], ["optimizer.learning-rate"]) == {LR: "0.02:1"}
    typed = {key: resolve(key, text, CONFIGS["digits"][0]) for key, text in space.items()}
    assert typed["train.ema_decay"] == optuna.distributions.CategoricalDistribution((None, 0.9))
    assert typed["model.width"] == optuna.distributions.IntDistribution(8, 64, log=True)
    assert resolve("optimizer.warmup_epochs", "0:2", CONFIGS["digits"][0]) == optuna.distributions.FloatDistribution(
        0, 2
    )
    assert [spell(found) for found in typed.values()] == list(space.values())


@pytest.mark.parametrize("name", CONFIGS)
def test_every_configuration_is_in_its_space(name):
    experiment = CONFIGS[name][0]
    space = {key: resolve(key, text, experiment) for key, text in SPACES[name].items()}
    last = {k: found.choices[-1] if hasattr(found, "choices") else found.high for k, found in space.items()}
    changed = change(experiment, last)
    assert (
        parse(AblateArgs, "experiments.ablate", [name, "--out", "x", *overrides(changed).split()]).experiment == changed
    )


def test_overrides_of_every_type():
    changes = {"data.augment": ("flip",), "data.checksum": False, "train.ema_decay": None, "data.path": Path("/a")}
    changed = change(CONFIGS["cifar100_resnet18_strong"][0], changes)
    text = overrides(changed)
    assert text == "--data.path /a --data.no-checksum --data.augment flip --train.ema-decay None"
    args = parse(TuneArgs, "experiments.tune", ["cifar100_resnet18_strong", "--out", "x", *text.split()])
    assert args.experiment == changed


def test_an_ablation_of_what_is_not_tested_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"train\.test_on: expected last or best"):
        tiny.ablation(tiny.digits(train={"test_on": "none"}), ("baseline",), 1, tmp_path / "out")
    assert not (tmp_path / "out").exists()


COMMAND = """
digits --trials 4 --only optimizer.learning-rate --pruner none --resume
--train.epochs 3 --model.width 4 --data.num-train 400
"""


def start(out: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "experiments.tune", *COMMAND.split(), "--out", str(out)]
    with (out.parent / "log").open("a") as log:
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)


@pytest.mark.slow
def test_two_processes_share_a_search_and_one_is_killed(tmp_path):
    out = tmp_path / "out"
    killed, other = start(out), start(out)
    while killed.poll() is None and len(list(out.glob("trials/*/seed-0/epochs.jsonl"))) < 3:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert other.wait(timeout=300) == 0, (tmp_path / "log").read_text()[-3000:]
    records = rows(out / "trials.jsonl")
    assert [(record["trial"], record["state"]) for record in records] == [(i, "finished") for i in range(4)]
    assert [[row["epochs"] for row in record["seeds"]] for record in records] == [[3]] * 4
    assert len(set(rates(records))) == 4
    assert start(out).wait(timeout=300) == 0
    assert rows(out / "trials.jsonl") == records
