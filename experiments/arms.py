"""Arms beside those of `experiments.config`, as in ``--add-arm NAME from=ARM key=value ...``."""

import ast
import re
from dataclasses import asdict, replace
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from experiments.config import ARMS, AddedArm, Arm, BaseExperiment, change, check, check_values, flatten, in_arm
from experiments.errors import UserError
from experiments.run_folder import EXECUTION
from fsg_jax._checks import check_choice, did_you_mean

E = TypeVar("E", bound=BaseExperiment)

FIXED = EXECUTION | {
    *("name", "train.test_on", "train.validate_every"),
    *("data.name", "data.path", "data.source", "data.checksum", "data.download"),
    *("data.validation", "data.index", "data.splits", "data.fold", "data.depth_root", "data.validation_frames"),
    *("data.test_frames", "target", "model.streams", "model.pretrained", "model.pretrained_digest"),
    *("model.pretrained_part", "model.widths"),
}
"""Settings that neither differ between arms nor are searched: they do not change what is learned, or change how it is
judged."""


def add_arm(experiment: E, name: str = "", *words: str) -> E:
    """`experiment` with one more arm: the overrides in `words`, on top of those of the arm in ``from=ARM``, if any.

    Raises:
      UserError: the name, an override, or what they are together is wrong; the arm, the key and the value are named.
    """
    arms = ARMS | {known: dict(overrides) for known, overrides in experiment.added_arms}
    try:
        if name in arms or not re.fullmatch(r"[A-Za-z0-9][\w-]{0,63}", name, re.ASCII):
            raise ValueError("expected a new NAME of letters, digits, _ and -, then KEY=VALUE ...")
        pairs = [(key.replace("-", "_"), text) for key, _, text in (word.partition("=") for word in words)]
        texts = dict(pairs)
        origin = texts.pop("from", "baseline")
        if not texts or not all("=" in word for word in words) or len(dict(pairs)) < len(pairs):
            raise ValueError(f"expected KEY=VALUE ..., every key once, found {' '.join(words) or 'none'}")
        check_choice("from", origin, arms)
        base = in_arm(experiment, origin)
        own = {key: _read(base, key, text) for key, text in texts.items()}
        added = AddedArm(name, tuple((arms[origin] | own).items()))
        experiment = replace(experiment, added_arms=(*experiment.added_arms, added))
        check(in_arm(experiment, name))
        _check_used(own, in_arm(experiment, name).arm)
    except ValueError as error:
        raise UserError(f"--add-arm {name}: {error}") from error
    return experiment


def _read(experiment: BaseExperiment, key: str, text: str) -> Any:
    """The value of a setting that differs, checked by itself."""
    known = sorted(flatten(asdict(experiment)).keys() - {"arm.name", "added_arms"})
    if key not in known:
        raise ValueError(f"{key}={text}: expected a key of the configuration, found none{did_you_mean(key, known)}")
    if key in FIXED:
        why = "it does not change what is learned, or changes how it is judged, or has an option of the ablation"
        raise ValueError(f"{key}={text}: cannot differ between arms; {why}")
    hint = plain_type(experiment, key)
    several = get_origin(hint) is tuple
    value = tuple(read(word, hint) for word in text.split(",") if word) if several else read(text, hint)
    check_values(change(experiment, {key: value}))
    return value


def _check_used(own: dict[str, Any], arm: Arm) -> None:
    """Raises ValueError where one of `own` changes nothing in `arm`."""
    needs = {
        "arm.gate": (arm.gate != "none", ["model.gate_placement"]),
        "arm.gate=static": (arm.gate == "static", [key for key in own if key.startswith("gate.")]),
        "arm.routing=joint or sequential": (arm.routing != "none", ["gate.learning_rate", "gate.clip"]),
        "arm.routing=sequential": (arm.routing == "sequential", ["gate.every"]),
        "arm.kind=hard_concrete": (arm.kind == "hard_concrete", ["gate.l0_open"]),
        "arm.l0_penalty=True": (arm.l0_penalty, ["gate.l0_weight"]),
    }
    for need, (met, keys) in needs.items():
        if not met and (idle := [key for key in own if key in keys]):
            raise ValueError(f"{idle[0]}: changes nothing; expected {need} too, or from=ARM, found neither")


def plain_type(config: Any, key: str) -> Any:
    """The type of a setting without its range."""
    *parts, name = key.split(".")
    for part in parts:
        config = getattr(config, part)
    return get_type_hints(type(config))[name]


def read(text: str, hint: Any) -> Any:
    """The value that a text spells, to be checked: of Python, or else the text itself."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return float(value) if type(value) is int and float in (hint, *get_args(hint)) else value


def spell(name: str, experiment: BaseExperiment) -> list[str]:
    """The words after ``--add-arm`` that make an added arm."""
    texts = {k: v if isinstance(v, tuple) else (v,) for k, v in dict(experiment.added_arms)[name]}
    return [name, *(f"{key}={','.join(map(str, values))}" for key, values in texts.items())]
