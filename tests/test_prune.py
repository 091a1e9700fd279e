"""Pruned models compute what masked ones compute, and cost what the budget allows."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import fast
from flax.traverse_util import flatten_dict
from reduced import REDUCED, inputs, reduced, variables
from test_fold import Tabular, difference, random_gates, table

import fsg_jax as fsg
from fsg_jax.linen.batch_stats import recalibrate
from fsg_jax.linen.costs import Cost, layer_costs, total
from fsg_jax.models import list_models

SMALL = {"divisor": 2, "min_keep": 2}


def hidden(name, gate=fsg.Gate, **options):
    """A reduced model with gates in its blocks, and its weights with random gates."""
    placement = REDUCED[name].placements[-1]
    assert "hidden" in str(placement)
    model, weights = reduced(name, gate, **placement, **options), variables(name, gate, **placement, **options)
    return model, weights if gate is None else random_gates(weights, 5)


def compiled_flops(model, weights, x):
    return jax.jit(model.apply).lower(weights, x).compile().cost_analysis()["flops"]


SOME = ("resnet18", "vit_tiny")


@pytest.mark.parametrize("name", fast(list_models(), lambda name: name in SOME))
def test_pruned_is_masked(name):
    model, weights = hidden(name)
    x, share = inputs(name), 0.9 if name == "multistream" else 0.7
    pruned = fsg.prune(model, weights, x, budget={"flops": share}, **SMALL)
    masked = fsg.mask_gates(model, weights, pruned.kept)
    assert masked[0] is model
    assert difference(masked, (pruned.model, pruned.variables), x) < 1e-5
    assert difference((model, weights), (pruned.model, pruned.variables), x) > 1e-4
    before, after = pruned.table.flops
    assert 0.75 * share * before < after <= share * before
    assert after == total(layer_costs(pruned.model, pruned.variables, x)).flops
    assert {k: int(keep.sum()) for k, keep in pruned.kept.items() if not keep.all()} == dict(pruned.model.widths)
    values = {site: np.asarray(v) for site, v in fsg.gate_values(weights).items() if site in pruned.kept}
    dropped = np.concatenate([values[site][~keep] for site, keep in pruned.kept.items()])
    kept = np.concatenate([values[site][keep] for site, keep in pruned.kept.items()])
    assert dropped.mean() < kept.mean()
    shapes = jax.eval_shape(pruned.model.init, jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, dict(shapes)) == jax.tree.map(jnp.shape, pruned.variables)


@pytest.mark.parametrize(
    ("name", "score"),
    fast((name, score) for name in ("resnet50", "efficientnet_b0", "vit_tiny") for score in ("random", "magnitude")),
)
def test_models_without_gates(name, score):
    model, weights = hidden(name, None)
    budget = {"flops": "80%", "params": "75%"}
    pruned = fsg.prune(model, weights, inputs(name), budget=budget, score=score, **SMALL)
    masked = fsg.mask_gates(model, weights, pruned.kept)
    assert difference(masked, (pruned.model, pruned.variables), inputs(name)) < 1e-5
    for found, share in ((pruned.table.flops, 0.8), (pruned.table.parameters, 0.75)):
        assert found[1] <= share * found[0]
    assert pruned.table.parameters[1] == sum(leaf.size for leaf in jax.tree.leaves(pruned.variables["params"]))


@pytest.mark.slow
def test_pruned_again():
    model, weights = hidden("vit_small")
    x = inputs("vit_small")
    once = fsg.prune(model, weights, x, budget={"flops": 0.8}, **SMALL)
    twice = fsg.prune(once.model, once.variables, x, budget={"flops": 0.8}, **SMALL)
    masked = fsg.mask_gates(once.model, once.variables, twice.kept)
    assert difference(masked, (twice.model, twice.variables), x) < 1e-5
    assert twice.table.flops[1] <= 0.8 * once.table.flops[1]


def test_a_pruned_model_is_folded():
    model, weights = hidden("resnet18")
    pruned = fsg.prune(model, weights, inputs("resnet18"), budget={"params": 0.8}, **SMALL)
    folded = fsg.fold_gates(pruned.model, pruned.variables)
    assert folded[0] == pruned.model.clone(gate=None)
    assert difference((pruned.model, pruned.variables), folded, inputs("resnet18")) < 1e-5


def tabular(logits):
    """A model of one's own, whose 12 units have gates with these logits."""
    weights = Tabular(7).init(jax.random.key(0), table())
    gates = {**weights["gates"], "units": {"logits": jnp.asarray(logits, jnp.float32)}}
    return Tabular(7), {**weights, "gates": gates}


