"""The library's sides of a comparison: models, states, data and training steps."""

import itertools
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import fsg_jax as fsg
from experiments import devices
from experiments.bench.settings import Settings
from experiments.bench.timing import Side
from fsg_jax import augment
from fsg_jax.data.batches import shuffled
from fsg_jax.data.images import ImageDataset
from fsg_jax.data.resident import chunk_rows, make_resident_steps, put_dataset
from fsg_jax.models.fused_attention import fused_attention
from fsg_jax.models.vit import SelfAttention

GATE_LEARNING_RATE = 1e-2
ATTENTIONS = {"einsum": None} | {
    kernel: partial(SelfAttention, attend=partial(fused_attention, implementation=kernel))
    for kernel in ("xla", "cudnn")
}
SGD = {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4}
ADAMW = {"lr": 1e-3, "weight_decay": 0.05}


def make_model(settings: Settings, name: str, *, gated: bool) -> nn.Module:
    """A model of the sizes of `settings`, float32 parameters, with sigmoid gates at their usual places or none."""
    sizes: dict[str, dict[str, Any]] = {
        "resnet18": {"width": settings.width},
        "vit_tiny": {
            "patch_size": 4,
            "depth": settings.depth,
            "dim": settings.dim,
            "mixer": ATTENTIONS[settings.attention],
        },
        "efficientnet_b0": {},
    }
    options: dict[str, Any] = {"gate": fsg.Gate if gated else None, "dtype": jnp.dtype(settings.precision)}
    suited = devices.model_options(name)
    if settings.norm != "auto":
        suited.pop("norm", None)
        suited |= devices.fast_norm(name) if settings.norm == "fast" else {}
    return fsg.create_model(name, num_classes=settings.classes, **options, **sizes[name], **suited)


def make_optimizer(name: str, routing: str) -> Any:
    """AdamW for a ViT, SGD with momentum for the others; Adam for the gates if `routing` moves them apart."""
    if name.startswith("vit"):
        weights = optax.adamw(ADAMW["lr"], weight_decay=ADAMW["weight_decay"])
    else:
        sgd = optax.sgd(SGD["lr"], momentum=SGD["momentum"])
        weights = optax.chain(optax.add_decayed_weights(SGD["weight_decay"]), sgd)
    return weights if routing == "none" else fsg.routed(params=weights, gates=optax.adam(GATE_LEARNING_RATE))


def make_state(
    settings: Settings, name: str, *, gated: bool = False, routing: str = "none", seed: int = 0
) -> fsg.TrainState:
    """The state at step 0."""
    return _init(settings, name, gated, routing)(jax.random.key(seed))


@cache
def _init(settings: Settings, name: str, gated: bool, routing: str) -> Callable[..., fsg.TrainState]:
    model, tx = make_model(settings, name, gated=gated), make_optimizer(name, routing)
    inputs = np.zeros((1, settings.image, settings.image, 3), np.float32)
    return jax.jit(lambda key: fsg.init_state(model, tx, key, inputs))


def make_batch(settings: Settings) -> dict[str, np.ndarray]:
    """Normalised images (batch, image, image, 3), float32, and labels, at random."""
    rng, shape = np.random.default_rng(0), (settings.batch, settings.image, settings.image, 3)
    images = rng.normal(size=shape).astype(np.float32)
    return {"image": images, "label": rng.integers(settings.classes, size=settings.batch, dtype=np.int32)}


def make_dataset(settings: Settings) -> ImageDataset:
    """Random uint8 images and labels."""
    rng, shape = np.random.default_rng(0), (settings.examples, settings.image, settings.image, 3)
    images = rng.integers(256, size=shape, dtype=np.uint8)
    labels = rng.integers(settings.classes, size=settings.examples, dtype=np.int32)
    return ImageDataset(images, labels, tuple(str(i) for i in range(settings.classes)))


