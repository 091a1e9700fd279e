"""`python -m experiments.inspect` on runs, checkpoints and damaged folders; the weights that a run left."""

import csv
import json
import shutil
from dataclasses import replace

import jax
import numpy as np
import optax
import pytest
import reduced
import tiny
from PIL import Image

import fsg_jax as fsg
from experiments import export, predict, sources
from experiments import inspect as command
from experiments.config import describe, in_arm
from experiments.configs import CONFIGS
from experiments.errors import run_main
from experiments.gate_values import Gates
from experiments.inspect import Args, inspect, note
from experiments.run_folder import LATER, seal
from experiments.task import make_task
from experiments.trained import checkpoint_of, find_runs, read_experiment, restore
from fsg_jax import data as fsg_data

SGD = optax.sgd(0.1)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two seeds of a gated arm and of the baseline."""
    folder = tmp_path_factory.mktemp("ablation")
    experiment = tiny.digits(train={"epochs": 2, "test_on": "best"})
    tiny.ablation(experiment, ("baseline", "fsg"), 2, folder / "runs")
    return folder / "runs"


@pytest.fixture
def one(runs, tmp_path):
    """A run of its own, to be damaged."""
    return shutil.copytree(runs / "fsg" / "seed-0", tmp_path / "run")


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("arm", ["baseline", "fsg_gr", "l0"])
def test_a_configuration_is_read_back(name, arm):
    experiment = CONFIGS[name][0]
    found = read_experiment(describe(experiment, arm, 3))
    assert found == replace(in_arm(experiment, arm), added_arms=())


@pytest.mark.parametrize("name", ["digits", "cifar100_vit_tiny", "cifar100_finetune", "polyp_phantom"])
def test_settings_that_an_older_run_lacks_are_what_it_did(name):
    config = describe(CONFIGS[name][0], "fsg_gr", 0)
    whole = read_experiment(config)
    parts = {key: dict(value) if isinstance(value, dict) else value for key, value in config.items()}
    named = ("model.dim", "model.output_gate", "train.validate_every")
    later = [name for name in LATER if name.startswith("optimizer.") or name in named]
    gone = [parts[part].pop(key) for part, key in (name.split(".") for name in later) if key in parts[part]]
    assert len(gone) >= 2
    assert read_experiment(parts) == whole


def test_a_configuration_of_another_version_is_refused():
    config = describe(CONFIGS["digits"][0], "fsg", 0)
    with pytest.raises(ValueError, match=r"expected keys of .*, found \['more'\]"):
        read_experiment({**config, "more": 1})
    with pytest.raises(ValueError, match=r"configuration \.model: expected the keys of this version"):
        read_experiment({**config, "model": {"name": "vit_tiny"}})
    with pytest.raises(ValueError, match="unknown configuration"):
        read_experiment({**config, "name": "other"})
    with pytest.raises(ValueError, match=r"train\.epochs"):
        read_experiment(tiny_change(config, "train", epochs=0))


def tiny_change(config, part, **values):
    return {**config, part: {**config[part], **values}}


def test_the_weights_of_a_run_are_those_that_were_tested(runs):
    (run,) = find_runs(runs / "fsg" / "seed-1")
    checkpoint, found = checkpoint_of(run), restore(run)
    best = max(run.record["history"], key=lambda row: (row["val_accuracy"], row["step"]))
    assert checkpoint.name == str(best["step"])
    values = fsg.gate_values(found.variables, found.kinds)
    assert list(values) == list(run.record["gates"])
    for name, value in values.items():
        np.testing.assert_allclose(value, run.record["gates"][name], atol=1e-6)
    task = make_task(tiny.digits(train={"epochs": 2, "test_on": "best"}), "fsg")
    state = replace(task.init(jax.random.key(0)), variables=jax.tree.map(jax.numpy.asarray, found.variables))
    assert task.test(state, run.path)["test"]["accuracy"] == pytest.approx(run.record["test"]["accuracy"])


def test_the_table_of_an_ablation(runs, tmp_path):
    found = inspect(Args((runs,), out=tmp_path / "out", top=0.25))
    records = [json.loads(line) for line in (runs / "results.jsonl").read_text().splitlines()]
    gated = [record for record in records if record["gates"]]
    assert len(found["gates"]) == sum(len(record["gates"]) for record in gated) == 4
    row, values = found["gates"][0], np.array(next(iter(gated[0]["gates"].values())))
    assert row["mean"] == pytest.approx(values.mean())
    assert row["p50"] == pytest.approx(np.median(values))
    assert sorted(row["which"]) == sorted(np.argsort(values)[-row["selected"] :].tolist())
    assert [row["gate"] for row in found["agreement"]] == ["blocks_0/gate1", "blocks_0/gate2", "all gates"]
    assert found["agreement"][0]["networks"] == 2
    assert "0 of 6 initial kernels are shared" in found["notes"]["digits fsg"]
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"gates.csv", "channels.csv", "agreement.csv", "inspect.json", "gates-0.png"}
    assert (tmp_path / "out" / "gates-0.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "out" / "channels.csv").open() as file:
        channels = list(csv.DictReader(file))
    assert len(channels) == sum(row["channels"] for row in found["gates"])
    assert sum(int(row["selected"]) for row in channels) == sum(row["selected"] for row in found["gates"])
    assert json.loads((tmp_path / "out" / "inspect.json").read_text()) == found


def test_a_checkpoint_says_what_the_record_says(runs, capsys):
    run = runs / "fsg" / "seed-0"
    record = json.loads((run / "result.json").read_text())
    before = sorted(path.name for path in run.rglob("*"))
    for step in sorted((run / "checkpoints").iterdir()):
        command.main([str(step), "--format", "json"])
        rows = json.loads(capsys.readouterr().out)["gates"]
        means = {row["gate"]: row["mean"] for row in rows}
        (logged,) = [row for row in record["history"] if row["step"] == int(step.name)]
        assert means == pytest.approx({name: gate["mean"] for name, gate in logged["gates"].items()}, abs=1e-6)
    assert sorted(path.name for path in run.rglob("*")) == before


def test_what_is_printed(runs, capsys):
    command.main([str(runs / "fsg")])
    text = capsys.readouterr().out
    assert "| blocks_0/gate1 |" in text
    assert "Agreement of 2 networks, digits fsg" in text
    assert "exchangeable channels" in text
    command.main([str(runs / "fsg"), "--format", "csv"])
    assert len(list(csv.DictReader(capsys.readouterr().out.splitlines()))) == 4


def test_a_checkpoint_of_ones_own_needs_the_kind(tmp_path):
    model = fsg.create_model("vit_tiny", num_classes=3, gate=fsg.Gate, patch_size=4, dim=24, depth=1)
    state = fsg.init_state(model, fsg.routed(params=SGD, gates=SGD), jax.random.key(0), np.zeros((1, 8, 8, 3), "f4"))
    with fsg.Checkpointer(tmp_path / "mine") as checkpointer:
        checkpointer.save(state)
    with pytest.raises(ValueError, match="--kind: expected the kind of the gates"):
        inspect(Args((tmp_path / "mine" / "0",)))
    (first, _) = inspect(Args((tmp_path / "mine" / "0",), kind="sigmoid"))["gates"]
    assert first["mean"] == pytest.approx(float(fsg.gate_summary(state)["blocks_0/gate1"]["mean"]))


def test_the_note_tells_shared_weights():
    def networks(*sums):
        weights = [{"a/kernel": f"float32[2, 2]:{s}", "a/bias": "float32[2]:0"} for s in sums]
        return [Gates("n", "g", {}, "", found) for found in weights]

    assert note(networks("0a", "0a")).startswith("All 1 initial kernels are shared")
    assert note(networks("0a", "0b")).startswith("0 of 1 initial kernels are shared")
    assert note([Gates("n", "g", {}, "")] * 2).startswith("Initial weights are not recorded")


def truncate(run):
    for path in (run / "checkpoints").rglob("*"):
        if path.is_file() and path.stat().st_size > 1000:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (run / "result.json").unlink()


def edit_record(run):
    record = json.loads((run / "result.json").read_text())
    record["gates"]["blocks_0/gate1"][0] = 0.9
    (run / "result.json").write_text(json.dumps(record))


def foreign_record(run):
    record = json.loads((run / "result.json").read_text())
    record["config"]["optimizer"]["learning_rate"] = 0.5
    (run / "result.json").write_text(json.dumps(seal(record)))


def other_config(run):
    (run / "result.json").unlink()
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(tiny_change(config, "model", depth=2)))


def not_finite(run):
    record = json.loads((run / "result.json").read_text())
    record["gates"]["blocks_0/gate1"][0] = float("nan")
    (run / "result.json").write_text(json.dumps(seal(record)))


DAMAGES = {
    truncate: "expected a sound one",
    edit_record: "result.json is damaged",
    foreign_record: "expected the record of the run in config.json, found that of another",
    other_config: "expected a sound one, found ValueError: run: expected",
    not_finite: "expected finite values",
    lambda run: (run / "config.json").write_text("{"): "config.json is damaged",
    lambda run: (run / "config.json").write_text("{}"): "expected the configuration of a run",
    lambda run: shutil.rmtree(run / "checkpoints"): "expected a run, runs, a checkpoint",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_run_is_an_error_line(one, damage, capsys):
    damage(one)
    before = sorted(path.name for path in one.rglob("*"))
    with pytest.raises(SystemExit) as exit_:
        run_main(lambda: command.main([str(one)]))
    error = capsys.readouterr().err
    assert exit_.value.code == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert DAMAGES[damage] in error
    assert sorted(path.name for path in one.rglob("*")) == before


def test_other_folders_are_error_lines(runs, tmp_path):
    for paths, message in (
        ((tmp_path / "none",), "expected the folder of a run"),
        ((tmp_path,), "found none of these"),
        ((runs / "baseline",), "2 runs without"),
        ((runs / "baseline" / "seed-0",), "expected static gates"),
        ((runs, runs), "every network once"),
    ):
        with pytest.raises(Exception, match=message):
            inspect(Args(paths))
    with pytest.raises(Exception, match=r"expected a run, a checkpoint of a run, or .* found .*seed-0"):
        sources.load(str(runs))


def test_a_run_as_a_source(runs):
    found = sources.load(str(runs / "baseline" / "seed-0"))
    assert found.inputs.shape == (1, 8, 8, 1)
    assert (found.preprocessing.size, len(found.preprocessing.mean)) == ((8, 8), 1)
    assert found.origin.startswith("digits baseline seed 0, step ")


@pytest.mark.slow
def test_a_run_is_exported_and_predicts(runs, tmp_path, capsys):
    """The command on the run and on what is exported of it: the predictions of the model on the images themselves."""
    run = runs / "fsg" / "seed-0"
    images = fsg_data.load_digits("test").images[:6]
    for i, image in enumerate(images):
        Image.fromarray(image[..., 0]).save(tmp_path / f"{i}.png")
    export.main([str(run), "--out", str(tmp_path / "exported")])
    facts = json.loads((tmp_path / "exported" / "model.stablehlo.json").read_text())
    assert facts["weights"].startswith("digits fsg seed 0, step ")
    assert facts["preprocessing"]["size"] == [8, 8]
    assert "model.stablehlo: for cpu, cuda; largest difference" in capsys.readouterr().out
    export.main([str(run), "--out", str(tmp_path / "folded"), "--fold", "--platforms", "cpu"])
    facts = json.loads((tmp_path / "folded" / "model.stablehlo.json").read_text())
    assert (facts["folded"], facts["platforms"]) == (True, ["cpu"])
    tables = []
    for name in (run, tmp_path / "exported", tmp_path / "folded"):
        predict.main([str(name), str(tmp_path / "*.png"), "--out", str(tmp_path / "p.csv"), "--batch-size", "4"])
        with (tmp_path / "p.csv").open() as file:
            tables.append([float(row["probability_1"]) for row in csv.DictReader(file)])
    source = sources.load(str(run))
    (mean,), (std,) = source.preprocessing.mean, source.preprocessing.std
    logits = source.model.apply(source.variables, jax.numpy.float32((images / 255 - mean) / std))
    wanted = np.asarray(jax.nn.softmax(logits)).max(-1)
    np.testing.assert_allclose(tables, [wanted] * 3, rtol=1e-4)


def test_export_refuses(runs, tmp_path, capsys):
    run = str(runs / "fsg" / "seed-0")
    for words, message in (
        ((run, "--formats", "onnx", "onnx"), "--formats: expected stablehlo, onnx or both, found onnx onnx"),
        ((str(runs),), "expected a run, a checkpoint of a run"),
    ):
        with pytest.raises(SystemExit) as exit_:
            run_main(lambda words=words: export.main([*words, "--out", str(tmp_path / "out")]))
        assert exit_.value.code == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def saved(folder, **options):
    pytest.importorskip("safetensors")
    model, variables = reduced.reduced("resnet18"), reduced.variables("resnet18")
    fsg.save_pretrained(folder, model, variables, **options)
    return model, variables


def test_a_saved_model_is_a_source(tmp_path):
    size = fsg.Preprocessing((0.5,) * 3, (0.5,) * 3, (10, 12), 1.0, "bilinear")
    _, variables = saved(tmp_path / "model", preprocessing=size)
    other = tmp_path / "other"
    shutil.copytree(tmp_path / "model", other)
    found = inspect(Args((tmp_path / "model", other)))
    values = fsg.gate_values(variables)
    assert {row["gate"]: row["mean"] for row in found["gates"]} == pytest.approx(
        {name: float(value.mean()) for name, value in values.items()}
    )
    assert found["agreement"][-1]["jaccard"] == 1
    assert found["notes"]["models"].startswith("Initial weights are not recorded")
    source = sources.load(str(tmp_path / "model"))
    assert (source.inputs.shape, source.sized) == ((1, 10, 12, 3), True)
    export.main([str(tmp_path / "model"), "--out", str(tmp_path / "out"), "--platforms", "cpu"])
    facts = json.loads((tmp_path / "out" / "model.stablehlo.json").read_text())
    assert facts["inputs"][0]["shape"] == ["batch", 10, 12, 3]


def test_a_saved_model_of_no_size_needs_one_to_be_exported(tmp_path):
    saved(tmp_path / "model")
    with pytest.raises(ValueError, match="--image-size: expected the side of the images"):
        export.export(export.Args(str(tmp_path / "model"), tmp_path / "out"))
    (facts,) = export.export(export.Args(str(tmp_path / "model"), tmp_path / "out", image_size=9, platforms=("cpu",)))
    assert facts["inputs"][0]["shape"] == ["batch", 9, 9, 3]
    with pytest.raises(Exception, match="expected a model of one image with its preprocessing"):
        predict.load_network(str(tmp_path / "model"))


def test_a_run_has_its_own_image_size(runs, tmp_path):
    with pytest.raises(ValueError, match="--image-size: expected none for a run"):
        export.export(export.Args(str(runs / "fsg" / "seed-0"), tmp_path / "out", image_size=16))


def test_a_configuration_of_before_pretrained_weights_is_read():
    config = describe(CONFIGS["cifar100_resnet18"][0], "fsg", 0)
    for part, key in (("data", "image_size"), ("model", "pretrained"), ("model", "pretrained_digest")):
        del config[part][key]
    assert read_experiment(config) == in_arm(CONFIGS["cifar100_resnet18"][0], "fsg")
