"""Runs and ablations end to end, on configurations that are shrunk but otherwise as they are."""

import json
import mmap
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

import fsg_jax as fsg
from experiments import build, devices, task
from experiments.ablate import run_path
from experiments.classification import load_splits
from experiments.config import ARMS, Experiment, Optimizer, describe, flatten
from experiments.configs import CONFIGS
from experiments.errors import NotFiniteError, UserError, run_main
from experiments.report import write_report
from experiments.run_folder import RunFolder
from experiments.task import make_task
from experiments.train import train
from fsg_jax import data

FIELDS = {
    *("experiment", "arm", "seed", "status", "config", "facts", "parameters", "validation", "test", "history", "gates"),
    *("initial_weights", "num_train", "num_validation", "num_test", "dropped_per_epoch", "flops"),
}
FACTS = {"commit", "dirty", "command", "python", "versions", "hardware", "device", "started", "minutes"}
EPOCH = {"epoch", "step", "val_loss", "val_accuracy", "train_loss", "train_accuracy", "gates"}


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


IMAGES = [name for name, (config, _) in CONFIGS.items() if isinstance(config, Experiment)]


@pytest.mark.slow
@pytest.mark.parametrize("name", IMAGES)
def test_every_configuration_trains(tmp_path, name):
    experiment = tiny.shrunk(name, tmp_path)
    record = train(experiment, "fsg_gr", 1, tmp_path / "out")
    assert record.keys() == FIELDS
    assert record["facts"].keys() >= FACTS
    assert (record["experiment"], record["arm"], record["seed"]) == (name, "fsg_gr", 1)
    assert [row.keys() for row in record["history"]] == [EPOCH, EPOCH]
    assert record == json.loads((tmp_path / "out" / "result.json").read_text())
    assert rows(tmp_path / "out" / "epochs.jsonl") == record["history"]
    per_epoch = record["num_train"] // experiment.train.batch_size
    assert record["dropped_per_epoch"] == record["num_train"] % experiment.train.batch_size
    steps = rows(tmp_path / "out" / "steps.jsonl")
    assert [row["step"] for row in steps] == list(range(1, 2 * per_epoch + 1))
    assert record["history"][-1]["train_loss"] == pytest.approx(np.mean([row["loss"] for row in steps[per_epoch:]]))
    assert {"grad_norm/params", "grad_norm/gates"} <= steps[0].keys()
    values = np.concatenate(list(record["gates"].values()))
    assert values.size == record["parameters"]["gates"] > 0
    assert ((values > 0) & (values < 1)).all()


@pytest.mark.slow
def test_arms_start_alike_and_see_the_same():
    experiment = tiny.digits()
    init = {arm: make_task(experiment, arm).init for arm in ("baseline", "fsg_gr")}
    base, gated, other = init["baseline"](jax.random.key(3)), init["fsg_gr"](jax.random.key(3)), jax.random.key(4)
    jax.tree.map(np.testing.assert_array_equal, gated.params, base.params)
    assert gated.gates
    assert not base.gates
    assert jax.random.key_data(gated.rng).tolist() == jax.random.key_data(base.rng).tolist()
    assert not np.array_equal(init["baseline"](other).params["head"]["kernel"], base.params["head"]["kernel"])
    batches = [next(iter(data.make_loader(load_splits(experiment.data).train, 64, seed=s))) for s in (3, 3, 4)]
    np.testing.assert_array_equal(batches[0]["index"], batches[1]["index"])
    assert not np.array_equal(batches[0]["index"], batches[2]["index"])


@pytest.mark.parametrize("name", CONFIGS)
def test_resolved_configurations_of_arms_differ_in_the_arm_alone(name):
    configs = [flatten(describe(CONFIGS[name][0], arm, 0)) for arm in ARMS]
    differ = {k for config in configs for k in config if config[k] != configs[0][k]}
    assert {"arm.name", "arm.gate", "arm.routing"} <= differ
    assert all(key.startswith("arm.") for key in differ)