def make_step(routing: str = "none") -> Any:
    """The training step with the usual augmentation of CIFAR, crop, flip and normalise; not jitted."""
    normalize = augment.normalize((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    transform = augment.chain(augment.random_crop(4), augment.random_flip(), normalize)
    return fsg.make_train_step(fsg.losses.cross_entropy, routing, transform=transform, jit=False)


def side(step: Callable[..., Any], state: Any, arguments: Iterator[tuple[Any, ...]], **options: Any) -> Side:
    """Steps ``state, metrics = step(state, *arguments)``, dispatched without waiting in between.

    Args:
      step: donates the state.
      state: before the first step.
      arguments: of every step in turn.
      **options: of `Side`.
    """

    def call() -> jax.Array:
        nonlocal state
        state, metrics = step(state, *next(arguments))
        return metrics["loss"]

    return Side(call, **options)


def compiled_side(
    settings: Settings, model: str, *, gated: bool = False, routing: str = "none", every: int = 1
) -> Side:
    """The compiled training step as a user has it, its metrics included, on one batch on the device; one is taken."""
    step: Any = fsg.make_train_step(fsg.losses.cross_entropy, routing, gate_every=every)
    state = make_state(settings, model, gated=gated, routing=routing)
    batch = jax.device_put(make_batch(settings))
    start = time.perf_counter()
    compiled = step.lower(state, batch).compile()
    seconds, flops = time.perf_counter() - start, count_flops(compiled, step, state, batch)
    made = side(compiled, state, itertools.repeat((batch,)), flops=flops)
    made.about = {"compile_seconds": seconds, **program_memory(compiled), "first_loss": float(made.run(1))}
    return made


def program_memory(compiled: Any) -> dict[str, int]:
    """Bytes that a compiled program needs by its own analysis: temporaries, and with arguments and results in all."""
    memory = compiled.memory_analysis()
    kept = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    temporary = int(memory.temp_size_in_bytes)
    return {"temporary_bytes": temporary, "memory_bytes": temporary + int(kept)}


def device_peak_bytes() -> int | None:
    """Most bytes in use on the device since the process began, where it tells; only ever grows."""
    statistics = jax.devices()[0].memory_stats()
    return None if statistics is None else statistics.get("peak_bytes_in_use")


def count_flops(compiled: Any, step: Any, *arguments: Any) -> float:
    """Floating-point operations of one call of the jitted `step`, `compiled` here, by XLA's cost analysis.

    They are those of the program for the host's CPU, wherever it runs, so that the count, after dead code has gone,
    is one for all devices: on others the analysis cannot look into calls of libraries.
    """
    if jax.default_backend() != "cpu":
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)
        with jax.default_device(jax.devices("cpu")[0]):
            compiled = step.lower(*shapes).compile()
    return float(compiled.cost_analysis()["flops"])


def resident_side(settings: Settings, model: str, dispatch: str, *, batch: int, steps: int) -> Side:
    """A plain model trained on data in device memory, `steps` steps a call."""
    data, order = put_dataset(make_dataset(settings)), shuffled(settings.examples, batch, 0)
    arguments = ((data, chunk_rows(order, start, steps)) for start in itertools.count(step=steps))
    return side(make_resident_steps(make_step(), dispatch), make_state(settings, model), arguments, units=steps)


def seeds_side(settings: Settings, model: str, seeds: int, mode: str | None) -> Side:
    """Routed runs on resident data, one step of every run a call.

    Args:
      settings: sizes.
      model: its name.
      seeds: number of runs.
      mode: of `make_resident_steps`, which makes one program of the runs; None: a program a run, one after another.
    """
    step, data = make_resident_steps(make_step("sequential"), "loop", seeds=mode), put_dataset(make_dataset(settings))
    states = [make_state(settings, model, gated=True, routing="joint", seed=seed) for seed in range(seeds)]
    rows = [chunk_rows(shuffled(settings.examples, settings.batch, seed), 0, 1) for seed in range(seeds)]
    if mode is None:
        runs = [side(step, state, itertools.repeat((data, r))) for state, r in zip(states, rows, strict=True)]
        return Side(lambda: [run.call() for run in runs], units=seeds)
    together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    return side(step, together, itertools.repeat((data, np.stack(rows))), units=seeds)
