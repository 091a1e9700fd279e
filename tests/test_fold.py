"""Folded models compute what gated ones compute, with the program of the ungated ones."""

import zlib
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import fast
from flax.core import FrozenDict
from flax.traverse_util import flatten_dict
from reduced import REDUCED, by_family, inputs, reduced, variables

import fsg_jax as fsg
from fsg_jax.gates.functions import SQUASHINGS
from fsg_jax.gates.sites import Site, Use, flat_variables, nested_variables, sites_of
from fsg_jax.models import Stage, list_models
from fsg_jax.models.layers import FixedScale

CASES = [
    by_family(name, placement, classes, also=classes == 0 and (i > 0 or name != "resnet18"), id=f"{name}-{i}-{classes}")
    for name in list_models()
    for i, placement in enumerate(REDUCED[name].placements)
    for classes in (5, 0)
]


def random_gates(weights, seed, spread=2.0):
    """`weights` with logits drawn anew; those of relu gates are 0 or below for about half of the channels."""
    rng = np.random.default_rng(seed)
    draw = jax.tree.map(lambda g: jnp.asarray(rng.normal(0, spread, g.shape), jnp.float32), weights["gates"])
    return {**weights, "gates": draw}


def difference(gated, folded, x):
    """The largest relative difference of the outputs."""
    wanted, found = (jax.jit(model.apply)(weights, x) for model, weights in (gated, folded))
    return float(jnp.max(jnp.abs(wanted - found)) / jnp.max(jnp.abs(wanted)))


def program(model, weights, x):
    return str(jax.make_jaxpr(model.apply)(weights, x))


@pytest.mark.parametrize(("name", "placement", "classes"), CASES)
def test_folded_is_gated(name, placement, classes):
    seed = zlib.crc32(f"{name}{placement}{classes}".encode())
    gate = partial(fsg.Gate, kind=sorted(SQUASHINGS)[seed % len(SQUASHINGS)])
    model = reduced(name, gate, classes, **placement)
    weights = random_gates(variables(name, gate, classes, **placement), seed)
    folded, folded_weights = fsg.fold_gates(model, weights)
    assert "gates" not in folded_weights
    assert difference((model, weights), (folded, folded_weights), inputs(name)) < 1e-5
    listed = {"/".join(path[:-1]) for path in flatten_dict(folded_weights.get("scales", {}))}
    assert listed == (set() if folded.gate is None else set(folded.gate.keywords["at"]))
    sites = model.gate_sites().items()
    assert listed <= {site for site, told in sites if told.shortcut or told.exposed or not told.absorb}
    if not listed:
        plain = reduced(name, None, classes, **placement)
        assert program(folded, folded_weights, inputs(name)) == program(plain, folded_weights, inputs(name))


TWO_BLOCKS = {"stages": (Stage(1, 8, 1, 3, 1), Stage(2, 8, 3, 3, 1))}


@pytest.mark.parametrize(
    ("name", "options", "value"),
    [
        *(("resnet34", {}, 1e-30), ("resnet34", {}, 1e-6), ("efficientnet_b0", TWO_BLOCKS, 0.0)),
        pytest.param("resnet34", {}, 0.0, marks=pytest.mark.slow),
        *(pytest.param("efficientnet_b0", TWO_BLOCKS, value, marks=pytest.mark.slow) for value in (1e-30, 1e-6)),
    ],
)
def test_a_closed_gate_on_a_shortcut_becomes_a_fixed_scale(name, options, value):
    options = {"gate_placement": "block", **options}
    gate = partial(fsg.Gate, kind="relu")
    model, weights = reduced(name, gate, **options), variables(name, gate, **options)
    here = next(site for site, told in model.gate_sites().items() if told.shortcut)
    flat = flat_variables({**weights, "gates": jax.tree.map(lambda g: jnp.full_like(g, 0.7), weights["gates"])})
    flat[f"gates/{here}/logits"] = flat[f"gates/{here}/logits"].at[2].set(value)
    weights = nested_variables(flat)
    folded, folded_weights = fsg.fold_gates(model, weights)
    assert difference((model, weights), (folded, folded_weights), inputs(name)) < 1e-5
    if value == 1e-6:  # the next branch is divided by it
        assert folded.gate is None
        return
    assert folded.gate.keywords["at"] == (here,)
    (scale,) = jax.tree.leaves(folded_weights["scales"])
    assert scale[2] == value
    assert np.flatnonzero(np.asarray(scale) != 1).tolist() == [2]
    again = fsg.fold_gates(folded, folded_weights)
    assert again == (folded, folded_weights)