def test_ablation_resumes_and_refuses(tmp_path):
    experiment, arms = tiny.digits(), ("baseline", "fsg_gr")
    records = tiny.ablation(experiment, arms, 2, tmp_path)
    assert [(r["arm"], r["seed"]) for r in records] == [(arm, seed) for arm in arms for seed in (0, 1)]
    assert rows(tmp_path / "results.jsonl") == records
    paths = write_report(tmp_path)
    assert paths
    assert all(path.stat().st_size for path in paths)
    files = [run_path(tmp_path, arm, seed) / "result.json" for arm in arms for seed in (0, 1)]
    times = [path.stat().st_mtime_ns for path in files]
    assert tiny.ablation(experiment, arms, 2, tmp_path, resume=True) == records
    assert [path.stat().st_mtime_ns for path in files] == times
    with pytest.raises(UserError, match="already holds this ablation; add --resume"):
        tiny.ablation(experiment, arms, 2, tmp_path)
    with pytest.raises(UserError, match=r"differ in train\.epochs: 2 there, 3 now$"):
        tiny.ablation(tiny.change(experiment, train={"epochs": 3}), arms, 2, tmp_path, resume=True)
    with pytest.raises(UserError, match=r"differ in arm\.gate: .*; seed: 0 there, 1 now"):
        train(experiment, "fsg_gr", 1, run_path(tmp_path, "baseline", 0), resume=True)
    with pytest.raises(UserError, match="already holds this run; add --resume"):
        train(experiment, "baseline", 0, run_path(tmp_path, "baseline", 0))
    for axis, values in (("streams", ("rgb",)), ("folds", (0, 1))):
        with pytest.raises(
            UserError, match=rf"--{axis}: expected none, for digits has no {axis} to choose from, found"
        ):
            tiny.ablation(experiment, arms, 2, tmp_path, resume=True, **{axis: values})
    assert rows(tmp_path / "results.jsonl") == records


def test_an_ablation_leaves_busy_runs_to_the_other_process(tmp_path, capsys):
    experiment = tiny.digits()
    path = run_path(tmp_path, "fsg_gr", 0)
    with RunFolder(path, describe(experiment, "fsg_gr", 0), resume=False):
        with pytest.raises(UserError, match=r"expected an empty folder or ablation\.json in it"):
            tiny.ablation(experiment, ("fsg_gr",), 1, tmp_path, resume=True)
        (tmp_path / "ablation.json").write_text(json.dumps(describe(experiment)))
        assert tiny.ablation(experiment, ("fsg_gr",), 1, tmp_path, resume=True) == []
        assert f"left to another process that is at work on them: {path}\n" in capsys.readouterr().out
    assert len(tiny.ablation(experiment, ("fsg_gr",), 1, tmp_path, resume=True)) == 1


def test_a_run_is_reproduced_exactly(tmp_path):
    first, second = (train(tiny.digits(), "fsg_gr", 0, tmp_path / name) for name in "ab")
    assert {**first, "facts": None} == {**second, "facts": None}


@pytest.mark.slow
@pytest.mark.parametrize("together", [1, 2])
def test_runs_that_blow_up_do_not_end_the_ablation(tmp_path, together):
    """The gates' optimizer overflows at its second step; the baseline, which has none, is trained all the same."""
    resident = "yes" if together > 1 else "no"
    experiment = tiny.digits(gate={"learning_rate": 3e38}, data={"resident": resident})
    arms = ("fsg_gr", "baseline")
    with pytest.raises(NotFiniteError, match=r"seed-0: seed 0: gates/.*; .*seed-1: seed 1: gates/.* not affected"):
        tiny.ablation(experiment, arms, 2, tmp_path, together=together)
    records = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [(record["arm"], record["seed"]) for record in records] == [("baseline", 0), ("baseline", 1)]


