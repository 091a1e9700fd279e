"""From a configuration to model, gates, optimizers and step."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import fsg_jax as fsg
from experiments import devices
from experiments.config import Arm, Gate, Optimizer, Train
from fsg_jax.typing import Key, Loss, Transform


def make_step(experiment: Any, arm: Arm, loss: Loss, *, transform: Transform, **options: Any) -> fsg.TrainStep:
    """The training step of an arm, not yet jitted; `options` are further ones of `fsg_jax.make_train_step`."""
    penalty = fsg.gate_penalty("l0", experiment.gate.l0_weight, reduction="mean") if arm.l0_penalty else None
    return fsg.make_train_step(
        loss,
        routing=arm.routing,
        penalty=penalty,
        gate_every=experiment.gate.every if arm.routing == "sequential" else 1,
        accumulate=experiment.train.accumulate,
        transform=transform,
        jit=False,
        **options,
    )


def jit_stream_step(step: fsg.TrainStep) -> fsg.TrainStep:
    """`step` jitted, the state donated, its metrics with leading axes (runs, steps) of one each."""

    def stacked(state: fsg.TrainState, batch: Any) -> tuple[fsg.TrainState, Any]:
        state, metrics = step(state, batch)
        return state, jax.tree.map(lambda x: jnp.reshape(x, (1, 1, *x.shape)), metrics)

    return jax.jit(stacked, donate_argnums=0)


def make_init(
    experiment: Any, arm: Arm, model: nn.Module, steps_per_epoch: int, inputs: Any
) -> Callable[[Key], fsg.TrainState]:
    """``init(key)``, jitted: the state at step 0. `inputs` is an example of what the model is given.

    Raises:
      ValueError: the model does not fit the inputs, or its options are wrong.
    """
    tx = make_optimizer(experiment, arm, steps_per_epoch)
    init = jax.jit(lambda key: fsg.init_state(model, tx, key, inputs, ema_decay=experiment.train.ema_decay))
    jax.eval_shape(init, jax.random.key(0))
    return init


def make_model(experiment: Any, arm: Arm, num_outputs: int, name: str, **options: Any) -> nn.Module:
    """The model of an arm: the same for all arms but for the gate put into it."""
    gate, dtype = make_gate(experiment.gate, arm), jnp.dtype(experiment.train.dtype)
    options = devices.model_options(name) | options
    return fsg.create_model(name, num_classes=num_outputs, gate=gate, dtype=dtype, **options)


def make_gate(config: Gate, arm: Arm) -> Any:
    """The gate factory of an arm, or None."""
    if arm.gate == "none":
        return None
    if arm.gate == "squeeze_excite":
        return fsg.SqueezeExcite
    if arm.kind == "hard_concrete":
        logit = math.log(config.l0_open / (1 - config.l0_open))
        return partial(fsg.Gate, kind=arm.kind, logits_init="constant", init_value=logit)
    return partial(fsg.Gate, kind=arm.kind, logits_init=config.init, init_value=config.init_value)


def make_optimizer(experiment: Any, arm: Arm, steps_per_epoch: int) -> Any:
    """One optimizer for everything, or one for the weights and one for the gates."""
    weights = weight_optimizer(experiment.optimizer, experiment.train, steps_per_epoch)
    if arm.routing == "none":
        return weights
    clip = [] if experiment.gate.clip is None else [optax.clip_by_global_norm(experiment.gate.clip)]
    return fsg.routed(params=weights, gates=optax.chain(*clip, optax.adam(experiment.gate.learning_rate)))


def make_schedule(config: Optimizer, train: Train, steps_per_epoch: int) -> optax.Schedule:
    """Linear warm-up to the peak, then a cosine or a straight line down to 0."""
    total, warmup = train.epochs * steps_per_epoch, round(config.warmup_epochs * steps_per_epoch)
    if config.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warmup, total)
    down = optax.linear_schedule(config.learning_rate, 0.0, total - warmup)
    return optax.join_schedules([optax.linear_schedule(0.0, config.learning_rate, max(warmup, 1)), down], [warmup])


def weight_optimizer(config: Optimizer, train: Train, steps_per_epoch: int) -> optax.GradientTransformation:
    """Clipping, weight decay of the weights alone, and the schedule."""
    schedule = make_schedule(config, train, steps_per_epoch)
    clip = [] if config.clip is None else [optax.clip_by_global_norm(config.clip)]
    if config.name == "adamw":
        return optax.chain(*clip, optax.adamw(schedule, weight_decay=config.weight_decay, mask=is_weight))
    decay = optax.add_decayed_weights(config.weight_decay, mask=is_weight)
    return optax.chain(*clip, decay, optax.sgd(schedule, momentum=config.momentum, nesterov=True))


def is_weight(tree: Any) -> Any:
    """True at the leaves that are not gate logits."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[0].key != fsg.GATES, tree)
