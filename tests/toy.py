"""Tiny gated models and plain references that several test files share."""

from functools import cache
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import fsg_jax as fsg

ACCURACY = MappingProxyType({"accuracy": fsg.metrics.accuracy})


class Mlp(nn.Module):
    """Two layers with a gate between them, and BatchNorm and Dropout where asked for."""

    gate: Any = fsg.Gate
    width: int = 6
    classes: int = 3
    batch_norm: bool = False
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x, *, train: bool = False):
        x = nn.Dense(self.width, name="first")(x)
        if self.batch_norm:
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(x)
        x = nn.Dropout(self.dropout, deterministic=not train)(nn.tanh(x))
        if self.gate is not None:
            x = self.gate(name="gate")(x, train=train)
        return nn.Dense(self.classes, name="second")(x)


def batch(seed: int = 0, size: int = 8, features: int = 4, classes: int = 3) -> dict[str, jax.Array]:
    """Random features and labels."""
    a, b = jax.random.split(jax.random.key(100 + seed))
    return {"image": jax.random.normal(a, (size, features)), "label": jax.random.randint(b, (size,), 0, classes)}


@cache
def two_optimizers(rate: float = 0.1, gate_rate: float = 0.05):
    """SGD with momentum for the weights, Adam for the gates."""
    return fsg.routed(params=optax.sgd(rate, momentum=0.9), gates=optax.adam(gate_rate))


def new_state(model: nn.Module | None = None, tx: Any = None, **kwargs: Any) -> fsg.TrainState:
    """A state of `Mlp` from key 0."""
    return fsg.init_state(model or Mlp(), tx or two_optimizers(), jax.random.key(0), jnp.zeros((1, 4)), **kwargs)


@cache
def train_step(routing: str, **kwargs: Any) -> fsg.TrainStep:
    """The jitted step with cross-entropy, compiled once for all tests that use it."""
    return fsg.make_train_step(fsg.losses.cross_entropy, routing, **{"metrics": ACCURACY, **kwargs})
