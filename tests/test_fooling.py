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
from experiments.config import change
from experiments.errors import NotFiniteError, UserError, run_main
from experiments.fooling import Args, Measured, Outcome, attack, doubts, fooling, make_program, rates, test_images
from experiments.fooling_report import compare
from experiments.networks import Network, cell, over_seeds, read_networks, wilson
from experiments.run_folder import check_record
from experiments.trained import Restored, Saved
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


def test_without_attack_it_is_the_recorded_accuracy(runs):
    """On all test images, those of the checkpoint that was tested."""
    networks = read_networks([runs], None)
    rows, test = test_images(networks, None)
    assert [network.name for network in networks][2:] == ["digits fsg seed 0", "digits fsg seed 1"]
    np.testing.assert_array_equal(rows, np.arange(359))
    for network in networks[::2]:
        program = make_program(network)
        classes, *_ = program.classify(network.restored.variables, jnp.float32(test.images / 255), test.labels)
        record = json.loads((runs / network.arm.split()[1] / "seed-0" / "result.json").read_text())
        assert float((np.asarray(classes) == test.labels).mean()) == pytest.approx(record["test"]["accuracy"])


def test_the_rates_are_those_of_the_librarys_attacks(runs):
    """Whatever the batches; and the start of an image depends on its row alone."""
    (network,) = read_networks([runs / "fsg" / "seed-1"], None)
    args = Args((), runs, **SMALL)
    rows, test = test_images([network], args.images)
    (one,), (other,) = (attack([network], test, rows, replace(args, batch_size=size)) for size in (16, 40))
    mean, std = 0.3053, 0.3760
    model, variables = network.restored.model, network.restored.variables
    images, labels = jnp.float32(test.images / 255), jnp.asarray(test.labels)

    def logits(x):
        return model.apply(variables, (x - mean) / std)

    def losses(x):
        return fsg.losses.cross_entropy(logits(x), {"label": labels})

    keys = jax.vmap(lambda row: jax.random.fold_in(jax.random.key(0), row))(jnp.asarray(rows))
    radius = 16 / 255
    wanted = {
        "fgsm": jax.jit(lambda x: fgsm(losses, x, radius))(images),
        "pgd": jax.jit(lambda x: pgd(losses, x, radius, step=radius / 2, steps=4, key=keys))(images),
    }
    for name, examples in wanted.items():
        for measured in (one, other):
            outcome = measured.attacked[name, 16.0]
            np.testing.assert_allclose(outcome.losses, losses(examples), rtol=1e-2, atol=1e-3)
            assert (outcome.classes == logits(examples).argmax(-1)).mean() >= 39 / 40
    by = {row["attack"]: row for row in rates(one) if row["epsilon"] == 16}
    changed = (np.asarray(logits(wanted["fgsm"]).argmax(-1)) != np.asarray(logits(images).argmax(-1))).mean()
    assert by["fgsm"]["fooled"] == pytest.approx(changed, abs=1.5 / 40)
    assert by["pgd"]["loss"] >= by["fgsm"]["loss"] - 1e-3


def measured(clean, labels, gradients, **attacked):
    outcomes = {
        (name.rpartition("_")[0], float(name.rpartition("_")[2])): Outcome(np.array(c), np.zeros(len(c), "f4"))
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
    few = [1, *zeros[1:]]  # one image is no sign
    assert doubts(measured(zeros, zeros, np.ones(40), fgsm_1=few, pgd_1=zeros)) == []


class OneHot(nn.Module):
    """Classifies from the pixel at which a softmax of enormous scores looks; ``scale`` makes it soft."""

    num_classes: int = 10
    scale: float = 1e6

    @nn.compact
    def __call__(self, x, *, train: bool = False):
        scores = self.param("u", nn.initializers.normal(1.0), x.shape[1:3]) + x.mean(-1)
        maps = jax.nn.softmax(self.scale * scores, axis=(1, 2))
        values = self.param("values", nn.initializers.normal(1.0), (*x.shape[1:3], self.num_classes))
        return 5 * jnp.einsum("bhw,hwk->bk", maps, values)


def network(model, name="toy", variables=None):
    shape = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
    variables = variables or model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    restored = Restored(tiny.digits(), model, variables, shape, (), Saved(variables, 1, {}))
    return Network(f"{name} seed 0", name, 0, tiny.digits(), restored)


def test_a_network_without_gradient_is_flagged():
    networks = [network(OneHot(scale=1.0), "soft"), network(OneHot(), "one-hot")]
    rows, test = test_images(networks, 40)
    soft, hard = attack(networks, test, rows, Args((), None, **SMALL))
    assert (soft.gradients > 1e-6).all()
    assert not any("below 1e-12" in text for text in doubts(soft))
    assert (hard.gradients == 0).mean() > 0.9
    assert "below 1e-12" in doubts(hard)[0]
    assert command.about(hard)["zero_gradient"] == (hard.gradients == 0).mean()
    still = hard.gradients == 0
    np.testing.assert_array_equal(hard.attacked["fgsm", 16.0].classes[still], hard.clean.classes[still])


def test_an_averaged_gradient_is_not_what_attacks_climb():
    """A network that was trained with gradients scaled on their way back is attacked by its true ones."""
    model, variables = reduced.reduced("vgg_att", branch_gradient="mean"), reduced.variables("vgg_att")
    attacked = network(model, variables=variables).model
    assert (model.branch_gradient, attacked.branch_gradient) == ("mean", "sum")
    x = reduced.inputs("vgg_att")[:1]
    np.testing.assert_array_equal(model.apply(variables, x), attacked.apply(variables, x))


def test_outputs_that_are_not_finite_are_an_error():
    model = OneHot()
    variables = jax.tree.map(lambda x: x * jnp.nan, model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1))))
    networks = [network(model, variables=variables)]
    with pytest.raises(NotFiniteError, match="toy seed 0: expected finite outputs"):
        attack(networks, load_digits("test").take(np.arange(5)), np.arange(5), Args((), None, **SMALL))


