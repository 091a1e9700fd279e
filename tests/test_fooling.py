"""`python -m experiments.fooling`: rates against the library's attacks, doubts about gradients, what is refused."""

import json
from dataclasses import replace
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reduced
import tiny

import fsg_jax as fsg
from experiments import fooling as command
from experiments import networks
from experiments.config import change, describe
from experiments.errors import NotFiniteError, UserError, run_main
from experiments.fooling import Args, Measured, Outcome, attack, doubts, fooling, make_program, rates, test_images
from experiments.fooling_report import compare
from experiments.networks import Network, cell, over_seeds, read_networks, wilson
from experiments.run_folder import check_record
from experiments.trained import Restored, Run, Saved
from fsg_jax.data import load_digits
from fsg_jax.explain.adversarial import fgsm, pgd

SMALL = {"images": 40, "batch_size": 16, "epsilons": (2.0, 16.0), "steps": 4, "step": 0.5}
test_images.__test__ = False


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two seeds of a gated arm and of the baseline, as in test_inspect.py."""
    folder = tmp_path_factory.mktemp("fooling") / "runs"
    tiny.ablation(tiny.digits(train={"epochs": 2, "test_on": "best"}), ("baseline", "fsg"), 2, folder)
    return folder


@pytest.fixture(scope="module")
def found(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("fooled")
    return fooling(Args((runs / "baseline", runs / "fsg" / "seed-0"), out, **SMALL)), out


@pytest.mark.slow
def test_what_is_written(found):
    record, out = found
    assert {path.name for path in out.iterdir()} == {"fooling.json", "fooling.md", "fooling.png"}
    assert check_record(json.loads((out / "fooling.json").read_text()), "fooling.json") == json.loads(
        json.dumps(record)
    )
    assert {"commit", "command", "versions"} <= record["facts"].keys()
    assert (out / "fooling.png").read_bytes().startswith(b"\x89PNG")
    page = (out / "fooling.md").read_text()
    assert "## PGD: fooling rate, %, by epsilon" in page
    assert "## PGD on the first run: accuracy" in page
    assert "Fooling rate less that of digits baseline" in page
    attacks = {name: {row["attack"] for row in record["rows"] if row["network"] == name} for name in names(record)}
    both = {"fgsm", "pgd"}
    assert attacks["digits baseline seed 0"] == both
    assert attacks["digits baseline seed 1"] == attacks["digits fsg seed 0"] == both | {f"transfer_{a}" for a in both}
    for row in record["rows"]:
        assert 0 <= row["fooled_low"] <= row["fooled"] <= row["fooled_high"] <= 1
        assert row["fooled"] >= abs(row["accuracy"] - clean(record, row["network"])["accuracy"]) - 1e-9
    weak, strong = (
        [row["fooled"] for row in record["rows"] if (row["attack"], row["epsilon"]) == ("pgd", epsilon)]
        for epsilon in SMALL["epsilons"]
    )
    assert np.mean(strong) > np.mean(weak)
    (row,) = [row for row in record["arms"] if (row["arm"], row["attack"], row["epsilon"]) == BASELINE_PGD]
    of_seeds = [r["fooled"] for r in record["rows"] if (r["arm"], r["attack"], r["epsilon"]) == BASELINE_PGD]
    assert (row["seeds"], row["fooled_mean"]) == (2, pytest.approx(np.mean(of_seeds)))
    assert row["fooled_std"] == pytest.approx(np.std(of_seeds, ddof=1))


BASELINE_PGD = ("digits baseline", "pgd", 16.0)


def names(record):
    return [one["network"] for one in record["networks"]]


def clean(record, name):
    return next(one for one in record["networks"] if one["network"] == name)


@pytest.mark.slow
def test_without_attack_it_is_the_recorded_accuracy(runs):
    """On all test images, those of the checkpoint that was tested."""
    found = read_networks([runs], None)
    rows, test = test_images(found, None)
    assert [one.name for one in found][2:] == ["digits fsg seed 0", "digits fsg seed 1"]
    np.testing.assert_array_equal(rows, np.arange(359))
    program = make_program(found[3])
    classes, *_ = program.classify(found[3].restored.variables, jnp.float32(test.images / 255), test.labels)
    record = json.loads((runs / "fsg" / "seed-1" / "result.json").read_text())
    assert float((np.asarray(classes) == test.labels).mean()) == pytest.approx(record["test"]["accuracy"])


def measured(clean, labels, gradients, **attacked):
    outcomes = {
        (name.rpartition("_")[0], float(name.rpartition("_")[2])): Outcome(np.array(c), np.ones(len(c), "f4"))
        for name, c in attacked.items()
    }
    network = SimpleNamespace(name="net", arm="arm", seed=0)
    return Measured(network, np.array(labels), Outcome(np.array(clean), np.zeros(len(clean))), gradients, outcomes)


def test_rates_by_hand():
    """Four images: right and kept, right and lost, wrong and kept, wrong and put right."""
    (row,) = rates(measured([0, 0, 1, 1], [0, 0, 0, 0], np.ones(4), fgsm_1=[0, 2, 1, 0]))
    assert (row["fooled"], row["accuracy"], row["fooled_of_right"]) == (0.5, 0.5, 0.5)
    assert (row["fooled_low"], row["fooled_high"]) == pytest.approx(wilson(2, 4))
    assert wilson(0, 10) == pytest.approx((0.0, 0.27753), abs=1e-4)
    (row,) = rates(measured([1, 1], [0, 0], np.ones(2), fgsm_1=[1, 1]))
    assert row["fooled_of_right"] is None


def test_doubts_about_gradients():
    zeros, ones = [0] * 40, [1] * 40
    fine = {"fgsm_1": zeros, "pgd_1": ones, "transfer_fgsm_1": zeros, "transfer_pgd_1": ones}
    assert doubts(measured(zeros, zeros, np.ones(40), **fine)) == []
    found = doubts(measured(zeros, zeros, np.r_[0, 1e-13, np.ones(38)], **fine))
    assert found == [
        "net: the gradient of 2 of 40 images is below 1e-12 (1 exactly 0): FGSM cannot move what has none, and its "
        "curve says nothing of robustness there."
    ]
    (found,) = doubts(measured(zeros, zeros, np.ones(40), fgsm_1=ones, pgd_1=zeros))
    assert "PGD fools 0.0% and FGSM, a weaker attack, 100.0%" in found
    (found,) = doubts(measured(zeros, zeros, np.ones(40), **fine | {"transfer_fgsm_1": ones}))
    assert "examples of another network fool 100.0% and its own by FGSM 0.0%" in found
    still = measured(zeros, zeros, np.ones(40), fgsm_1=zeros, pgd_1=zeros)
    still.attacked["pgd", 1.0].losses[:4] = 0
    assert doubts(still) == ["net: at epsilon 1 PGD does not raise the loss of 10.0% of the images."]
    assert [row["unmoved"] for row in rates(still)] == [0, 0.1]
    few = [1, *zeros[1:]]  # one image is no sign
    assert doubts(measured(zeros, zeros, np.ones(40), fgsm_1=few, pgd_1=zeros)) == []


class OneHot(nn.Module):
    """Classifies from the pixel at which a softmax of scores looks: the largest alone, for ``scale=None``."""

    num_classes: int = 10
    scale: float | None = 1.0

    @nn.compact
    def __call__(self, x, *, train: bool = False):
        scores = x.mean(-1) + self.param("u", nn.initializers.normal(1.0), (1, *x.shape[1:3]))
        largest = scores == scores.max((1, 2), keepdims=True)
        maps = largest.astype(float) if self.scale is None else jax.nn.softmax(self.scale * scores, axis=(1, 2))
        values = self.param("values", nn.initializers.normal(1.0), (*x.shape[1:3], self.num_classes))
        return 5 * jnp.einsum("bhw,hwk->bk", maps, values)


def network(model, name="toy", variables=None):
    shape = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
    variables = variables or model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    restored = Restored(tiny.digits(), model, variables, shape, (), Saved(variables, 1, {}))
    return Network(f"{name} seed 0", name, 0, tiny.digits(), restored)


@pytest.mark.slow
def test_the_rates_are_those_of_the_librarys_attacks():
    """Whatever the batches: the start of an image depends on its row alone."""
    toy, args = network(OneHot()), Args((), None, **SMALL)
    rows, test = test_images([toy], args.images)
    (one,), (other,) = (attack([toy], test, rows, replace(args, batch_size=size)) for size in (16, 40))
    images, labels, radius = jnp.float32(test.images / 255), jnp.asarray(test.labels), 16 / 255

    def logits(x):
        return toy.model.apply(toy.restored.variables, (x - 0.3053) / 0.3760)

    def losses(x):
        return fsg.losses.cross_entropy(logits(x), {"label": labels})

    keys = jax.vmap(lambda row: jax.random.fold_in(jax.random.key(0), row))(jnp.asarray(rows))
    wanted = {
        "fgsm": jax.jit(lambda x: fgsm(losses, x, radius))(images),
        "pgd": jax.jit(lambda x: pgd(losses, x, radius, step=radius / 2, steps=4, key=keys))(images),
    }
    before, by = logits(images).argmax(-1), {row["attack"]: row for row in rates(one) if row["epsilon"] == 16}
    for name, examples in wanted.items():
        for measured in (one, other):
            np.testing.assert_allclose(measured.attacked[name, 16.0].losses, losses(examples), rtol=1e-3, atol=1e-4)
        assert by[name]["fooled"] == pytest.approx(float((logits(examples).argmax(-1) != before).mean()), abs=1e-6)
        assert by[name]["accuracy"] == pytest.approx(float((logits(examples).argmax(-1) == labels).mean()), abs=1e-6)
    assert 0 < by["fgsm"]["fooled"] < 1
    assert by["pgd"]["loss"] >= by["fgsm"]["loss"] - 1e-3


def test_a_network_without_gradient_is_flagged():
    """Of a softmax that saturates the gradient is 0, or a rounding error that raises no loss."""
    toys = [network(OneHot(), "soft"), network(OneHot(scale=None), "one-hot"), network(OneHot(scale=1e6), "sharp")]
    rows, test = test_images(toys, 40)
    soft, hard, sharp = attack(toys, test, rows, Args((), None, **SMALL))
    assert (soft.gradients > 1e-6).all()
    assert doubts(soft) == []
    assert (hard.gradients == 0).all()
    assert doubts(hard)[0].startswith("one-hot seed 0: the gradient of 40 of 40 images is below 1e-12 (40 exactly 0)")
    assert command.about(hard)["zero_gradient"] == 1
    np.testing.assert_array_equal(hard.attacked["fgsm", 16.0].classes, hard.clean.classes)
    assert any("below 1e-12" in text or "does not raise the loss" in text for text in doubts(sharp))


def test_an_averaged_gradient_is_not_what_attacks_climb():
    """A network that was trained with gradients scaled on their way back is attacked by its true ones."""
    model, variables = reduced.reduced("vgg_att", branch_gradient="mean"), reduced.variables("vgg_att")
    attacked = network(model, variables=variables).model
    assert (model.branch_gradient, attacked.branch_gradient) == ("mean", "sum")


def test_outputs_that_are_not_finite_are_an_error():
    model = OneHot()
    variables = jax.tree.map(lambda x: x * jnp.nan, model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1))))
    with pytest.raises(NotFiniteError, match="toy seed 0: expected finite outputs"):
        attack(
            [network(model, variables=variables)],
            load_digits("test").take(np.arange(5)),
            np.arange(5),
            Args((), None, **SMALL),
        )


def test_statistics_over_seeds():
    rows = [{"arm": "a", "seed": s, "attack": "pgd", "epsilon": 1.0, "fooled": f} for s, f in ((0, 0.2), (1, 0.4))]
    rows += [row | {"arm": "b", "fooled": row["fooled"] + 0.1 + 0.1 * row["seed"]} for row in rows]
    rows = [row | {"accuracy": 0.5, "loss": 1.0, "fooled_low": 0.1, "fooled_high": 0.9} for row in rows]
    (first, _) = over_seeds(rows, ("arm",), ("fooled",))
    assert first == {"arm": "a", "seeds": 2, "fooled_mean": pytest.approx(0.3), "fooled_std": pytest.approx(0.02**0.5)}
    (difference,) = compare(rows, "a")["differences"]
    assert (difference["arm"], difference["pairs"], difference["mean"]) == ("b", 2, pytest.approx(0.15))
    assert cell(rows[:2], "fooled") == "30.00 ± 14.14"
    assert cell(rows[:1], "fooled") == "20.00 [10.00, 90.00]"


@pytest.mark.slow
def test_networks_that_cannot_be_compared(runs, tmp_path):
    with pytest.raises(UserError, match="expected a run, a checkpoint of a run, or a folder of runs, found none"):
        read_networks([tmp_path], None)
    with pytest.raises(ValueError, match="every network once, found digits fsg seed 0 twice"):
        read_networks([runs / "fsg", runs / "fsg" / "seed-0"], None)
    first, second = read_networks([runs / "fsg"], None)
    larger = second._replace(experiment=change(second.experiment, {"data.image_size": 16}))
    with pytest.raises(
        UserError, match="digits fsg seed 1: expected the test images of digits fsg seed 0, at the same"
    ):
        test_images([first, larger], None)
    with pytest.raises(ValueError, match="--images: expected an integer from 1 to 359, found 360"):
        test_images([first, second], 360)


def test_seeds_of_one_arm_have_one_configuration(tmp_path, monkeypatch):
    def read(other):
        runs = [Run(tmp_path, describe(tiny.digits(), "fsg", 0), None), Run(tmp_path, describe(other, "fsg", 1), None)]
        monkeypatch.setattr(networks, "find_runs", lambda path: runs)
        monkeypatch.setattr(networks, "_network", lambda run, *_: Network(run.name, run.group, 0, None, None))
        return read_networks([tmp_path], None)

    assert len(read(tiny.digits(train={"log_every": 3}))) == 2
    message = r"digits fsg seed 1: .* of digits fsg seed 0, save the seed, found other \['optimizer.momentum'\]"
    with pytest.raises(ValueError, match=message):
        read(tiny.digits(optimizer={"momentum": 0.5}))


@pytest.mark.slow
def test_options_out_of_range_are_error_lines(runs, tmp_path, capsys):
    run = str(runs / "fsg" / "seed-0")
    for words, message in (
        (("--epsilons", "0", "1"), "--epsilons: expected numbers above 0, up to 255"),
        (("--epsilons", "2", "1"), "--epsilons: expected ascending numbers"),
        (("--steps", "0"), "--steps: expected an integer >= 1"),
        (("--steps", "3"), "--step: expected steps that reach epsilon, found 3 of 0.25 epsilon"),
        (("--images", "0"), "--images: expected an integer from 1 to 359"),
        (("--batch-size", "0"), "--batch-size: expected an integer >= 1"),
    ):
        with pytest.raises(SystemExit) as exit_:
            run_main(lambda words=words: command.main([run, "--out", str(tmp_path / "out"), *words]))
        assert exit_.value.code == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_command(runs, tmp_path, capsys):
    words = ["--images", "20", "--epsilons", "8", "--steps", "2", "--step", "0.5", "--batch-size", "16"]
    command.main([str(runs / "fsg" / "seed-0"), "--out", str(tmp_path / "out"), *words])
    text = capsys.readouterr().out
    assert "| digits fsg | 1 |" in text
    assert f"in {tmp_path / 'out'}" in text
