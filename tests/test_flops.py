"""What routing costs, read from the compiler."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
from cases import fast

import fsg_jax as fsg


def compiled_flops(gate, routing: str, **options) -> float:
    model = fsg.create_model("resnet18", num_classes=100, gate=gate)
    tx = fsg.routed(params=optax.sgd(0.1, momentum=0.9), gates=optax.adam(1e-2))
    images = jax.ShapeDtypeStruct((8, 32, 32, 3), jnp.float32)
    state = jax.eval_shape(lambda x: fsg.init_state(model, tx, jax.random.key(0), x), images)
    step = fsg.make_train_step(fsg.losses.cross_entropy, routing, **options)
    compiled = step.lower(state, {"image": images, "label": jax.ShapeDtypeStruct((8,), jnp.int32)}).compile()
    return compiled.cost_analysis()["flops"]


@pytest.mark.slow
def test_sequential_routing_drops_the_weight_gradients_of_the_gate_pass():
    """Two full passes would be 2.0 times a plain step; without the gate pass's weight gradients and a
    second pass through what comes before the first gate it is about 1.46."""
    plain = compiled_flops(None, "joint")
    assert compiled_flops(fsg.Gate, "joint") < 1.02 * plain
    assert 1.4 * plain < compiled_flops(fsg.Gate, "sequential") < 1.5 * plain
    assert 1.5 * plain < compiled_flops(fsg.Gate, "sequential", shared_prefix=False) < 1.6 * plain
    assert 1.8 * plain < compiled_flops(fsg.Gate, "reference") < 2.0 * plain


class Deep(nn.Module):
    """Four layers with BatchNorm that can be frozen, a gate, and a head."""

    @nn.compact
    def __call__(self, x, train=False):
        for i in range(4):
            x = nn.Dense(256, name=f"layer{i}")(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, name=f"norm{i}")(x))
        return nn.Dense(1, name="head")(fsg.Gate(name="gate")(x))


DATA = {"image": jnp.ones((64, 256)), "target": jnp.arange(64.0)}


def flops(function, *args) -> float:
    return jax.jit(function).lower(*args).compile().cost_analysis()["flops"]


@pytest.mark.parametrize("statistics", fast([True, False]))
def test_a_frozen_backbone_costs_what_it_costs_by_hand(statistics):
    """Gates and head move; with frozen statistics the backbone runs as in evaluation."""
    pattern = "(params|batch_stats)/(layer|norm).*" if statistics else "params/(layer|norm).*"
    tx = fsg.routed(labels={"frozen": pattern}, frozen=None, params=optax.sgd(0.1), gates=optax.adam(1e-2))
    state = fsg.init_state(Deep(), tx, jax.random.key(0), DATA["image"])
    rest = {k: v for k, v in state.params.items() if k != "head"}

    def by_hand(head, gates, rest, stats, data):
        def loss(head, gates):
            variables = {"params": {**rest, "head": head}, "gates": gates, "batch_stats": stats}
            outputs, new = Deep().apply(variables, data["image"], train=not statistics, mutable=["batch_stats"])
            return jnp.mean((outputs[:, 0] - data["target"]) ** 2), new

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(head, gates)

    step = fsg.make_train_step(fsg.losses.squared_error, "joint", jit=False)
    wanted = flops(by_hand, state.params["head"], state.gates, rest, state.batch_stats, DATA)
    assert flops(step, state, DATA) < 1.05 * wanted
    moved, _ = jax.jit(step)(state, DATA)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), moved.batch_stats, state.batch_stats)
    assert jax.tree.all(same) == statistics
