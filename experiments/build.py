"""From a configuration to model, gates, optimizers and step."""

import math
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import fsg_jax as fsg
from experiments import devices, pretrained
from experiments.config import Arm, BaseExperiment, Gate, Optimizer, Train, check_bounded
from fsg_jax._checks import expect
from fsg_jax.typing import Key, Loss, Transform


class Program(NamedTuple):
    """What every task computes with."""

    init: Callable[[Key], fsg.TrainState]
    """The state at step 0, jitted."""
    step: fsg.TrainStep
    """The training step of the arm, not yet jitted."""
    placement: devices.Placement
    shardings: Any
    """Where the leaves of the state lie; None on one device."""


def make_program(
    experiment: BaseExperiment,
    steps_per_epoch: int,
    model: nn.Module,
    example: Any,
    loss: Loss,
    transform: Transform,
    weights: Mapping[str, Any] | None = None,
    tx: Any = None,
    **options: Any,
) -> Program:
    """Puts model, optimizers and step of an arm together.

    Args:
      experiment: of which arm, gate, optimizer and train are used.
      steps_per_epoch: for the schedule.
      model: from `make_model`.
      example: of what the model is given.
      loss: of the weights.
      transform: of a batch.
      weights: pretrained backbones by name, see `experiments.pretrained.starting_from`; None: all start by the seed.
      tx: the optimizers, if not those of the arm; `options` then have the passes.
      options: further ones of `fsg_jax.make_train_step`.

    Raises:
      ValueError: the model does not fit the inputs or into memory, its options are wrong, or the steps are too many.
    """
    arm, gate, train = experiment.arm, experiment.gate, experiment.train
    check_bounded("train.epochs", train.epochs, 1, (2**31 - 1) // steps_per_epoch)  # the step counter has 32 bits
    tx = tx or make_optimizer(gate, experiment.optimizer, train, arm, steps_per_epoch)

    def init(key: Key) -> fsg.TrainState:
        start = partial(fsg.init_state, model, tx, key, example, ema_decay=train.ema_decay)
        state = start()
        return start(variables=pretrained.starting_from(state.variables, model, weights)) if weights else state

    state = jax.tree.leaves(jax.eval_shape(init, jax.random.key(0)).variables)
    needed, there = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in state), devices.memory()
    gigabytes = f"at most {there / 1e9:.0f} GB, the memory of the devices"
    expect(needed <= there, f"{experiment.model}: variables", gigabytes, f"{needed / 1e9:.0f} GB")
    placement = devices.placement(train.fsdp, train.batch_size)
    shardings = placement.shardings(init)
    step = fsg.make_train_step(
        loss,
        routing="none" if "passes" in options else arm.routing,
        penalty=fsg.gate_penalty("l0", gate.l0_weight, reduction="mean") if arm.l0_penalty else None,
        gate_every=gate.every if arm.routing == "sequential" else 1,
        accumulate=train.accumulate,
        transform=transform,
        jit=False,
        shardings=shardings,
        **options,
    )
    return Program(init, step, placement, shardings)


def make_model(gate: Gate, arm: Arm, dtype: str, num_outputs: int, name: str, **options: Any) -> nn.Module:
    """The model of an arm: the same for all arms but for the gate put into it."""
    if name == "multistream":
        fast = devices.model_options(options["backbone"])
        options["backbone_options"] = fast | options["backbone_options"]
    options = devices.model_options(name) | options
    return fsg.create_model(name, num_classes=num_outputs, gate=make_gate(gate, arm), dtype=jnp.dtype(dtype), **options)


def make_gate(config: Gate, arm: Arm) -> Any:
    """The gate factory of an arm, or None."""
    if arm.gate == "none":
        return None
    if arm.gate == "squeeze_excite":
        return fsg.SqueezeExcite
    if arm.kind == "hard_concrete":
        return _static_gate(arm.kind, "constant", math.log(config.l0_open / (1 - config.l0_open)))
    return _static_gate(arm.kind, config.init, config.init_value)


@cache
def _static_gate(kind: str, init: str, value: float) -> Any:
    """The same object for equal arguments, so that models with it are equal and share their programs."""
    return partial(fsg.Gate, kind=kind, logits_init=init, init_value=value)


def make_optimizer(gate: Gate, config: Optimizer, train: Train, arm: Arm, steps_per_epoch: int) -> Any:
    """One optimizer for everything, or one for the weights and one for the gates."""
    weights = weight_optimizer(config, train.epochs, steps_per_epoch)
    expect(arm.routing != "tasks", "arm.routing", "none, joint or sequential without a head of experts", "tasks")
    if arm.routing == "none":
        return weights
    return fsg.routed(params=weights, gates=optax.chain(*clipping(gate.clip), optax.adam(gate.learning_rate)))


def make_schedule(config: Optimizer, epochs: int, steps_per_epoch: int) -> optax.Schedule:
    """Linear warm-up to the peak, then a cosine or a straight line down to 0, or half of the rate ever so often."""
    total, warmup = epochs * steps_per_epoch, round(config.warmup_epochs * steps_per_epoch)
    if config.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warmup, total)
    down = optax.linear_schedule(config.learning_rate, 0.0, total - warmup)
    if config.schedule == "halving":
        every = max(1, round(config.halve_every * steps_per_epoch))
        halvings = {step - warmup: 0.5 for step in range(every, total, every) if step > warmup}
        down = optax.piecewise_constant_schedule(config.learning_rate, halvings)
    return optax.join_schedules([optax.linear_schedule(0.0, config.learning_rate, max(warmup, 1)), down], [warmup])


def weight_optimizer(config: Optimizer, epochs: int, steps_per_epoch: int) -> optax.GradientTransformation:
    """Clipping, weight decay of the weights alone, and the schedule."""
    schedule, clip = make_schedule(config, epochs, steps_per_epoch), clipping(config.clip)
    if config.name == "adamw":
        return optax.chain(*clip, optax.adamw(schedule, weight_decay=config.weight_decay, mask=fsg.is_weight))
    decay = optax.add_decayed_weights(config.weight_decay, mask=fsg.is_weight)
    return optax.chain(*clip, decay, optax.sgd(schedule, momentum=config.momentum, nesterov=config.nesterov))


def clipping(norm: float | None) -> list[optax.GradientTransformation]:
    """Clipping of the global norm, if there is any."""
    return [] if norm is None else [optax.clip_by_global_norm(norm)]
