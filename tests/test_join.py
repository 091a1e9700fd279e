"""A report of several folders: other seeds, arms and folds of one experiment, and nothing else."""

import copy
import json
from pathlib import Path

import pytest
from polyp_records import make_run
from test_report import make_record, save

from experiments.errors import run_main
from experiments.report import RecordsError, write_report
from experiments.report.__main__ import main
from experiments.run_folder import check_record, seal

ARMS = ("baseline", "fsg")


def part(folder: Path, records: list[dict], base: dict | None = None) -> Path:
    folder.mkdir()
    if base is not None:
        (folder / "ablation.json").write_text(json.dumps(base))
    return save(folder, [seal(record) for record in records])


def made(*seeds: int, arms: tuple[str, ...] = ARMS) -> list[dict]:
    records = [make_record(arm, seed) for seed in seeds for arm in arms]
    for record in records:
        config = {"epochs": 4, "batch_size": 128}
        record["config"] = {"seed": record["seed"], "train": config, "arm": {"name": record["arm"]}}
        record["config"] |= {"data": {"name": "cifar100", "path": "/one"}}
    return records


def joined(tmp_path: Path, one: list[dict], other: list[dict]) -> list[dict]:
    write_report(part(tmp_path / "a", one), part(tmp_path / "b", other), out=tmp_path / "out")
    return [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]


def test_seeds_of_two_folders_are_one_ablation_and_can_be_joined_with_more(tmp_path):
    records = joined(tmp_path, made(0, 1), made(2, 3))
    assert [(record["arm"], record["seed"]) for record in records] == [(arm, s) for s in range(4) for arm in ARMS]
    for record in records:
        check_record(record, "joined")
    folder, whole = part(tmp_path / "whole", made(0, 1, 2, 3)), tmp_path / "out"
    write_report(folder)
    for page in ("report.md", "report.html"):
        assert (whole / page).read_text() == (folder / page).read_text()
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"results.jsonl"}
    write_report(whole, part(tmp_path / "c", made(4)), out=tmp_path / "more")
    assert "over 5 seeds (0, 1, 2, 3, 4)" in (tmp_path / "more" / "report.md").read_text()


def test_what_is_in_both_folders_is_taken_once_and_only_if_it_is_the_same(tmp_path):
    assert len(joined(tmp_path, made(0, 1), made(1, 2))) == 6
    other = made(1)
    other[1]["facts"]["minutes"] = 9.0
    part(tmp_path / "c", other)
    with pytest.raises(RecordsError, match=r"c: expected no other run of fsg seed 1, which .*a has too"):
        write_report(tmp_path / "a", tmp_path / "c", out=tmp_path / "out")


def test_old_runs_and_how_runs_are_carried_out(tmp_path):
    """Settings that an older version did not have are what it did; paths and bookkeeping do not decide a result."""
    other = made(2)
    for record in other:
        record["config"]["train"] |= {"validate_every": 1, "checkpoint_every_seconds": 9.0, "log_every": 7}
        record["config"]["data"] |= {"path": "/other", "resident": "yes"}
        record["facts"] |= {"commit": "another", "dirty": True}
    assert len(joined(tmp_path, made(0, 1), other)) == 6
    assert "The runs differ in commit" in (tmp_path / "out" / "report.md").read_text()


def epochs(record: dict) -> None:
    record["config"]["train"]["epochs"] = 60


def validation(record: dict) -> None:
    record["config"]["train"]["validate_every"] = 5


def card(record: dict) -> None:
    record["facts"]["hardware"] = "gpu: 1 x H200"


def version(record: dict) -> None:
    record["facts"]["versions"] = {"jax": "0.11.0"}


def gate(record: dict) -> None:
    record["config"]["arm"]["kind"] = "tanh"


def images(record: dict) -> None:
    record["num_train"] = 40000


def name(record: dict) -> None:
    record["experiment"] = "other"


