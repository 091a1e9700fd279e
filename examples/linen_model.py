"""Gates that choose the channels of a CNN of one's own: ``python examples/linen_model.py``.

A hard-concrete gate stands behind each convolution of a small network for handwritten digits. A step has two passes:
the first moves the gates, under a penalty on the number of open channels, the second the weights. Printed are what each
gate does, and the test accuracy without gates, with them, and with gates of exactly 0 or 1. The last line has as many
channels of the same network, but others: what they lose is what the choice is worth.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import fsg_jax as fsg
from fsg_jax.data import load_digits


class Net(nn.Module):
    """Two convolutions, each with a gate unless `gate` is None, and a classifier."""

    gate: Callable | None = None

    @nn.compact
    def __call__(self, x, train=False):
        """Logits (batch, 10) of images (batch, 8, 8, 1)."""
        for i, width in enumerate((16, 32)):
            x = nn.relu(nn.Conv(width, (3, 3), strides=i + 1, name=f"conv{i}")(x))
            if self.gate is not None:
                x = self.gate(name=f"gate{i}")(x, train=train)
        return nn.Dense(10, name="classifier")(x.reshape(len(x), -1))


def train(model: nn.Module, data: dict, epochs: int, penalty=None) -> fsg.TrainState:
    """The state after `epochs` of batches of 128."""
    tx = fsg.routed(params=optax.adam(3e-3), gates=optax.adam(5e-2))
    state = fsg.init_state(model, tx, jax.random.key(0), data["image"][:1])
    step = fsg.make_train_step(fsg.losses.cross_entropy, "sequential", penalty=penalty)
    draw = np.random.default_rng(0)
    for _ in range(epochs):
        for rows in draw.permutation(len(data["label"]))[: 128 * 11].reshape(11, 128):
            state, _ = step(state, {name: array[rows] for name, array in data.items()})
    return state


def shuffled(state: fsg.TrainState, draw: np.random.Generator) -> fsg.TrainState:
    """The state with the gates of each layer in another order."""
    gates = jax.tree.map(lambda logits: jnp.asarray(draw.permutation(logits)), state.gates)
    return replace(state, variables=state.variables | {"gates": gates})


def main(epochs: int = 20, price: float = 0.1) -> None:
    """Trains with and without gates; `price` is the penalty of an open channel, in nats."""
    digits = (load_digits("train"), load_digits("test"))
    data, test = ({"image": np.float32(d.images) / 255, "label": d.labels} for d in digits)
    accuracy = fsg.make_eval_step(fsg.losses.cross_entropy, metrics={"accuracy": fsg.metrics.accuracy})
    plain = train(Net(), data, epochs)
    gated = train(Net(partial(fsg.Gate, kind="hard_concrete")), data, epochs, fsg.gate_penalty("l0", price))

    for name, found in fsg.gate_summary(gated).items():
        print(f"{name}: mean {found['mean']:.2f}, open {found['open']:.0%}, closed {found['closed']:.0%}")
    kept = {name: np.flatnonzero(keep).tolist() for name, keep in fsg.selected(gated).items()}
    print("selected:", kept)

    hard, draw, count = fsg.harden(gated), np.random.default_rng(1), sum(map(len, kept.values()))
    found = {
        name: accuracy(state, test)["accuracy"]
        for name, state in {"plain": plain, "gated": gated, "hard": hard}.items()
    }
    chance = [accuracy(shuffled(hard, draw), test)["accuracy"] for _ in range(10)]
    print(f"without gates, 48 channels: test accuracy {found['plain']:.1%}")
    print(f"with gates, 48 channels: test accuracy {found['gated']:.1%}")
    print(f"the {count} selected channels: test accuracy {found['hard']:.1%}")
    print(f"{count} channels at random: test accuracy {np.mean(chance):.1%}, mean of 10 draws")


if __name__ == "__main__":
    main()
