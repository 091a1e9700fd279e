"""Which skip connections of a U-Net stay open: ``python examples/unet.py``.

Segmentation of made-up images: discs in noise that is nearly as strong. Three skips carry features from the
way down to the way up, at full, half and quarter resolution; a hard-concrete gate stands on each, and a penalty closes
channels that do not pay. Printed are the open channels of each skip, and the Dice coefficient on new images: with all
gates as trained, with the closed channels gone for good, and without each skip in turn. What a skip is worth is what
its absence costs.
"""

from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import fsg_jax as fsg

SIZE, LEVELS, WIDTH, BATCH = 24, 3, 8, 16


class UNet(nn.Module):
    """Logits (batch, height, width, 1) of images (batch, height, width, 1), with gates on the skips."""

    @nn.compact
    def __call__(self, x, train=False):
        """`train` draws the gates at random."""
        skips = []
        for level in range(LEVELS):
            x = nn.relu(nn.Conv(WIDTH, (3, 3), name=f"down{level}")(x))
            skips.append(fsg.Gate(kind="hard_concrete", name=f"skip{level}")(x, train=train))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.Conv(WIDTH, (3, 3), name="bottom")(x))
        for level in reversed(range(LEVELS)):
            x = jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)
            x = nn.relu(nn.Conv(WIDTH, (3, 3), name=f"up{level}")(jnp.concatenate([x, skips[level]], -1)))
        return nn.Conv(1, (1, 1), name="classify")(x)


def make_images(count: int, seed: int) -> dict:
    """``image`` and ``mask``, each (count, SIZE, SIZE, 1): two discs of brightness 1, and noise."""
    draw = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    mask = np.zeros((count, SIZE, SIZE), bool)
    for _ in range(2):
        y, x = draw.integers(3, SIZE - 3, (2, count, 1, 1))
        mask |= np.hypot(rows - y, columns - x) < draw.uniform(2, 6, (count, 1, 1))
    image = mask + 0.7 * draw.normal(size=mask.shape)
    return {"image": np.float32(image)[..., None], "mask": np.float32(mask)[..., None]}


def loss(outputs, batch):
    """Cross-entropy of every pixel (batch, height, width, 1)."""
    return optax.losses.sigmoid_binary_cross_entropy(outputs, batch["mask"])


def dice(outputs, batch):
    """``2 |A B| / (|A| + |B|)`` over all pixels of a batch, as a mean: values, and the weights that they have."""
    found, there = jnp.float32(outputs > 0), batch["mask"]
    return 2 * found * there / jnp.maximum(found + there, 1), found + there


def without(state: fsg.TrainState, skip: str) -> fsg.TrainState:
    """The state with all gates of one skip at 0."""
    gates = state.gates | {skip: jax.tree.map(lambda logits: jnp.full_like(logits, -100), state.gates[skip])}
    return replace(state, variables=state.variables | {"gates": gates})


def main(steps: int = 250, price: float = 5e-3) -> None:
    """Trains the network; `price` is the penalty of an open channel, in nats a pixel."""
    train, test = make_images(BATCH * steps, 0), make_images(200, 1)
    tx = fsg.routed(params=optax.adam(1e-2), gates=optax.adam(5e-2))
    state = fsg.init_state(UNet(), tx, jax.random.key(0), test["image"][:1])
    step = fsg.make_train_step(loss, penalty=fsg.gate_penalty("l0", price))
    for i in range(steps):
        state, _ = step(state, {name: array[BATCH * i : BATCH * (i + 1)] for name, array in train.items()})

    evaluate = fsg.make_eval_step(loss, metrics={"dice": dice})
    print(f"as trained: Dice {evaluate(state, test)['dice']:.3f}")
    print(f"gates of exactly 0 or 1: Dice {evaluate(fsg.harden(state), test)['dice']:.3f}")
    for name, kept in fsg.selected(state).items():
        closed = evaluate(without(state, name), test)["dice"]
        print(f"{name}: {kept.sum()} of {len(kept)} channels open; without them Dice {closed:.3f}")


if __name__ == "__main__":
    main()
