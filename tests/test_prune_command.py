"""`python -m experiments.prune`: from a run to a smaller network, which trains on by the ordinary command."""

import json
import shutil

import jax
import numpy as np
import pytest

import fsg_jax as fsg
from experiments import inspect, prune, train
from experiments.prune import Args, training_images

OPTIONS = ["--arm", "fsg_gr", "--model.gate-placement", "hidden", "--model.width", "8", "--data.num-train", "200"]
OPTIONS += ["--train.epochs", "2", "--optimizer.warmup-epochs", "0.1"]


def run_train(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["experiments.train", "digits", *OPTIONS, *map(str, arguments)])
    train.main()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        out = tmp_path_factory.mktemp("prune") / "run"
        run_train(patch, "--out", out)
    return out


@pytest.mark.slow
def test_a_pruned_run_trains_on(run, tmp_path, monkeypatch, capsys):
    small, tuned = tmp_path / "small", tmp_path / "tuned"
    prune.main(
        [str(run), "--out", str(small), "--flops", "60%", "--divisor", "2", "--min-keep", "2", "--calibrate", "1"]
    )
    assert "total" in capsys.readouterr().out
    saved = fsg.load_pretrained(small)
    assert saved.model.widths
    again = ["--model.pretrained", small, "--model.pretrained-part", "all", "--out", tuned]
    run_train(monkeypatch, *again)
    config = json.loads((tuned / "config.json").read_text())
    assert {name: width for name, width in config["model"]["widths"]} == dict(saved.model.widths)
    shutil.move(small, tmp_path / "elsewhere")  # a run knows its widths itself
    assert prune.sources.load(str(tuned)).model.widths == saved.model.widths
    shutil.move(tmp_path / "elsewhere", small)
    values = {name: len(v) for name, v in fsg.gate_values(saved.variables).items()}
    gates = inspect.inspect(inspect.Args((tuned,)))["gates"]
    assert {row["gate"]: row["channels"] for row in gates} == values
    run_train(monkeypatch, *again, "--resume")
    with pytest.raises(Exception, match="gates/layer1_0/gate1/logits"):  # no place for the gates
        run_train(monkeypatch, *again[:-1], tmp_path / "other", "--arm", "baseline")
    prune.main(
        [
            str(tuned),
            "--out",
            str(tmp_path / "smaller"),
            "--params",
            "90%",
            "--divisor",
            "1",
            "--min-keep",
            "1",
            "--fold",
        ]
    )
    folded = fsg.load_pretrained(tmp_path / "smaller")
    assert folded.model.gate is None


@pytest.mark.slow
def test_what_the_command_refuses(run, tmp_path):
    for options, message in (
        ({"flops": "1%"}, "budget: expected at least"),
        ({}, "budget: expected one or more"),
        ({"flops": "80%", "score": "gates"}, "score"),
    ):
        with pytest.raises(ValueError, match=message):
            prune.prune(Args(str(run), tmp_path / "out", **options))
    assert not (tmp_path / "out").exists()
    images = list(training_images(str(run)))
    assert [batch.shape for batch in images] == [(128, 8, 8, 1)]
    assert abs(float(np.mean(jax.device_get(images[0])))) < 0.2
