"""On an accelerator: the numbers of the CPU, bf16, data on the device."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fsg_jax as fsg
from fsg_jax.data import ImageDataset
from fsg_jax.data.batches import shuffled
from fsg_jax.data.resident import chunk_rows, make_resident_steps, put_dataset

pytestmark = pytest.mark.gpu
TX = fsg.routed(params=optax.sgd(0.05, momentum=0.9), gates=optax.adam(1e-2))


@pytest.fixture(autouse=True)
def accelerator():
    """Run them with ``JAX_PLATFORMS=cuda,cpu``, or ``tpu,cpu``."""
    if jax.default_backend() == "cpu":
        pytest.skip("no accelerator")


def batch(size: int = 16) -> dict[str, jax.Array]:
    images = jax.random.normal(jax.random.key(1), (size, 32, 32, 3))
    return {"image": images, "label": jnp.arange(size) % 10}


def train(device: jax.Device, dtype: object, routing: str, steps: int = 3) -> list[float]:
    with jax.default_device(device), jax.default_matmul_precision("highest"):
        model = fsg.create_model("resnet18", num_classes=10, gate=fsg.Gate, width=16, dtype=dtype)
        state = fsg.init_state(model, TX, jax.random.key(0), batch(1)["image"])
        step = fsg.make_train_step(fsg.losses.cross_entropy, routing)
        losses = []
        for _ in range(steps):
            state, metrics = step(state, jax.device_put(batch(), device))
            losses.append(float(metrics["loss"]))
    return losses


@pytest.mark.parametrize("routing", ["joint", "sequential"])
def test_the_numbers_are_those_of_the_cpu(routing):
    expected = train(jax.devices("cpu")[0], jnp.float32, routing)
    np.testing.assert_allclose(train(jax.devices()[0], jnp.float32, routing), expected, rtol=2e-3)
    np.testing.assert_allclose(train(jax.devices()[0], jnp.bfloat16, routing), expected, rtol=5e-2)


@pytest.mark.parametrize("dispatch", ["scan", "loop"])
def test_data_on_the_device(dispatch):
    images = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 3), np.uint8)
    dataset = ImageDataset(images, np.arange(64, dtype=np.int32) % 10, tuple("abcdefghij"))
    model = fsg.create_model("vit_tiny", num_classes=10, gate=fsg.Gate, patch_size=4, depth=1)
    state = fsg.init_state(model, TX, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    transform = fsg.augment.chain(fsg.augment.random_flip(), fsg.augment.to_float())
    step = fsg.make_train_step(fsg.losses.cross_entropy, transform=transform, jit=False)
    steps = make_resident_steps(step, dispatch)
    order = shuffled(64, 16, 0)
    state, metrics = steps(state, put_dataset(dataset), jnp.asarray(chunk_rows(order, 0, 4)))
    assert int(state.step) == 4
    assert np.isfinite(metrics["loss"]).all()
