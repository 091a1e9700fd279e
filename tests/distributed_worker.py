"""One of several processes that train together; run by test_distributed.py.

Arguments: folder, number of processes, this process, port of process 0, fsdp, the step at which to wait for SIGKILL,
or -1, and the file descriptor that is told of the waiting.
"""

import os
import signal
import sys
import warnings
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import optax
from jax.experimental import multihost_utils
from toy import Mlp

import fsg_jax as fsg
from fsg_jax import augment, data
from fsg_jax.training.sharding import initialize_distributed, make_mesh, shard_batch, shard_state, state_shardings

STEPS, EVERY, BATCH = 8, 2, 16


class Net(nn.Module):
    """The tiny model on flattened images."""

    @nn.compact
    def __call__(self, x, *, train: bool = False):
        return Mlp(width=32, batch_norm=True, dropout=0.2, name="mlp")(x.reshape(x.shape[0], -1), train=train)


def dataset():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (80, 8, 8, 1), dtype=np.uint8)
    return data.ImageDataset(images, rng.integers(0, 3, 80).astype(np.int32), ("a", "b", "c"))


def setup(fsdp):
    mesh = make_mesh(fsdp=fsdp)
    tx = fsg.routed(params=optax.sgd(0.1, momentum=0.9), gates=optax.adam(0.05))
    state = fsg.init_state(Net(), tx, jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32), ema_decay=0.9)
    state = shard_state(state, mesh, min_size=256)
    step = fsg.make_train_step(
        fsg.losses.cross_entropy,
        "sequential",
        transform=augment.chain(augment.random_crop(1), augment.normalize(0.5, 0.25)),
        shardings=state_shardings(state, mesh, min_size=256),
    )
    return mesh, state, step


def train(folder, fsdp, wait_at, tell):
    mesh, state, step = setup(fsdp)
    checkpointer = fsg.Checkpointer(folder / "checkpoints")
    if checkpointer.steps():
        state = checkpointer.restore(state).state
    first = int(state.step)
    print(f"process {jax.process_index()} of {jax.process_count()} starts at step {first}", flush=True)
    loader = data.make_loader(
        dataset(),
        BATCH,
        seed=0,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        start=first,
    )
    for t, batch in zip(range(first, STEPS), loader, strict=False):
        if t == wait_at:
            checkpointer.wait()
            os.write(tell, b".")
            signal.pause()
        state, _ = step(state, shard_batch({k: batch[k] for k in ("image", "label")}, mesh))
        if (t + 1) % EVERY == 0:
            checkpointer.save(state, data={"step": t + 1})
    checkpointer.close()
    return state


def main(folder, count, index, port, fsdp, wait_at, tell):
    warnings.simplefilter("error", UserWarning)
    warnings.filterwarnings("ignore", "Error reading persistent compilation cache entry")  # as in pyproject.toml
    warnings.filterwarnings("default", message=".*is damaged.*")
    initialize_distributed(f"localhost:{port}", count, index)
    assert jax.process_count() == count
    state = train(folder, fsdp, wait_at, tell)
    leaves = jax.tree.leaves((state.variables, state.opt_state, state.ema, jax.random.key_data(state.rng)))
    leaves = [multihost_utils.process_allgather(leaf, tiled=True) for leaf in leaves]
    if index == 0:
        np.savez(folder / "final.npz", *leaves)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
