"""Ablations in parts: other seeds, and no run that would not end in time."""

import itertools
import json

import pytest
import tiny

from experiments import ablate, budget
from experiments.budget import Budget, Took
from experiments.errors import TimeIsUp, UserError, run_main
from experiments.report import write_report


def test_a_run_is_allowed_if_the_finished_ones_say_that_it_ends_in_time(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(budget.time, "monotonic", lambda: now[0])
    time = Budget(1.0, [])
    assert time.allows("a", "program a", 1)  # nothing is known
    time.add(Took("a", 10.0, 20.0), "program a")
    time.add(Took("b", 12.0, 5.0), "program b")
    now[0] = 40.0
    assert time.allows("a", "program a", 1)
    assert not time.allows("a", "program a", 2)
    assert not time.allows("a", "program a of another fold", 1)  # compiles again
    assert time.allows("b", "program b of another fold", 1)
    assert not time.allows("c", "program c", 1)  # as slow as the slowest: 12 seconds and 20 in the compiler
    now[0] = 27.0
    assert time.allows("c", "program c", 1)
    now[0] = 50.0
    assert not time.allows("a", "program a", 1)
    assert Budget(None, [Took("a", 1e9, 0.0)]).allows("a", "", 10**6)


def test_a_budget_knows_the_runs_of_other_times(monkeypatch):
    monkeypatch.setattr(budget.time, "monotonic", lambda: 0.0)
    time = Budget(1.0, [Took("a", 30.0, 40.0), Took("a", 10.0, 20.0)])
    assert not time.allows("a", "a", 1)
    time.add(Took("a", 5.0, 0.0), "a")
    assert time.allows("a", "a", 1)


@pytest.mark.slow
def test_parts_of_an_ablation_add_up(tmp_path, monkeypatch):
    experiment, arms = tiny.digits(train={"epochs": 1}), ("baseline",)
    first = tiny.ablation(experiment, arms, 1, tmp_path / "a")
    allowed = itertools.cycle([False, True])
    with monkeypatch.context() as patch:
        patch.setattr(Budget, "allows", lambda *_: next(allowed))
        with pytest.raises(TimeIsUp, match=r"^not begun, .* in the minutes that there were: baseline/seed-1$"):
            tiny.ablation(experiment, arms, 2, tmp_path / "b", first_seed=1, minutes=60.0)
    found = [json.loads(line) for line in (tmp_path / "b" / "results.jsonl").read_text().splitlines()]
    assert [record["seed"] for record in found] == [2]
    assert not (tmp_path / "b" / "baseline" / "seed-1").exists()
    second = tiny.ablation(experiment, arms, 2, tmp_path / "b", first_seed=1, minutes=60.0, resume=True)
    assert [record["seed"] for record in second] == [1, 2]
    write_report(tmp_path / "a", tmp_path / "b", out=tmp_path / "both")
    lines = (tmp_path / "both" / "results.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == first + second
    assert "(0, 1, 2)" in (tmp_path / "both" / "report.md").read_text()


def test_the_command_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    words = ["digits", "--out", str(tmp_path / "a b"), "--minutes", "2.5", "--seeds", "8", "--first-seed", "4"]
    seen = []
    (tmp_path / "a b").mkdir()

    def stopped(args):
        seen.append((args.minutes, args.seeds, args.first_seed))
        raise TimeIsUp("not begun: fsg/seed-7")

    monkeypatch.setattr(ablate, "ablate", stopped)
    monkeypatch.setattr(ablate.devices, "start", lambda: None)
    for given in (words, [*words, "--resume"]):
        monkeypatch.setattr(ablate.sys, "argv", ["ablate.py", *given])
        with pytest.raises(SystemExit) as exited:
            run_main(ablate.main)
        assert exited.value.code == 4
        command = " ".join(["python -m experiments.ablate digits --out", f"'{tmp_path}/a b'", *words[3:], "--resume"])
        assert capsys.readouterr().err == f"not begun: fsg/seed-7\nto go on: {command}\n"
    assert seen == [(2.5, 8, 4)] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"minutes": 0.0}, "--minutes: expected a finite number > 0, found 0.0"),
        ({"minutes": float("nan")}, "--minutes: expected a finite number > 0, found nan"),
        ({"first_seed": -1}, "--first-seed: expected an integer >= 0, found -1"),
        ({"first_seed": 2**32 - 1}, "--first-seed: expected an integer <= 4294967294, found 4294967295"),
    ],
)
def test_wrong_options(tmp_path, options, message):
    with pytest.raises((ValueError, UserError), match=message):
        tiny.ablation(tiny.digits(), ("baseline",), 2, tmp_path, **options)