def test_which_channels_go():
    """By hand: the budget leaves 9 of 12 units, and the divisor 8."""
    model, weights = tabular([3, -1, 2, 5, -4, 0, 1, 4, -2, 6, 7, -3])
    pruned = fsg.prune(model, weights, table(), budget={"params": "80%"}, divisor=4, min_keep=1)
    keep = pruned.kept["units"]
    assert np.flatnonzero(~keep).tolist() == [1, 4, 8, 11]
    assert pruned.model.widths == {"units": 8}
    assert pruned.kept.keys() == {"units"}  # inputs are no channels that something makes
    np.testing.assert_array_equal(
        pruned.variables["gates"]["units"]["logits"], weights["gates"]["units"]["logits"][keep]
    )
    for part in ("kernel", "bias"):
        old, new = weights["params"]["fc1"][part], pruned.variables["params"]["fc1"][part]
        np.testing.assert_array_equal(new, old[..., keep])
    np.testing.assert_array_equal(pruned.variables["params"]["fc2"]["kernel"], weights["params"]["fc2"]["kernel"][keep])


def test_a_budget_that_is_met_removes_nothing():
    model, weights = tabular(range(12))
    pruned = fsg.prune(model, weights, table(), budget={"params": 1.0, "flops": 1e9})
    assert pruned.model == model
    assert pruned.table.parameters[0] == pruned.table.parameters[1]


def test_equal_scores_take_turns_between_the_sites():
    model, weights = hidden("resnet18")  # two sites, of 8 and 16 channels
    weights = {**weights, "gates": jax.tree.map(jnp.zeros_like, weights["gates"])}
    pruned = fsg.prune(model, weights, inputs("resnet18"), budget={"flops": 0.7}, divisor=1, min_keep=1)
    left = [int(keep.sum()) * 16 // len(keep) for keep in pruned.kept.values()]
    assert max(left) - min(left) <= 1


def test_the_magnitude_by_hand():
    model, weights = tabular(np.zeros(12))
    norms = np.linalg.norm(weights["params"]["fc1"]["kernel"], axis=0)
    both = np.hypot(norms, np.linalg.norm(weights["params"]["fc2"]["kernel"], axis=1))
    pruned = fsg.prune(model, weights, table(), budget={"params": 0.6}, divisor=1, min_keep=1, score="magnitude")
    gone = ~pruned.kept["units"]
    assert set(np.flatnonzero(gone)) == set(np.argsort(both)[: gone.sum()])


def test_random_scores_are_those_of_the_seed():
    model, weights = tabular(np.zeros(12))
    make = partial(fsg.prune, model, weights, table(), budget={"params": 0.6}, divisor=1, min_keep=1, score="random")
    kept = [make(seed=seed).kept["units"].tolist() for seed in (0, 0, 1)]
    assert kept[0] == kept[1] != kept[2]


def test_the_table_tells_every_layer():
    model, weights = tabular(range(12))
    table_ = fsg.prune(model, weights, table(), budget={"params": 0.7}, divisor=4, min_keep=4).table
    rows = {row.name: row for row in table_.layers}
    assert rows["fc1"].channels == (12, 8)
    assert rows["fc1"].parameters == (12 * 7 + 12, 8 * 7 + 8)
    assert rows["fc1"].flops == (2 * 12 * 7 + 12, 2 * 8 * 7 + 8)
    assert rows["units"].channels == (12, 8)
    for field in ("parameters", "flops"):
        pairs = [getattr(row, field) for row in table_.layers]
        assert tuple(map(sum, zip(*pairs, strict=True))) == getattr(table_, field)
    text = str(table_).splitlines()
    assert len(text) == len(table_.layers) + 2
    assert text[-1].split() == ["total", "141", "->", "97", *text[-1].split()[4:]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": {"params": "10%"}}, r"budget: expected at least \{'params': 31\}.*divisor=2 and min_keep=2"),
        ({"budget": {"flops": 3.0}}, "budget: expected at least"),
        ({"budget": {}}, "budget: expected one or more of flops, params"),
        ({"budget": {"macs": 0.5}}, "budget: expected one of 'flops', 'params', found 'macs'"),
        ({"budget": {"flops": "half"}}, r"budget\['flops'\]: expected a share.*'half'"),
        ({"budget": {"flops": "150%"}}, r"budget\['flops'\]: expected a share"),
        ({"budget": {"flops": 0}}, r"budget\['flops'\]"),
        ({"budget": {"flops": float("nan")}}, r"budget\['flops'\]"),
        ({"budget": {"flops": 0.5}, "score": "gates"}, "score: expected one of.*did you mean 'gate'"),
        ({"budget": {"flops": 0.5}, "divisor": 0}, "divisor"),
        ({"budget": {"flops": 0.5}, "min_keep": 0}, "min_keep"),
        ({"budget": {"flops": 0.5}, "calibrate": []}, "calibrate: expected a model with BatchNorm"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    model, weights = tabular(range(12))
    with pytest.raises(ValueError, match=message):
        fsg.prune(model, weights, table(), **SMALL | options)


def test_gates_elsewhere_are_no_score():
    with pytest.raises(ValueError, match=r"gates in the blocks.*layer1_0/gate1"):
        fsg.prune(reduced("resnet18"), variables("resnet18"), inputs("resnet18"), budget={"flops": 0.5})
    model, weights = reduced("resnet18", fsg.SqueezeExcite, gate_placement="hidden"), None
    weights = variables("resnet18", fsg.SqueezeExcite, gate_placement="hidden")
    with pytest.raises(ValueError, match="expected a static gate, or none"):
        fsg.prune(model, weights, inputs("resnet18"), budget={"flops": 0.5}, score="random")


def test_masks_that_do_not_fit_are_refused():
    model, weights = tabular(range(12))
    for kept, message in (
        ({"unit": np.ones(12, bool)}, "kept: expected sites of the model"),
        ({"units": np.ones(11, bool)}, r"kept\['units'\]: expected 12 booleans"),
        ({"units": np.ones(12)}, r"kept\['units'\]: expected 12 booleans, found float64"),
    ):
        with pytest.raises(ValueError, match=message):
            fsg.mask_gates(model, weights, kept)


def test_selected_channels_are_masked():
    """`selected` speaks of every gate, on shortcuts too; the others are then those of hard gates."""
    model, weights = reduced("resnet18"), random_gates(variables("resnet18"), 1)
    chosen = fsg.selected(weights)
    masked = fsg.mask_gates(model, weights, chosen)[1]
    for name, values in fsg.gate_values(masked).items():
        np.testing.assert_array_equal(values, np.where(chosen[name], fsg.gate_values(weights)[name], 0))


def test_batch_statistics_are_those_of_the_batches():
    """Of one batch, the model in evaluation computes what it computes in training on that batch."""
    model, weights = reduced("resnet18", None), variables("resnet18", None)
    x = inputs("resnet18")
    measured = recalibrate(model, weights, [x])
    assert difference((model, measured), (TrainMode(model), weights), x) < 1e-5
    twice = recalibrate(model, weights, [x, x])
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), measured, twice)
    mixed = recalibrate(model, weights, iter([x, 2 * x]))["batch_stats"]["bn1"]
    first, second = (recalibrate(model, weights, [batch])["batch_stats"]["bn1"] for batch in (x, 2 * x))
    np.testing.assert_allclose(mixed["var"], (first["var"] + second["var"]) / 2, rtol=1e-5)
    with pytest.raises(ValueError, match="calibrate: expected one batch or more, found none"):
        recalibrate(model, weights, [])


class TrainMode:
    """`apply` of a model in training."""

    def __init__(self, model):
        self.model = model

    def apply(self, weights, x):
        return self.model.apply(weights, x, train=True, mutable=["batch_stats"])[0]


def test_calibration_is_of_the_pruned_model():
    model, weights = hidden("resnet18")
    x = inputs("resnet18")
    plain, measured = (
        fsg.prune(model, weights, x, budget={"flops": 0.7}, calibrate=batches, **SMALL) for batches in (None, [x])
    )
    again = recalibrate(plain.model, plain.variables, [x])
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), measured.variables, again)
    assert not np.allclose(measured.variables["batch_stats"]["bn1"]["mean"], weights["batch_stats"]["bn1"]["mean"])


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny", "efficientnet_b0", "multistream"])
def test_costs_are_those_of_the_compiler(name):
    """XLA counts some elementwise functions apart (transcendentals), which are some percent of a network so small."""
    model, weights = reduced(name), variables(name)
    one = jax.tree.map(lambda x: x[:1], inputs(name))
    costs = layer_costs(model, weights, inputs(name))
    assert abs(total(costs).flops / compiled_flops(model, weights, one) - 1) < 0.1
    assert total(costs).parameters == sum(
        leaf.size for part in ("params", "gates") for leaf in jax.tree.leaves(weights[part])
    )
    assert {"/".join(path[:-1]) for path in flatten_dict(weights["params"])} <= costs.keys() | {""}


