"""Values with which no run can start, found before anything is written."""

import math
from collections.abc import Callable
from dataclasses import asdict, fields, is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from experiments.config import flatten

Rule = tuple[str, Callable[[Any], bool]]

COUNT: Rule = ("an integer, 1 or more", lambda v: isinstance(v, int) and v >= 1)
NOT_NEGATIVE: Rule = ("a finite number, 0 or more", lambda v: 0 <= v < math.inf)
POSITIVE: Rule = ("a finite number above 0", lambda v: 0 < v < math.inf)
SHARE: Rule = ("a number in [0, 1)", lambda v: 0 <= v < 1)
OPEN_SHARE: Rule = ("a number in (0, 1)", lambda v: 0 < v < 1)

RULES: dict[str, Rule] = {
    "data.validation": COUNT,
    "data.num_train": COUNT,
    "data.workers": ("an integer, 0 or more", lambda v: isinstance(v, int) and v >= 0),
    "data.threads": COUNT,
    "data.frame_size": COUNT,
    "data.input_size": COUNT,
    "data.frames_per_polyp": COUNT,
    "data.validation_frames": COUNT,
    "data.test_frames": COUNT,
    "gate.learning_rate": NOT_NEGATIVE,
    "gate.clip": POSITIVE,
    "gate.every": COUNT,
    "gate.l0_weight": NOT_NEGATIVE,
    "gate.l0_open": OPEN_SHARE,
    "optimizer.learning_rate": NOT_NEGATIVE,
    "optimizer.warmup_epochs": NOT_NEGATIVE,
    "optimizer.momentum": SHARE,
    "optimizer.weight_decay": NOT_NEGATIVE,
    "optimizer.clip": POSITIVE,
    "optimizer.label_smoothing": SHARE,
    "train.epochs": COUNT,
    "train.fsdp": COUNT,
    "train.batch_size": COUNT,
    "train.eval_batch_size": COUNT,
    "train.accumulate": COUNT,
    "train.ema_decay": OPEN_SHARE,
    "train.log_every": COUNT,
    "train.checkpoint_every": COUNT,
    "train.keep_last": COUNT,
}
"""By key, where an experiment has it; None, where a key allows it, always passes."""


def check(experiment: Any) -> None:
    """Compares every value with the choices of its type and with `RULES`.

    Raises:
      ValueError: the key, what it is and what was expected.
    """
    _check_choices(experiment)
    values = flatten(asdict(experiment))
    for key, (expected, holds) in RULES.items():
        if values.get(key) is not None and not holds(values[key]):
            raise ValueError(f"{key} is {values[key]}; expected {expected}")
    train = experiment.train
    if train.batch_size % train.accumulate:
        raise ValueError(f"train.batch_size is {train.batch_size}; expected a multiple of train.accumulate")
    if experiment.optimizer.warmup_epochs >= train.epochs:
        raise ValueError(
            f"optimizer.warmup_epochs is {experiment.optimizer.warmup_epochs}, which must be less than train.epochs, "
            f"{train.epochs}"
        )


def _check_choices(config: Any, prefix: str = "") -> None:
    hints = get_type_hints(type(config))
    for field in fields(config):
        key, value = f"{prefix}{field.name}", getattr(config, field.name)
        if is_dataclass(value):
            _check_choices(value, f"{key}.")
        choices = _choices(hints[field.name])
        wrong = [v for v in (value if isinstance(value, tuple) else (value,)) if choices and v not in choices]
        if wrong:
            raise ValueError(f"{key} is {wrong[0]!r}; expected one of {', '.join(map(repr, choices))}")


def _choices(hint: Any) -> tuple[Any, ...]:
    """What a Literal, or each element of a tuple of them, may be; empty for other types."""
    if get_origin(hint) is tuple:
        return _choices(get_args(hint)[0])
    return get_args(hint) if get_origin(hint) is Literal else ()
