"""What routing costs, read from the compiler."""

import jax
import jax.numpy as jnp
import optax
import pytest

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
