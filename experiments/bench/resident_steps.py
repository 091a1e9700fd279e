"""Steps over a made-up data set in device memory, as the training loop runs them."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fsg_jax as fsg
from experiments.bench.models_jax import make_state
from experiments.bench.settings import Settings
from fsg_jax import augment
from fsg_jax.data.batches import shuffled
from fsg_jax.data.images import ImageDataset
from fsg_jax.data.resident import chunk_rows, make_resident_steps, put_dataset
from fsg_jax.typing import Transform


def make_dataset(settings: Settings) -> ImageDataset:
    """Random uint8 images and labels."""
    rng, size = np.random.default_rng(0), settings.image
    images = rng.integers(256, size=(settings.examples, size, size, 3), dtype=np.uint8)
    labels = rng.integers(settings.classes, size=settings.examples, dtype=np.int32)
    return ImageDataset(images, labels, tuple(str(i) for i in range(settings.classes)))


def make_transform() -> Transform:
    """Crop, flip and normalise: the usual augmentation of CIFAR."""
    return augment.chain(
        augment.random_crop(4), augment.random_flip(), augment.normalize((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    )


def make_step(routing: str = "none") -> Any:
    """The training step with augmentation, not jitted."""
    return fsg.make_train_step(fsg.losses.cross_entropy, routing, transform=make_transform(), jit=False)


@dataclass
class ResidentSteps:
    """A side of a comparison: calls of ``steps(state, data, rows)``, each of several training steps.

    Attributes:
      name: unique among the sides.
      steps: from `fsg_jax.data.resident.make_resident_steps`.
      state: donated at every call.
      data: on the device.
      rows: row numbers of one call, on the host, as in training.
    """

    name: str
    steps: Any
    state: Any
    data: Any
    rows: Any

    def run(self, calls: int) -> None:
        """Dispatches `calls` calls without waiting in between, then waits for all."""
        for _ in range(calls):
            self.state, _ = self.steps(self.state, self.data, self.rows)
        jax.block_until_ready(self.state)


def make_rows(settings: Settings, batch: int, steps: int, seed: int = 0) -> np.ndarray:
    """Row numbers (steps, batch) of the first steps of a shuffled run."""
    return chunk_rows(shuffled(settings.examples, batch, seed), 0, steps)


def resident_side(settings: Settings, name: str, model: str, dispatch: str, batch: int, steps: int) -> ResidentSteps:
    """A plain model trained on resident data, `steps` steps a call."""
    state = make_state(settings, model, gated=False, routing="none")
    call = make_resident_steps(make_step(), dispatch)
    return ResidentSteps(name, call, state, put_dataset(make_dataset(settings)), make_rows(settings, batch, steps))


def seed_side(settings: Settings, name: str, model: str, seeds: int, mode: str) -> ResidentSteps:
    """`seeds` runs side by side, one step a call; `mode` is that of `make_resident_steps`."""
    states = [make_state(settings, model, gated=True, routing="joint", seed=seed) for seed in range(seeds)]
    state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    rows = np.stack([make_rows(settings, settings.batch, 1, seed) for seed in range(seeds)])
    call = make_resident_steps(make_step("sequential"), "loop", seeds=mode)
    return ResidentSteps(name, call, state, put_dataset(make_dataset(settings)), rows)


@dataclass
class OneAfterAnother:
    """A side of a comparison: several runs, a call a run in turn, with one program."""

    name: str
    runs: list[ResidentSteps]

    def run(self, calls: int) -> None:
        """`calls` calls of every run."""
        for run in self.runs:
            run.run(calls)


def one_after_another(settings: Settings, name: str, model: str, seeds: int) -> OneAfterAnother:
    """The same runs as `seed_side`, each by itself."""
    call = make_resident_steps(make_step("sequential"), "loop")
    data, runs = put_dataset(make_dataset(settings)), []
    for seed in range(seeds):
        state = make_state(settings, model, gated=True, routing="joint", seed=seed)
        runs.append(ResidentSteps(f"seed {seed}", call, state, data, make_rows(settings, settings.batch, 1, seed)))
    return OneAfterAnother(name, runs)
