"""A gate in an NNX network of one's own, with BatchNorm and dropout: ``python examples/nnx_model.py``.

``fsg.nnx.Gate`` is a layer, its logits a type of Variable of their own, and the state of training is that of every
other model. Handwritten digits are learned in steps of two passes: the first moves the gates, under a penalty on open
units, the second the weights. Then ``fsg.nnx.merge`` gives modules back: that with all units, that with gates of
exactly 0 or 1, and some with as many other units of the same network. Their test accuracy is printed, and that of
a network without gates.
"""

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import fsg_jax as fsg
from fsg_jax.data import load_digits


class Net(nnx.Module):
    """Two layers of 64 units, each with a gate or not, and a classifier."""

    def __init__(self, rngs: nnx.Rngs, gated: bool) -> None:
        self.first, self.second = nnx.Linear(64, 64, rngs=rngs), nnx.Linear(64, 64, rngs=rngs)
        self.norm, self.drop = nnx.BatchNorm(64, momentum=0.9, rngs=rngs), nnx.Dropout(0.2, rngs=rngs)
        self.classifier = nnx.Linear(64, 10, rngs=rngs)
        if gated:
            self.gate0, self.gate1 = (fsg.nnx.Gate(64, kind="hard_concrete", rngs=rngs) for _ in range(2))
        self.gated = gated

    def __call__(self, x):
        """Logits (batch, 10) of images (batch, 8, 8, 1)."""
        x = nnx.relu(self.norm(self.first(x.reshape(len(x), -1))))
        x = nnx.relu(self.second(self.gate0(x) if self.gated else x))
        return self.classifier(self.drop(self.gate1(x) if self.gated else x))


def train(gated: bool, data: dict, epochs: int, penalty=None) -> fsg.TrainState:
    """The state after `epochs` of batches of 128."""
    optimizers = {"params": optax.adam(3e-3)} | ({"gates": optax.adam(5e-2)} if gated else {})
    state = fsg.nnx.init_state(Net(nnx.Rngs(0), gated), fsg.routed(**optimizers))
    step = fsg.nnx.make_train_step(fsg.losses.cross_entropy, "sequential", penalty=penalty)
    draw = np.random.default_rng(0)
    for _ in range(epochs):
        for rows in draw.permutation(len(data["label"]))[: 128 * 11].reshape(11, 128):
            state, _ = step(state, {name: array[rows] for name, array in data.items()})
    return state


@nnx.jit
def predict(model: Net, x):
    """The most probable class of every image."""
    return model(x).argmax(-1)


def main(epochs: int = 15, price: float = 0.05) -> None:
    """Trains with and without gates; `price` is the penalty of an open unit, in nats."""
    digits = (load_digits("train"), load_digits("test"))
    data, test = ({"image": np.float32(d.images) / 255, "label": d.labels} for d in digits)

    def accuracy(model: Net) -> float:
        model.eval()
        return float(np.mean(predict(model, test["image"]) == test["label"]))

    plain, state = train(False, data, epochs), train(True, data, epochs, fsg.gate_penalty("l0", price))
    print(f"without gates, 128 units: test accuracy {accuracy(fsg.nnx.merge(plain)):.1%}")
    print(f"with gates, 128 units: test accuracy {accuracy(fsg.nnx.merge(state)):.1%}")
    kept = fsg.selected(state)
    print("open units: " + ", ".join(f"{name} {keep.sum()} of {len(keep)}" for name, keep in kept.items()))
    module, draw, chance = fsg.nnx.merge(fsg.harden(state)), np.random.default_rng(1), []
    count = sum(int(keep.sum()) for keep in kept.values())
    print(f"the {count} open units: test accuracy {accuracy(module):.1%}")
    for _ in range(10):
        for gate in (module.gate0, module.gate1):
            gate.logits[...] = jnp.asarray(draw.permutation(gate.logits[...]))
        chance.append(accuracy(module))
    print(f"{count} units at random: test accuracy {np.mean(chance):.1%}, mean of 10 draws")


if __name__ == "__main__":
    main()