def test_statistics_over_seeds():
    rows = [{"arm": "a", "seed": s, "attack": "pgd", "epsilon": 1.0, "fooled": f} for s, f in ((0, 0.2), (1, 0.4))]
    rows += [row | {"arm": "b", "fooled": row["fooled"] + 0.1 + 0.1 * row["seed"]} for row in rows]
    rows = [row | {"accuracy": 0.5, "loss": 1.0, "fooled_low": 0.1, "fooled_high": 0.9} for row in rows]
    (first, _) = over_seeds(rows, ("arm",), ("fooled",))
    assert first == {"arm": "a", "seeds": 2, "fooled_mean": pytest.approx(0.3), "fooled_std": pytest.approx(0.141421)}
    (difference,) = compare(rows, "a")["differences"]
    assert (difference["arm"], difference["pairs"], difference["mean"]) == ("b", 2, pytest.approx(0.15))
    assert cell(rows[:2], "fooled") == "30.00 ± 14.14"
    assert cell(rows[:1], "fooled") == "20.00 [10.00, 90.00]"


def test_networks_that_cannot_be_compared(runs, monkeypatch, tmp_path):
    with pytest.raises(UserError, match="expected a run, a checkpoint of a run, or a folder of runs, found none"):
        read_networks([tmp_path], None)
    with pytest.raises(ValueError, match="every network once, found digits fsg seed 0 twice"):
        read_networks([runs / "fsg", runs / "fsg" / "seed-0"], None)
    networks = read_networks([runs / "fsg"], None)
    larger = networks[1]._replace(experiment=change(networks[1].experiment, {"data.image_size": 16}))
    with pytest.raises(
        UserError, match="digits fsg seed 1: expected the test images of digits fsg seed 0, at the same"
    ):
        test_images([networks[0], larger], None)
    with pytest.raises(ValueError, match="--images: expected an integer from 1 to 359, found 360"):
        test_images(networks, 360)


def test_seeds_of_one_arm_have_one_configuration(runs, tmp_path):
    other = tiny.digits(train={"epochs": 2, "test_on": "best"}, optimizer={"learning_rate": 0.01})
    tiny.ablation(other, ("fsg",), 1, tmp_path / "other")
    (tmp_path / "other" / "fsg" / "seed-0").rename(tmp_path / "other" / "fsg" / "seed-7")
    config = tmp_path / "other" / "fsg" / "seed-7" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"seed": 7}))
    with pytest.raises(ValueError, match=r"expected the record of the run in config\.json"):
        read_networks([runs / "fsg" / "seed-0", tmp_path / "other"], None)
    (config.parent / "result.json").unlink()
    with pytest.raises(ValueError, match="expected a sound one"):
        read_networks([runs / "fsg" / "seed-0", tmp_path / "other"], None)


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


def test_the_command(runs, tmp_path, capsys):
    words = ["--images", "20", "--epsilons", "8", "--steps", "2", "--step", "0.5", "--batch-size", "16"]
    command.main([str(runs / "fsg" / "seed-0"), "--out", str(tmp_path / "out"), *words])
    text = capsys.readouterr().out
    assert "| digits fsg | 1 |" in text
    assert f"in {tmp_path / 'out'}" in text