def test_costs_of_resnet18_are_the_published_ones():
    """1.11 GFLOPs at 32 pixels with products on padding (0.555 G multiplications and additions), and 0.966 without."""
    model = fsg.create_model("resnet18", num_classes=100)
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    costs = layer_costs(model, shapes, x)
    assert total(costs) == Cost(11_220_132, total(costs).flops)
    assert total(costs).flops == pytest.approx(966e6, rel=0.002)
    assert costs["layer1_0/conv1"] == Cost(9 * 64 * 64, 2 * (32 * 3 - 2) ** 2 * 64 * 64)


@pytest.mark.slow
def test_smaller_and_folded_models_are_saved_and_loaded(tmp_path):
    x = inputs("resnet34")
    model, weights = hidden("resnet34")
    pruned = fsg.prune(model, weights, x, budget={"flops": 0.8}, **SMALL)
    gate = partial(fsg.Gate, kind="relu")
    block = {"gate_placement": "block"}
    closed = random_gates(variables("resnet34", gate, **block), 1)
    folded = fsg.fold_gates(reduced("resnet34", gate, **block), closed)
    assert folded[0].gate is not None  # fixed scales are left
    for name, (one, its) in {"pruned": pruned[:2], "folded": folded}.items():
        fsg.save_pretrained(tmp_path / name, one, its)
        again = fsg.load_pretrained(tmp_path / name)
        jax.tree.map(np.testing.assert_array_equal, again.variables, its)
        np.testing.assert_array_equal(again.model.apply(again.variables, x), one.apply(its, x))
        assert again.model.widths == one.widths