def test_negative_values_pass_sums_but_no_rectifier():
    gate = partial(fsg.Gate, kind=lambda g: g)  # values are the logits themselves
    for name, scales in (("resnet34", 1), ("efficientnet_b0", 0)):
        model = reduced(name, gate, gate_placement="block")
        weights = random_gates(variables(name, gate, gate_placement="block"), 3)
        folded = fsg.fold_gates(model, weights)
        assert len(jax.tree.leaves(folded[1].get("scales", {}))) == scales
        assert difference((model, weights), folded, inputs(name)) < 1e-5


def test_flops_of_the_folded_model_are_those_of_the_ungated():
    weights, x = variables("resnet18"), inputs("resnet18")
    models = [(reduced("resnet18"), weights), fsg.fold_gates(reduced("resnet18"), weights)]
    models.append((reduced("resnet18", None), models[1][1]))
    gated, folded, plain = (
        jax.jit(model.apply).lower(values, x).compile().cost_analysis()["flops"] for model, values in models
    )
    assert gated > folded == plain


@pytest.mark.parametrize("options", [{"layer_scale": 0.3}, {"pool": "avg", "class_token": False}])
def test_vits_with_options(options):
    model = reduced("vit_tiny", **options)
    weights = random_gates(variables("vit_tiny", **options), 1)
    folded = fsg.fold_gates(model, weights)
    assert folded[0].gate is None
    assert difference((model, weights), folded, inputs("vit_tiny")) < 1e-5


class Mixer(nn.Module):
    """Mixes tokens, and tells nobody how it ends."""

    @nn.compact
    def __call__(self, x, *, train=False):
        return nn.Dense(x.shape[-1], name="last")(jnp.cumsum(x, axis=1) / 10)


class TellingMixer(Mixer):
    output = "last"


@pytest.mark.parametrize(("mixer", "left"), fast([(TellingMixer, ()), (Mixer, ("blocks_0/gate1", "blocks_1/gate1"))]))
def test_a_mixer_may_tell_what_absorbs_its_gate(mixer, left):
    model = reduced("vit_tiny", mixer=mixer)
    weights = model.init(jax.random.key(0), inputs("vit_tiny"))
    folded = fsg.fold_gates(model, weights)
    assert difference((model, weights), folded, inputs("vit_tiny")) < 1e-5
    assert (folded[0].gate.keywords["at"] if left else folded[0].gate) == (left or None)


def test_the_temperature_is_that_of_the_step():
    gate = partial(fsg.Gate, temperature=lambda step: 1.0 / (1 + step))
    model = reduced("resnet18", gate)
    weights = random_gates(dict(model.init(jax.random.key(0), inputs("resnet18"))), 2)
    weights["gate_step"] = jax.tree.map(lambda step: step + 3, weights["gate_step"])
    folded = fsg.fold_gates(model, weights)
    assert folded[1].keys() == {"params", "batch_stats"}
    assert difference((model, weights), folded, inputs("resnet18")) < 1e-5