@pytest.mark.slow
def test_programs_of_earlier_arms_are_released_before_memory_maps_run_out(monkeypatch, tmp_path):
    programs: list[int] = []

    def share() -> float:
        programs.append(len(jax.devices()[0].client.live_executables()))
        return 1.0

    monkeypatch.setattr(task, "share_of_memory_maps", share)
    arms = {f"rate{i}": (("optimizer.learning_rate", i / 100),) for i in range(1, 5)}
    experiment = replace(tiny.digits(), added_arms=tuple((arm, changes) for arm, changes in arms.items()))
    tiny.ablation(experiment, tuple(arms), 1, tmp_path / "out")
    assert len(programs) == 4
    assert programs[1] == programs[2] == programs[3], "only the programs of the last arm, and those of all"


def test_memory_maps_are_counted():
    before = devices.share_of_memory_maps()
    pages = [mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE * (i % 2)) for i in range(500)]
    after = devices.share_of_memory_maps()
    for page in pages:
        page.close()
    assert after >= before + 400 / 2**20  # Linux allows 65,530 unless it is told otherwise
    assert 0 < before < after < 1


@pytest.mark.slow
def test_the_best_epoch_is_tested_if_asked_for(tmp_path):
    experiment = tiny.digits(train={"test_on": "best", "epochs": 3, "ema_decay": 0.9})
    record = train(experiment, "baseline", 0, tmp_path / "out")
    best = max(record["history"], key=lambda row: row["val_accuracy"])
    assert record["validation"] == {"accuracy": best["val_accuracy"], "loss": best["val_loss"]}


RUINED_LOSS = ({"learning_rate": 1e12}, 3, r"loss.* at step 3;")
RUINED_UPDATE = ({"name": "adamw", "learning_rate": 3e38, "weight_decay": 100.0}, 2, r"params/.* at step 2;")


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "bad_step", "message"), [RUINED_LOSS, RUINED_UPDATE])
def test_training_that_blows_up_stops_and_keeps_the_last_good_checkpoint(
    tmp_path, capsys, optimizer, bad_step, message
):
    """Step 2 is the first that moves. It ruins the loss of step 3, or overflows after a sound loss of its own."""
    train_part = {"checkpoint_every": 1, "epochs": 4}
    experiment = tiny.digits(data={"num_train": 192}, optimizer=optimizer, train=train_part)
    out = tmp_path / "out"
    with pytest.raises(NotFiniteError, match=message):
        train(experiment, "baseline", 0, out)
    assert not (out / "result.json").exists()
    assert all(np.isfinite(row["loss"]) for row in rows(out / "steps.jsonl"))
    checkpointer = fsg.Checkpointer(out / "checkpoints")
    restored = checkpointer.restore(make_task(experiment, "baseline").init(jax.random.key(0)))
    assert restored.step == bad_step - 1
    for leaf in jax.tree.leaves((restored.state.variables, restored.state.opt_state)):
        assert np.isfinite(leaf).all()
    with pytest.raises(SystemExit) as exited:
        run_main(lambda: train(experiment, "baseline", 0, out, resume=True) and None)
    assert exited.value.code == 3
    assert "the last good checkpoint is kept" in capsys.readouterr().err


ON_DEVICE = {"resident": "yes"}


def test_how_a_run_is_carried_out_may_change_when_it_is_resumed(tmp_path):
    experiment = tiny.digits(train={"epochs": 1})
    record = train(experiment, "baseline", 0, tmp_path)
    (tmp_path / "result.json").unlink()
    other = tiny.change(experiment, data=ON_DEVICE, train={"log_every": 7, "keep_last": 5})
    assert train(other, "baseline", 0, tmp_path, resume=True)["test"] == record["test"]
    with pytest.raises(ValueError, match="--together: expected an integer >= 1, found 0"):
        tiny.ablation(experiment, ("baseline",), 1, tmp_path / "ablation", together=0)
    with pytest.raises(
        UserError,
        match=r"--together: expected 1 without training data in device memory \(see --data\.resident\), found 2",
    ):
        tiny.ablation(experiment, ("baseline",), 2, tmp_path / "ablation", together=2)


