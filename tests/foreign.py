"""Models as users have them: other flags, other collections, other streams; a table for test_foreign_models.py."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.core import freeze

import fsg_jax as fsg


class Flagged(nn.Module):
    """Dropout, BatchNorm and a stochastic gate; subclasses name the flag."""

    @nn.compact
    def run(self, x, train):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5, name="norm")(nn.Dense(6, name="first")(x))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        x = fsg.Gate(kind="hard_concrete", name="gate")(x, train=train)
        return nn.Dense(1, name="second")(x)


class Train(Flagged):
    def __call__(self, x, train):
        return self.run(x, train)


class Training(Flagged):
    def __call__(self, x, *, training=False):
        return self.run(x, training)


class IsTraining(Flagged):
    def __call__(self, x, is_training=True):
        return self.run(x, is_training)


class Deterministic(Flagged):
    def __call__(self, x, deterministic=True):
        return self.run(x, not deterministic)


class Keywords(Flagged):
    def __call__(self, x, **options):
        return self.run(x, options.get("learning", False))


class Mode(Flagged):
    def __call__(self, x, mode="test"):
        return self.run(x, mode == "train")


class Attribute(Flagged):
    train: bool = False

    def __call__(self, x):
        return self.run(x, self.train)


class NoFlag(Flagged):
    def __call__(self, x):
        return self.run(x, False)


class Sown(nn.Module):
    """Sows into two collections and counts its training steps."""

    @nn.compact
    def __call__(self, x, train=False):
        count = self.variable("count", "steps", lambda: jnp.zeros((), jnp.int32))
        if train:
            count.value = count.value + 1
        x = nn.Dense(6)(x)
        self.sow("intermediates", "hidden", x)
        self.sow("attention", "map", nn.softmax(x))
        return nn.Dense(1)(fsg.Gate(name="gate")(x))


class Lora(nn.Module):
    """A trainable collection and a random stream of its own."""

    @nn.compact
    def __call__(self, x, train=False):
        scale = self.variable("lora", "scale", lambda: jnp.ones(4))
        if train:
            x = x + 0.1 * jax.random.normal(self.make_rng("noise"), x.shape)
        return nn.Dense(1)(fsg.Gate(name="gate")(nn.Dense(6)(x * scale.value[None])))


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return fsg.Gate(kind="hard_sigmoid", name="gate")(nn.Dense(6)(x)), None


class Stacked(nn.Module):
    """Gates under scan, vmap and remat, beside a plain one."""

    @nn.compact
    def __call__(self, x):
        axes = {"variable_axes": {"params": 0, "gates": 0}, "split_rngs": {"params": True, "gates": True}}
        x = fsg.Gate(name="plain")(nn.Dense(6)(x))
        x, _ = nn.scan(Layer, length=3, **axes)(name="layers")(x, None)
        heads = nn.vmap(fsg.Gate, in_axes=None, out_axes=1, axis_size=2, **axes)(name="heads")(x)
        return nn.Dense(1)(nn.remat(fsg.Gate)(name="remat")(heads.mean(1)))


class Soft(fsg.Gate):
    """A gate class with a rule of its own."""

    def values(self, logits, key=None):
        return jnp.tanh(logits) ** 2


class Own(nn.Module):
    """Own logits in the collection ``"gates"``."""

    @nn.compact
    def __call__(self, x):
        logits = self.variable("gates", "mine", lambda: jnp.full(x.shape[-1], 0.3)).value
        return x * self.values(logits)[None]

    def values(self, logits):
        return nn.softplus(logits)


def halving(step):
    return 0.5**step


class OwnGates(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = Soft(name="soft", temperature=2.0)(nn.Dense(6)(x))
        x = fsg.Gate(kind=jnp.arctan, name="function")(x)
        x = fsg.Gate(temperature=halving, name="annealed")(x)
        return nn.Dense(1)(Own(name="own")(x))


class Several(nn.Module):
    """Two inputs, neither of them an image."""

    @nn.compact
    def __call__(self, tokens, mask):
        x = nn.Embed(10, 6)(tokens) * mask[..., None]
        return nn.Dense(1)(fsg.Gate(name="gate")(x.sum(1)))


def low(variables):
    return jax.tree.map(lambda a: a.astype(jnp.bfloat16) if jnp.issubdtype(a.dtype, jnp.floating) else a, variables)


@dataclass(frozen=True)
class Foreign:
    """A model, how it is given to `init_state`, and what it is given."""

    model: nn.Module
    options: dict[str, Any] = field(default_factory=dict)
    change: Callable[[Any], Any] | None = None
    """Makes ``variables=`` from the initial ones."""
    inputs: Any = "image"
    tx: Any = None


TX = fsg.routed(params=optax.adam(1e-2), gates=optax.adam(1e-2))
LORA = fsg.routed(params=optax.adam(1e-2), gates=optax.adam(1e-2), lora=optax.sgd(0.1))
FOREIGN = {
    "train": Foreign(Train()),
    "training": Foreign(Training()),
    "is_training": Foreign(IsTraining()),
    "deterministic": Foreign(Deterministic()),
    "attribute": Foreign(Attribute()),
    "keywords": Foreign(Keywords(), {"train_flag": "learning"}),
    "mode": Foreign(Mode(), {"train_flag": lambda train: {"mode": "train" if train else "test"}}),
    "sown": Foreign(Sown(), {"ema_decay": 0.9}),
    "sown, given": Foreign(Sown(), {"ema_decay": 0.9}, change=dict),
    "frozen dict": Foreign(Train(), change=freeze),
    "bfloat16": Foreign(Train(), {"ema_decay": 0.9}, change=low),
    "bfloat16 gates": Foreign(Train(), change=lambda v: v | {"gates": low(v["gates"])}),
    "without gates": Foreign(Train(), change=lambda v: {k: tree for k, tree in v.items() if k != "gates"}),
    "lora": Foreign(Lora(), {"trainable": ("params", "gates", "lora"), "rngs": ("noise",)}, tx=LORA),
    "stacked": Foreign(Stacked()),
    "own gates": Foreign(OwnGates()),
    "several": Foreign(Several(), inputs=("tokens", "mask")),
    "function": Foreign(Several(), inputs=lambda batch: (batch["tokens"], batch["mask"])),
}


def batch(size: int = 8) -> dict[str, jax.Array]:
    x = jnp.sin(jnp.arange(size * 4, dtype=jnp.float32)).reshape(size, 4)
    tokens = jnp.arange(size * 4).reshape(size, 4) % 10
    return {"image": x, "target": x[:, 0], "tokens": tokens, "mask": (tokens != 0).astype(jnp.float32)}


def example(case: Foreign) -> tuple[Any, ...]:
    data = batch(1)
    return (data["tokens"], data["mask"]) if isinstance(case.model, Several) else (data["image"],)


def initial(case: Foreign) -> dict[str, Any]:
    extra = {"train": False} if isinstance(case.model, Train) else {}
    return dict(case.model.init(jax.random.key(7), *example(case), **extra))


def state(case: Foreign) -> fsg.TrainState:
    options = dict(case.options)
    if case.change is not None:
        options["variables"] = case.change(initial(case))
    return fsg.init_state(case.model, case.tx or TX, jax.random.key(0), *example(case), **options)