def test_a_folded_model_inside_another_keeps_its_scales():
    class Outer(nn.Module):
        inner: nn.Module

        @nn.compact
        def __call__(self, x):
            return self.inner.clone(name="backbone", parent=self)(x)

    weights = variables("resnet18", num_classes=0)
    folded, folded_weights = fsg.fold_gates(reduced("resnet18", num_classes=0), weights)
    assert folded.gate.keywords["at"] == ("gate2",)
    nested = {name: {"backbone": tree} for name, tree in folded_weights.items()}
    x = inputs("resnet18")
    np.testing.assert_array_equal(Outer(folded).apply(nested, x), folded.apply(folded_weights, x))
    assert jax.eval_shape(Outer(folded).init, jax.random.key(0), x).keys() == nested.keys()


class Tabular(nn.Module):
    """A model of one's own: gates on the inputs and on the hidden units of a table."""

    features: int
    gate: Any = fsg.Gate
    widths: Any = FrozenDict()

    @nn.compact
    def __call__(self, x, *, train=False):
        x = x if self.gate is None else self.gate(name="inputs")(x, train=train)
        x = nn.relu(nn.Dense(self.widths.get("units", 12), name="fc1")(x))
        x = x if self.gate is None else self.gate(name="units")(x, train=train)
        return nn.Dense(2, name="fc2")(x)

    def gate_sites(self):
        return {
            "inputs": Site(self.features, (Use("fc1", "in"),)),
            "units": Site(self.widths.get("units", 12), (Use("fc2", "in"),), made=(Use("fc1", "out"),)),
        }


def table():
    return jnp.asarray(np.random.default_rng(0).normal(size=(4, 7)), jnp.float32)


def test_tabular_gates_of_ones_own_model():
    model = Tabular(7)
    weights = model.init(jax.random.key(0), table())
    folded, folded_weights = fsg.fold_gates(model, weights)
    assert folded == Tabular(7, None)
    assert difference((model, weights), (folded, folded_weights), table()) < 1e-5


def test_what_cannot_be_folded_is_refused():
    weights, squeezed = Tabular(7).init(jax.random.key(0), table()), variables("resnet18", fsg.SqueezeExcite)
    with pytest.raises(ValueError, match=r"static gates.*SqueezeExcite"):
        fsg.fold_gates(reduced("resnet18", fsg.SqueezeExcite), squeezed)
    with pytest.raises(ValueError, match=r"gate 'inputs': expected 9 channels.*found \(7,\)"):
        fsg.fold_gates(Tabular(9), weights)
    with pytest.raises(ValueError, match=r"gate_sites\(\) tells, found \['more'\]"):
        fsg.fold_gates(Tabular(7), {**weights, "gates": {**weights["gates"], "more": {"logits": jnp.ones(3)}}})
    with pytest.raises(ValueError, match="no gates, as the model has none"):
        fsg.fold_gates(Tabular(7, None), weights)
    with pytest.raises(ValueError, match=r"Dense: expected a model with a method gate_sites"):
        sites_of(nn.Dense(3))

    class Standardised(nn.Conv):
        """Its weights are normalised, so that no factor passes."""

    with pytest.raises(ValueError, match=r"conv: expected Conv.*Standardised"):
        fsg.fold_gates(reduced("resnet18", conv=Standardised), variables("resnet18"))
    with pytest.raises(ValueError, match="without groups"):
        fsg.fold_gates(reduced("resnet18", conv=partial(nn.Conv, feature_group_count=2)), variables("resnet18"))


def test_without_gates_nothing_changes():
    model, weights = reduced("resnet18", None), variables("resnet18", None)
    assert fsg.fold_gates(model, weights) == (model, weights)


def test_dtypes_stay():
    weights = jax.tree.map(lambda x: x.astype(jnp.bfloat16), variables("vit_tiny"))
    _, folded = fsg.fold_gates(reduced("vit_tiny", dtype=jnp.bfloat16), weights)
    assert {leaf.dtype for leaf in jax.tree.leaves(folded)} == {jnp.dtype("bfloat16")}


def test_fixed_scale_alone():
    x = jnp.ones((2, 3))
    module = FixedScale(at=("here",), name="here")
    weights = module.init(jax.random.key(0), x)
    np.testing.assert_array_equal(module.apply(weights, x), x)