@pytest.mark.slow
@pytest.mark.parametrize("dispatch", ["loop", "scan"])
def test_data_on_the_device_give_the_same_run(tmp_path, dispatch):
    streamed = tiny.digits()
    resident = tiny.change(streamed, data=ON_DEVICE, train={"dispatch": dispatch})
    first, second = (train(e, "fsg_gr", 0, tmp_path / str(i)) for i, e in enumerate((streamed, resident)))
    assert first["test"] == pytest.approx(second["test"], rel=1e-5)
    a, b = (rows(tmp_path / str(i) / "steps.jsonl") for i in (0, 1))
    for one, other in zip(a, b, strict=True):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-7)
    if dispatch == "loop":
        assert first["gates"] == second["gates"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["map", "vmap"])
def test_seeds_side_by_side_are_the_seeds_alone(tmp_path, monkeypatch, mode):
    experiment = tiny.digits(data=ON_DEVICE, train={"dispatch": "scan", "ema_decay": 0.9})
    monkeypatch.setattr(devices, "seed_mode", lambda model: mode)
    tiny.ablation(experiment, ("fsg_gr",), 2, tmp_path / "alone", together=1)
    tiny.ablation(experiment, ("fsg_gr",), 2, tmp_path / "both", together=2)
    for seed in (0, 1):
        a, b = (run_path(tmp_path / name, "fsg_gr", seed) for name in ("alone", "both"))
        for one, other in zip(rows(a / "steps.jsonl"), rows(b / "steps.jsonl"), strict=True):
            assert one == pytest.approx(other, rel=2e-4, abs=1e-6)
        record = json.loads((b / "result.json").read_text())
        assert record["facts"]["seeds_together"] == [0, 1]
        assert record["config"] == json.loads((a / "result.json").read_text())["config"]


def test_schedules():
    """Warm-up, then down to 0, or half of the rate at every so many epochs."""
    options = {"learning_rate": 0.4, "warmup_epochs": 1.0, "halve_every": 2.0}
    for name, expected in {"cosine": (0.4, 0.0), "linear": (0.4, 0.0), "halving": (0.4, 0.1)}.items():
        schedule = build.make_schedule(Optimizer(schedule=name, **options), epochs=6, steps_per_epoch=10)
        assert (float(schedule(0)), float(schedule(5))) == (0.0, pytest.approx(0.2))
        assert (float(schedule(10)), float(schedule(60))) == pytest.approx(expected)
    rates = [float(schedule(step)) for step in (19, 20, 39, 40, 59)]
    assert rates == pytest.approx([0.4, 0.2, 0.2, 0.1, 0.1])
    without = build.make_schedule(Optimizer(schedule="halving", warmup_epochs=0.0, halve_every=2.0), 6, 10)
    assert [float(without(step)) for step in (1, 19, 20, 40)] == pytest.approx([0.1, 0.1, 0.05, 0.025])


@pytest.mark.parametrize("nesterov", [True, False])
def test_plain_and_nesterov_momentum(nesterov):
    config = Optimizer(nesterov=nesterov, weight_decay=0.0, warmup_epochs=0.0, schedule="halving")
    tx, params = build.weight_optimizer(config, epochs=2, steps_per_epoch=5), {"w": jnp.ones(3)}
    expected = optax.sgd(0.1, momentum=0.9, nesterov=nesterov)
    state, theirs = tx.init(params), expected.init(params)
    for step in range(3):
        gradient = {"w": jnp.full(3, 1.0 + step)}
        (ours, state), (other, theirs) = tx.update(gradient, state, params), expected.update(gradient, theirs)
        np.testing.assert_allclose(ours["w"], other["w"], rtol=1e-6)
