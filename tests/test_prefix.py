"""The computation that two passes share: what is in it, and that sharing it changes nothing."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import fast
from toy import Mlp, batch, new_state, two_optimizers

import fsg_jax as fsg
from fsg_jax.models.resnet import BasicBlock, ResNet
from fsg_jax.models.vit import ViT
from fsg_jax.routing.shared_prefix import split_at_first_use


def mixed(moving, fixed, data):
    """Integers, a random mask, an inner jit and a custom derivative, before and after `moving` comes in."""
    index = data["index"] + 1
    mask = jax.random.bernoulli(fixed["key"], 0.5, data["x"].shape)
    h = jax.jit(jax.nn.relu)(data["x"] @ fixed["w"]) * mask
    shifted = jnp.take(h, index % h.shape[0], axis=0)
    return {
        "out": jax.nn.relu(shifted * moving["g"][None]) @ fixed["w"],
        "index": index,
        "mean": h.mean(),
        "constant": 3.0,
    }


def mixed_arguments():
    keys = jax.random.split(jax.random.key(0), 2)
    fixed = {"w": jax.random.normal(keys[0], (4, 4)), "key": jax.random.key(7)}
    data = {"x": jax.random.normal(keys[1], (5, 4)), "index": jnp.arange(5)}
    return {"g": jnp.linspace(0.1, 1.0, 4)}, fixed, data


def test_the_split_make_up_the_whole():
    moving, fixed, data = mixed_arguments()
    before, after = split_at_first_use(mixed, moving, fixed, data)
    other = {"g": jnp.array([-1.0, 0.0, 2.0, 0.5])}
    for values in (moving, other):
        got = after(values, fixed, before(fixed, data))
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), got, mixed(values, fixed, data))


def test_the_first_half_does_all_that_does_not_wait_for_what_moves():
    moving, fixed, data = mixed_arguments()
    before, after = split_at_first_use(mixed, moving, fixed, data)
    boundary = before(fixed, data)
    second = str(jax.make_jaxpr(after)(moving, fixed, boundary))
    assert second.count("dot_general") == 1
    assert str(jax.make_jaxpr(before)(fixed, data)).count("dot_general") == 1
    assert "gather" not in second


def test_what_moves_may_come_first_or_not_at_all():
    gate, weight, x = jnp.ones((1, 2)), jnp.eye(2), jnp.ones((3, 2))
    before, after = split_at_first_use(lambda g, w, x: (x * g) @ w, gate, weight, x)
    np.testing.assert_array_equal(after(2 * gate, weight, before(weight, x)), 2 * x)
    before, after = split_at_first_use(lambda g, w, x: x @ w, gate, weight, x)
    np.testing.assert_array_equal(after(gate, weight, before(weight, x)), x)


class Counting(nn.Module):
    """A layer on each side of the gate; `calls` has a function for each, called at every pass through it."""

    calls: tuple

    @nn.compact
    def __call__(self, x):
        jax.debug.callback(self.calls[0], x[0, 0])
        x = fsg.Gate(name="gate")(nn.Dense(3, name="first")(x))
        jax.debug.callback(self.calls[1], x[0, 0])
        return nn.Dense(3, name="second")(x)


def test_effects_before_the_gate_happen_once_and_those_behind_it_in_every_pass():
    before, behind = [], []
    model = Counting((lambda value: before.append(value), lambda value: behind.append(value)))
    state = new_state(model)
    before.clear(), behind.clear()
    state, _ = fsg.make_train_step(fsg.losses.cross_entropy, shared_prefix=True)(state, batch())
    jax.block_until_ready(state)
    jax.effects_barrier()
    assert (len(before), len(behind)) == (1, 2)


def count(jaxpr, name: str) -> int:
    """Equations of a primitive, those inside others too."""
    inner = [v for eqn in jaxpr.eqns for v in jax.tree.leaves(eqn.params, is_leaf=lambda v: hasattr(v, "eqns"))]
    inner = [getattr(v, "jaxpr", v) for v in inner if hasattr(getattr(v, "jaxpr", v), "eqns")]
    return sum(eqn.primitive.name == name for eqn in jaxpr.eqns) + sum(count(v, name) for v in inner)


@pytest.mark.parametrize("every", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_convolutions_before_the_first_gate_are_done_once(every):
    """Of the 20 of ResNet-18, 5 come before the first gate and 15 behind it.

    Gate pass: 15 forward, 15 back to the gate. Main pass: 20 forward, 19 input gradients, 20 weight gradients.
    """
    model = fsg.create_model("resnet18", num_classes=10, width=4, gate=fsg.Gate)
    image = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    state = jax.eval_shape(lambda x: fsg.init_state(model, two_optimizers(), jax.random.key(0), x), image)
    step = fsg.make_train_step(fsg.losses.cross_entropy, gate_every=every, jit=False)
    jaxpr = jax.make_jaxpr(step)(state, {"image": image, "label": jax.ShapeDtypeStruct((2,), jnp.int32)})
    jitted = jax.jit(step).trace(state, {"image": image, "label": jax.ShapeDtypeStruct((2,), jnp.int32)}).jaxpr
    assert count(jaxpr.jaxpr, "conv_general_dilated") == count(jitted.jaxpr, "conv_general_dilated") == 30 + 59


RESNET = partial(ResNet, stage_sizes=(1, 1), block=BasicBlock, num_classes=3, width=4)
VIT = partial(ViT, num_classes=3, patch_size=4, depth=1, dim=12)
MODELS = {
    "mlp": partial(Mlp, batch_norm=True, dropout=0.3),
    "stochastic gates": partial(Mlp, gate=partial(fsg.Gate, kind="hard_concrete")),
    "data-dependent gates beside static ones": lambda: Both(),
    "resnet": partial(RESNET, gate=fsg.Gate),
    "resnet, gates in every block, rematerialised": partial(RESNET, gate=fsg.Gate, gate_placement="block", remat=True),
    "vit": partial(VIT, gate=fsg.Gate, dropout=0.1, drop_path=0.2, attention_dropout=0.1, layer_scale=0.1),
    "vit, bfloat16": partial(VIT, gate=fsg.Gate, dtype=jnp.bfloat16),
}


class Both(nn.Module):
    """A squeeze-excitation, which is made of weights, before a static gate."""

    @nn.compact
    def __call__(self, x, *, train: bool = False):
        x = fsg.SqueezeExcite(name="se")(nn.Dense(6, name="first")(x), train=train)
        return nn.Dense(3, name="second")(fsg.Gate(name="gate")(x))


def data_for(name: str) -> dict[str, jax.Array]:
    if not name.startswith(("resnet", "vit")):
        return batch()
    keys = jax.random.split(jax.random.key(5))
    return {"image": jax.random.normal(keys[0], (4, 8, 8, 3)), "label": jax.random.randint(keys[1], (4,), 0, 3)}


def steps(model, data, *, apart, tx=None, **options):
    """The state and metrics after three steps, the two passes apart or with their common part shared."""
    state = fsg.init_state(model, tx or two_optimizers(), jax.random.key(0), data["image"])
    step = fsg.make_train_step(fsg.losses.cross_entropy, shared_prefix=not apart, **options)
    for _ in range(3):
        state, metrics = step(state, data)
    return state, metrics


def assert_shared_equals_apart(model, data, tolerance=1e-5, **options):
    shared, metrics = steps(model, data, apart=False, **options)
    apart, others = steps(model, data, apart=True, **options)
    for a, b in ((shared.variables, apart.variables), (shared.opt_state, apart.opt_state), (metrics, others)):
        jax.tree.map(partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance), a, b)


SLOW = ("stochastic gates", "resnet", "resnet, gates in every block, rematerialised", "vit", "vit, bfloat16")


@pytest.mark.parametrize("name", fast(MODELS, lambda name: name not in SLOW))
def test_sharing_changes_nothing(name):
    model = MODELS[name]()
    assert_shared_equals_apart(model, data_for(name), 2e-2 if "bfloat16" in name else 1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"gate_loss": lambda outputs, batch: 2 * fsg.losses.cross_entropy(outputs, batch)},
        pytest.param({"gate_every": 2}, marks=pytest.mark.slow),
        pytest.param({"penalty": fsg.gate_penalty("l1", 0.1)}, marks=pytest.mark.slow),
        pytest.param({"metrics": {}}, marks=pytest.mark.slow),
    ],
    ids=lambda options: next(iter(options)),
)
def test_sharing_changes_nothing_with_options(options):
    assert_shared_equals_apart(Mlp(batch_norm=True, dropout=0.3), batch(), **options)


def test_any_leaf_may_move_in_the_gate_pass():
    """A BatchNorm's scale and bias as the gates; weights, a frozen layer and the real gate are the rest."""
    tx = fsg.routed(
        params=optax.sgd(0.1),
        gates=optax.sgd(0.1),
        norm=optax.adam(0.05),
        frozen=optax.set_to_zero(),
        labels={"norm": "params/norm/.*", "frozen": "params/first/kernel"},
    )
    assert_shared_equals_apart(Mlp(batch_norm=True), batch(), tx=tx, gate_labels=("norm",))
    assert_shared_equals_apart(Mlp(batch_norm=True), batch(), tx=tx, gate_labels=("norm", "gates"))
