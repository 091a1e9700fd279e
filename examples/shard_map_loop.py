"""Gradient routing in a loop of one's own over several devices, by ``jax.shard_map``.

    python examples/shard_map_loop.py --devices 4

Every device has a part of the batch, and ``fsg.routing.routed_update`` runs on all of them. Two things make the result
that of one device. The loss is a `Mean` whose total and weight are summed over the devices by ``psum`` before they are
divided, for rows that are missing (weight 0) are spread unevenly. And ``shard_map`` knows which values are the same on
all devices (``check_vma``, on by default), so that it sums the gradients of the weights and gates itself: none is
summed here, and with ``check_vma=False`` they would be wrong. BatchNorm is told the axis too.

Printed is how far weights and gates are from those of `fsg.make_train_step` on one device, after the same steps; and,
so that the number means something, how far they are if each device takes the mean of its own rows. On a machine with
accelerators all of them are used; on a CPU, as many virtual devices as are asked for.
"""

import argparse

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

import fsg_jax as fsg
from fsg_jax.data import load_digits
from fsg_jax.routing import Mean, routed_update


class Net(nn.Module):
    """Two layers with BatchNorm and a gate between them; statistics over `axis_name` if it is given."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train=False):
        """Logits (batch, 10) of images (batch, 8, 8, 1)."""
        x = nn.Dense(64, use_bias=False)(x.reshape(len(x), -1))
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, axis_name=self.axis_name)(x)
        return nn.Dense(10)(fsg.Gate(name="gate")(nn.relu(x)))


def make_loss(summed: bool):
    """The loss of the rows of one device; its mean is over all devices if `summed`."""

    def loss_fn(trainable, model_state, batch, key):
        variables = {**trainable, **model_state}
        outputs, model_state = Net("data").apply(variables, batch["image"], train=True, mutable=["batch_stats"])
        values, weights = fsg.losses.cross_entropy(outputs, batch), batch["valid"]
        mean = Mean(jnp.sum(weights * values), jnp.sum(weights))
        mean = jax.lax.psum(mean, "data") if summed else jax.lax.pmean(mean.value(), "data")
        return mean, (model_state, {"loss": mean})

    return loss_fn


def train(update, state: fsg.TrainState, batches: list[dict]) -> tuple[dict, float]:
    """Weights and gates after a step for each batch, and the last loss: the loop of one's own."""
    trainable, opt_state, model_state = state.trainable, state.opt_state, state.model_state
    for batch in batches:
        trainable, opt_state, model_state, metrics = update(trainable, opt_state, model_state, batch, state.rng)
    return trainable, float(metrics["loss"])


def distance(tree: dict, other: dict) -> float:
    """Largest difference, relative to the largest value of a leaf."""
    pairs = zip(jax.tree.leaves(jax.device_get(tree)), jax.tree.leaves(jax.device_get(other)), strict=True)
    return max(float(np.max(np.abs(a - b)) / np.max(np.abs(b))) for a, b in pairs)


def main(devices: int = 4, steps: int = 20) -> None:
    """Trains on one device, on all, and on all in the wrong way."""
    jax.config.update("jax_num_cpu_devices", devices)  # no matter to accelerators
    mesh = jax.make_mesh((len(jax.devices()),), ("data",))
    digits, draw = load_digits("train"), np.random.default_rng(0)
    size = 32 * mesh.size
    valid = np.repeat(np.linspace(0.2, 1, mesh.size), 32)  # share of the rows of each device that are there
    batches = []
    for _ in range(steps):
        rows = draw.permutation(len(digits))[:size]
        there = np.float32(draw.uniform(size=size) < valid)
        batches.append({"image": np.float32(digits.images[rows]) / 255, "label": digits.labels[rows], "valid": there})

    tx = fsg.routed(params=optax.sgd(0.1, momentum=0.9), gates=optax.adam(1e-2))
    state = start = fsg.init_state(Net(), tx, jax.random.key(0), batches[0]["image"][:1])
    step = jax.jit(fsg.make_train_step(fsg.losses.cross_entropy, "sequential", jit=False))
    for batch in batches:
        state, metrics = step(state, batch)
    print(f"one device: loss {metrics['loss']:.4f} after {steps} steps")

    same, rows = PartitionSpec(), PartitionSpec("data")
    for name, summed in {"means over all rows": True, "means of means": False}.items():
        update = routed_update(make_loss(summed), tx, "sequential")
        on_all = jax.jit(jax.shard_map(update, mesh=mesh, in_specs=(same, same, same, rows, same), out_specs=same))
        trainable, loss = train(on_all, start, jax.device_put(batches, NamedSharding(mesh, rows)))
        print(f"{mesh.size} devices, {name}: loss {loss:.4f}, distance {distance(trainable, state.trainable):.1e}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=4, help="of the CPU, where there is no accelerator")
    main(parser.parse_args().devices)
