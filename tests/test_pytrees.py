"""The routed update on pytrees: Flax collections, plain dicts, an Equinox and an NNX module move alike."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from toy import Mlp, batch

import fsg_jax as fsg
from fsg_jax.routing import Mean, Pass, routed_update

DATA = batch()
START = jax.jit(Mlp().init)(jax.random.key(0), DATA["image"])


def forward(first, second, logits, x):
    """The network of toy.py, from arrays."""
    hidden = jnp.tanh(x @ first["kernel"] + first["bias"][None]) * jax.nn.sigmoid(logits)[None]
    return hidden @ second["kernel"] + second["bias"][None]


def loss_of(outputs):
    return jnp.mean(fsg.losses.cross_entropy(outputs, DATA))


def transforms():
    return {"params": optax.sgd(0.1, momentum=0.9), "gates": optax.adam(0.05)}


def moved(tree, tx, apply, routing="sequential", **options):
    """The tree after two updates with a loss of ``apply(tree, x)``."""

    def loss_fn(tree, model_state, batch, key):
        return loss_of(apply(tree, batch["image"])), (model_state, {})

    update, opt_state = jax.jit(routed_update(loss_fn, tx, routing, **options)), tx.init(tree)
    for _ in range(2):
        tree, opt_state, _, metrics = update(tree, opt_state, {}, DATA, jax.random.key(0))
    assert set(metrics["grad_norm"]) == {"params", "gates"}
    return tree


def collections(routing="sequential"):
    tree = moved(START, fsg.routed(**transforms()), Mlp().apply, routing)
    return tree["params"]["first"], tree["params"]["second"], tree["gates"]["gate"]["logits"]


def plain_dict(routing="sequential"):
    tx = fsg.routed(labels={"gates": "layers/0/open", "params": ...}, **transforms())
    layers = [{**START["params"]["first"], "open": START["gates"]["gate"]["logits"]}, START["params"]["second"]]
    tree = moved(
        {"layers": layers}, tx, lambda t, x: forward(t["layers"][0], t["layers"][1], t["layers"][0]["open"], x), routing
    )
    return *tree["layers"], tree["layers"][0]["open"]


def equinox_module(routing="sequential"):
    eqx = pytest.importorskip("equinox")

    class Net(eqx.Module):
        first: dict
        second: dict
        logits: jax.Array
        name: str = "net"

        def __call__(self, x):
            return forward(self.first, self.second, self.logits, x)

    net = Net(START["params"]["first"], START["params"]["second"], START["gates"]["gate"]["logits"])
    arrays, rest = eqx.partition(net, eqx.is_inexact_array)
    tx = fsg.routed(labels={"gates": "logits", "params": "(first|second)/.*"}, **transforms())
    tree = moved(arrays, tx, lambda arrays, x: eqx.combine(arrays, rest)(x), routing)
    return tree.first, tree.second, tree.logits


def nnx_module(routing="sequential"):
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.first, self.second = nnx.Linear(4, 6, rngs=rngs), nnx.Linear(6, 3, rngs=rngs)
            self.gate = fsg.nnx.Gate(6, rngs=rngs)

        def __call__(self, x):
            return self.second(self.gate(jnp.tanh(self.first(x))))

    net = Net(nnx.Rngs(0))
    for name in ("first", "second"):
        for leaf, value in START["params"][name].items():
            getattr(getattr(net, name), leaf)[...] = value
    net.gate.logits[...] = START["gates"]["gate"]["logits"]
    graph, state = nnx.split(net)
    tx = fsg.routed(labels={"gates": "gate/logits", "params": ...}, **transforms())
    tree = moved(nnx.to_pure_dict(state), tx, lambda tree, x: nnx.merge(graph, tree)(x), routing)
    return tree["first"], tree["second"], tree["gate"]["logits"]


@pytest.mark.parametrize("framework", [plain_dict, equinox_module, nnx_module])
def test_frameworks_give_one_update(framework):
    first, second, logits = framework()
    expected = collections()
    assert np.abs(logits - START["gates"]["gate"]["logits"]).max() > 0.05
    for got, want in zip((first, second, logits), expected, strict=True):
        got = {k: got[k] for k in want} if isinstance(want, dict) else got
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, want)


def test_the_step_of_flax_is_the_same_update():
    state = fsg.init_state(Mlp(), fsg.routed(**transforms()), jax.random.key(0), DATA["image"], variables=START)
    step = fsg.make_train_step(fsg.losses.cross_entropy)
    for _ in range(2):
        state, _ = step(state, DATA)
    got = (state.params["first"], state.params["second"], state.gates["gate"]["logits"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, collections())


def test_passes_of_ones_own():
    """Two tasks: the gates of each move by its own loss, the weights by both."""
    tree = {"a": jnp.float32(0.5), "b": jnp.float32(-1.0), "w": jnp.float32(2.0)}
    tx = fsg.routed(labels={"ga": "a", "gb": "b", "w": "w"}, ga=optax.sgd(0.1), gb=optax.sgd(0.2), w=optax.sgd(0.3))

    def task_a(t, state, batch, key):
        return (t["w"] * t["a"] - 1) ** 2, (state, {})

    def task_b(t, state, batch, key):
        return (t["w"] * t["b"] + t["a"]) ** 2, (state, {})

    def both(t, state, batch, key):
        return [task_a(t, state, batch, key)[0], Mean(3 * task_b(t, state, batch, key)[0], 3.0)], (state, {})

    passes = [Pass({"ga"}, task_a), Pass({"gb"}, task_b), Pass({"w"})]
    got, *_ = routed_update(both, tx, passes=passes)(tree, tx.init(tree), {}, {}, jax.random.key(0))
    a = 0.5 - 0.1 * 2 * (2 * 0.5 - 1) * 2
    b = -1 - 0.2 * 2 * (2 * -1 + a) * 2
    w = 2 - 0.3 * (2 * (2 * a - 1) * a + 2 * (2 * b + a) * b)
    np.testing.assert_allclose([got[k] for k in "abw"], [a, b, w], rtol=1e-5)
    with pytest.raises(ValueError, match=r"passes.*'ga', 'gb', 'w'.*'ga', 'w'"):
        routed_update(both, tx, passes=[passes[0], passes[2]])(tree, tx.init(tree), {}, {}, jax.random.key(0))


def test_gates_move_between_two_steps_alone():
    tx, steps = fsg.routed(**transforms()), []
    update = jax.jit(
        routed_update(
            lambda t, *_: loss_of(Mlp().apply(t, DATA["image"])), tx, gate_when=lambda step: (step >= 1) & (step < 3)
        )
    )
    tree, opt_state = START, tx.init(START)
    for step in range(4):
        before = tree["gates"]
        tree, opt_state, *_ = update(tree, opt_state, {}, DATA, jax.random.key(0), step=step)
        steps.append(bool(np.any(before["gate"]["logits"] != tree["gates"]["gate"]["logits"])))
    assert steps == [False, True, True, False]
    with pytest.raises(ValueError, match=r"gate_when.*sequential.*joint"):
        routed_update(lambda *_: 0.0, tx, "joint", gate_when=lambda step: step > 1)
