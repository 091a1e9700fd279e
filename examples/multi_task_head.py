"""A head of experts on a trunk of one's own, most labels of one task missing: ``python examples/multi_task_head.py``.

Handwritten digits: which one it is, is known of 5 % of the images; whether it is even, and whether it is 5 or more, of
all. A hidden layer is the trunk, CGC the head (``"ple"`` and ``"home"`` are called alike, and compile for longer). The
gate that mixes the experts for ``digit`` is moved in a pass of its own, by the loss of that task alone; all other
weights by the sum of the losses. Printed is the test accuracy of ``digit``, if it has its own labels alone and if the
other tasks help. Then how far one step moves the gate and the weights if no label ``digit`` is in the batch: the gate
must stand still to the last bit.
"""

import flax.linen as nn
import jax
import numpy as np
import optax

import fsg_jax as fsg
from fsg_jax.data import load_digits
from fsg_jax.routing import Pass

TASKS = {"digit": 10, "even": 2, "large": 2}


class Net(nn.Module):
    """The trunk and the head."""

    @nn.compact
    def __call__(self, x, train=False):
        """Logits by task, of images (batch, 8, 8, 1)."""
        x = nn.relu(nn.Dense(128, name="trunk")(x.reshape(len(x), -1)))
        head = fsg.expert_head("cgc", TASKS, expert_width=32, tower_hidden=(), name="head")
        return head(x, train=train)


def make_data(split: str, labelled: float) -> dict:
    """Images and three labels, -1 where one is missing; `labelled` is the share of images that have ``digit``."""
    digits = load_digits(split)
    digit = np.where(np.random.default_rng(0).uniform(size=len(digits)) < labelled, digits.labels, -1)
    image = np.float32(digits.images) / 255
    return {"image": image, "digit": digit, "even": digits.labels % 2, "large": digits.labels // 5}


def train(step, state: fsg.TrainState, data: dict, epochs: int) -> fsg.TrainState:
    """The state after `epochs` of batches of 128."""
    draw = np.random.default_rng(0)
    for _ in range(epochs):
        for rows in draw.permutation(len(data["image"]))[: 128 * 11].reshape(11, 128):
            state, _ = step(state, {name: array[rows] for name, array in data.items()})
    return state


def main(epochs: int = 20, labelled: float = 0.05) -> None:
    """Trains with the labels of ``digit`` alone, and with those of all tasks."""
    data, test = make_data("train", labelled), make_data("test", 1.0)
    loss = fsg.make_task_loss({t: fsg.where_present(fsg.losses.make_cross_entropy(key=t), t) for t in TASKS})
    labels = {"gate": r"params/head/level\d+/gate_digit/.*", "weights": ...}
    tx = fsg.routed(labels=labels, gate=optax.adam(2e-3), weights=optax.adam(2e-3))
    passes = [Pass(["gate"], lambda outputs, batch: {"digit": loss(outputs, batch)["digit"]}), Pass(["weights"])]
    step = jax.jit(
        fsg.make_train_step(loss, passes=passes, jit=False)
    )  # does not donate the state, which is used again
    start = fsg.init_state(Net(), tx, jax.random.key(0), data["image"][:1])

    none = np.full_like(data["digit"], -1)
    alone = train(step, start, {**data, "even": none, "large": none}, epochs)
    together = train(step, start, data, epochs)
    accuracy = {task: lambda y, b, task=task: fsg.metrics.make_accuracy(key=task)(y[task], b) for task in TASKS}
    score = fsg.make_eval_step(loss, metrics=accuracy)
    print(f"digit alone, of {(data['digit'] >= 0).sum()} labels: test accuracy {score(alone, test)['digit']:.1%}")
    found = score(together, test)
    print("with the other tasks: " + ", ".join(f"{task} {found[task]:.1%}" for task in TASKS))

    batch = {name: array[:128] for name, array in data.items()}
    after, _ = step(start, {**batch, "digit": none[:128]})
    leaves = [jax.tree.leaves(tree) for tree in (tx.labels(start.trainable), start.trainable, after.trainable)]
    for label in labels:
        moved = max(np.abs(np.subtract(b, a)).max() for one, a, b in zip(*leaves, strict=True) if one == label)
        print(f"a batch without the label digit moves the {label} by {moved:.1e}")


if __name__ == "__main__":
    main()
