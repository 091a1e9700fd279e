"""The library's side: models, states, batches and compiled training steps."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import fsg_jax as fsg
from experiments import devices
from experiments.bench.settings import Settings

GATE_LEARNING_RATE = 1e-2
SGD = {"learning_rate": 0.01, "momentum": 0.9, "weight_decay": 5e-4}
ADAMW = {"learning_rate": 1e-3, "weight_decay": 0.05}


def make_model(settings: Settings, name: str, *, gated: bool) -> nn.Module:
    """A model of the sizes of `settings`, float32 parameters, with sigmoid gates at their usual places or none."""
    resnet = name.startswith("resnet")
    sizes = {"width": settings.width} if resnet else {"patch_size": 4, "depth": settings.depth, "dim": settings.dim}
    return fsg.create_model(
        name,
        num_classes=settings.classes,
        gate=fsg.Gate if gated else None,
        dtype=jnp.dtype(settings.precision),
        **devices.model_options(name),
        **sizes,
    )


def make_optimizer(name: str, routing: str) -> Any:
    """SGD with momentum for a ResNet, AdamW for a ViT; Adam for the gates if `routing` moves them apart."""
    if name.startswith("resnet"):
        sgd = optax.sgd(SGD["learning_rate"], momentum=SGD["momentum"])
        weights = optax.chain(optax.add_decayed_weights(SGD["weight_decay"]), sgd)
    else:
        weights = optax.adamw(ADAMW["learning_rate"], weight_decay=ADAMW["weight_decay"])
    return weights if routing == "none" else fsg.routed(params=weights, gates=optax.adam(GATE_LEARNING_RATE))


def make_state(settings: Settings, name: str, *, gated: bool, routing: str, seed: int = 0) -> fsg.TrainState:
    """The state at step 0."""
    return _init(settings, name, gated, routing)(jax.random.key(seed))


@cache
def _init(settings: Settings, name: str, gated: bool, routing: str) -> Callable[..., fsg.TrainState]:
    model, tx = make_model(settings, name, gated=gated), make_optimizer(name, routing)
    inputs = np.zeros((1, settings.image, settings.image, 3), np.float32)
    return jax.jit(lambda key: fsg.init_state(model, tx, key, inputs))


def make_batch(settings: Settings, batch: int | None = None) -> dict[str, np.ndarray]:
    """Normalised images (batch, image, image, 3), float32, and labels, at random."""
    rng, size = np.random.default_rng(0), batch or settings.batch
    return {
        "image": rng.normal(size=(size, settings.image, settings.image, 3)).astype(np.float32),
        "label": rng.integers(settings.classes, size=size, dtype=np.int32),
    }


@dataclass
class Program:
    """A compiled training step with its state and batch: a `fsg_jax` side of a comparison.

    Attributes:
      name: unique among the sides.
      step: ``compiled(state, *inputs) -> (state, metrics)``.
      state: donated at every step.
      inputs: the other arguments, on the device.
      compile_seconds: of lowering and compiling.
      memory: bytes, see `program_memory`.
      flops: of a step, see `count_flops`.
      losses: loss of every step so far, on the device.
    """

    name: str
    step: Any
    state: Any
    inputs: tuple[Any, ...]
    compile_seconds: float
    memory: dict[str, int]
    flops: float
    losses: list[Any] = field(default_factory=list)

    def run(self, steps: int) -> None:
        """Dispatches `steps` steps without waiting in between, then waits for all."""
        for _ in range(steps):
            self.state, metrics = self.step(self.state, *self.inputs)
            if len(self.losses) < 2:
                self.losses.append(metrics["loss"])
        jax.block_until_ready(self.state)

    def row(self) -> dict[str, Any]:
        """Compile time, memory and the first loss, JSON-able."""
        loss = float(np.ravel(self.losses[0])[0]) if self.losses else None
        return {"compile_seconds": self.compile_seconds, **self.memory, "first_loss": loss}


def compile_program(name: str, step: Any, state: Any, *inputs: Any) -> Program:
    """Lowers and compiles the jitted `step`, which donates its state."""
    inputs = jax.device_put(inputs)
    start = time.perf_counter()
    compiled = step.lower(state, *inputs).compile()
    seconds = time.perf_counter() - start
    flops = count_flops(compiled, step, state, *inputs)
    return Program(name, compiled, state, inputs, seconds, program_memory(compiled), flops)


def step_program(settings: Settings, name: str, model: str, *, gated: bool, routing: str, every: int = 1) -> Program:
    """The library's training step as a user has it: its metrics included."""
    step = fsg.make_train_step(fsg.losses.cross_entropy, routing, gate_every=every)
    state = make_state(settings, model, gated=gated, routing=routing)
    return compile_program(name, step, state, make_batch(settings))


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