REFUSED = {
    epochs: r"b: expected the configuration of .*a, found another: train\.epochs: 4 there, 60 here$",
    validation: r"train\.validate_every: 1 there, 5 here$",
    card: r"b: facts\.hardware: expected that of .*a, cpu: two cores, found gpu: 1 x H200$",
    version: r"b: facts\.versions\.jax: expected that of .*a, 0\.10\.2, found 0\.11\.0$",
    gate: r"b: arm baseline: expected the configuration of .*a, found another: arm\.kind: None there, 'tanh' here$",
    images: r"b: arm baseline: num_train: expected that of .*a, 45000, found 40000$",
    name: r"b: expected runs of classification, synthetic as in .*a, found of classification, other$",
}


@pytest.mark.parametrize("change", REFUSED, ids=lambda change: change.__name__)
def test_what_does_not_belong_together_is_refused_by_key(tmp_path, change):
    other = made(2)
    for record in other:
        change(record)
    with pytest.raises(RecordsError, match=REFUSED[change]):
        joined(tmp_path, made(0, 1), other)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("change", [epochs, validation])
def test_folders_of_other_arms_are_compared_too(tmp_path, change):
    other = made(0, 1, arms=("fsg",))
    assert len(joined(tmp_path, made(0, 1, arms=("baseline",)), copy.deepcopy(other))) == 4
    for record in other:
        change(record)
    part(tmp_path / "c", other)
    with pytest.raises(RecordsError, match=REFUSED[change].partition(r"train\.")[2]):
        write_report(tmp_path / "a", tmp_path / "c", out=tmp_path / "out")


def test_added_arms_need_the_configuration_of_the_ablation(tmp_path):
    wide = made(0, 1, arms=("wide",))
    for record in wide:
        record["config"]["train"]["batch_size"] = 256
    part(tmp_path / "a", made(0, 1))
    part(tmp_path / "b", wide)
    with pytest.raises(RecordsError, match=r"b: expected ablation\.json, for it has added arms only \(wide\), found"):
        write_report(tmp_path / "a", tmp_path / "b", out=tmp_path / "out")
    base = {"train": {"epochs": 4, "batch_size": 128}, "data": {"name": "cifar100", "path": "/two"}}
    write_report(tmp_path / "a", part(tmp_path / "c", wide, base), out=tmp_path / "out")
    assert "| wide | 2 |" in (tmp_path / "out" / "report.md").read_text()
    base["train"]["epochs"] = 5
    with pytest.raises(RecordsError, match=r"d: expected .* train\.epochs: 4 there, 5 here$"):
        write_report(tmp_path / "a", part(tmp_path / "d", wide, base), out=tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "error: DIRS: expected one folder or more, found none"),
        (("a", "b"), "error: --out: expected a folder for what is joined from several ones, found none"),
        (("a", "a", "--out", "out"), "error: expected distinct folders, found "),
        (
            ("a", "b", "--out", "a"),
            "error: --out: expected a folder for what is joined, found one with runs of its own",
        ),
        (("a", "b", "--out", "runs"), "error: --out: expected a folder for what is joined, found one with runs"),
        (("a", "nothing", "--out", "out"), "error: nothing: expected results.jsonl with one JSON record a run, found"),
    ],
)
def test_the_command(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    part(Path("a"), made(0))
    part(Path("b"), made(1))
    part(Path("runs"), made(1), {})
    with pytest.raises(SystemExit) as exited:
        run_main(lambda: main(arguments))
    assert exited.value.code == 2
    assert message in capsys.readouterr().err


def test_predictions_are_found_from_where_the_folders_are_joined(tmp_path):
    for folder, fold in (("a", 0), ("b", 1)):
        (tmp_path / folder).mkdir()
        runs = [make_run(tmp_path / folder, arm, ["mask"], fold) for arm in ARMS]
        save(tmp_path / folder, [seal(record) for record in runs])
    write_report(tmp_path / "a", tmp_path / "b", out=tmp_path / "out" / "both", resamples=2)
    records = [json.loads(line) for line in (tmp_path / "out" / "both" / "results.jsonl").read_text().splitlines()]
    assert [record["fold"] for record in records] == [0, 0, 1, 1]
    for record in records:
        assert record["predictions"].startswith("../../")
        assert (tmp_path / "out" / "both" / record["predictions"]).is_file()
        check_record(record, "joined")
