"""Arms beside those of `experiments.config`, as in ``--add-arm NAME from=ARM key=value ...``."""

import ast
import re
from dataclasses import asdict, replace
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from experiments.config import ARMS, AddedArm, BaseExperiment, change, check, check_values, flatten, in_arm
from experiments.errors import UserError
from experiments.run_folder import EXECUTION
from fsg_jax._checks import check_choice, did_you_mean

E = TypeVar("E", bound=BaseExperiment)

FIXED = EXECUTION | {
    *("name", "train.test_on", "data.name", "data.path", "data.source", "data.checksum", "data.download"),
    *("data.validation", "data.index", "data.splits", "data.fold", "data.depth_root", "data.validation_frames"),
    *("data.test_frames", "target"),
}
"""Settings that neither differ between arms nor are searched: they do not change what is learned, or change how it is
judged."""


def add_arm(experiment: E, name: str = "", *words: str) -> E:
    """`experiment` with one more arm: the overrides in `words`, on top of those of the arm in ``from=ARM``, if any.

    Raises:
      UserError: the name, an override, or what they are together is wrong; the arm, the key and the value are named.
    """
    option = f"--add-arm {name}"
    arms = ARMS | {known: dict(overrides) for known, overrides in experiment.added_arms}
    if not re.fullmatch(r"[A-Za-z0-9][\w-]{0,63}", name, re.ASCII):
        raise UserError(f"--add-arm: expected NAME of letters, digits, _ and -, then KEY=VALUE ..., found {name!r}")
    if name in arms:
        raise UserError(f"{option}: expected a new name, found that of an arm")
    pairs = [(key.replace("-", "_"), text) for key, _, text in (word.partition("=") for word in words)]
    if wrong := [word for word in words if "=" not in word]:
        raise UserError(f"{option} {wrong[0]}: expected KEY=VALUE")
    texts = dict(pairs)
    if len(texts) < len(pairs):
        raise UserError(f"{option}: expected every key once, found {' '.join(key for key, _ in pairs)}")
    origin = texts.pop("from", "baseline")
    if not texts:
        raise UserError(f"{option}: expected KEY=VALUE ..., found no key")
    own = {}
    try:
        check_choice("from", origin, arms)
        for key, text in texts.items():
            own[key] = _read(in_arm(experiment, origin), key, text)
    except ValueError as error:
        raise UserError(f"{option}: {error}") from error
    added = AddedArm(name, tuple((arms[origin] | own).items()))
    experiment = replace(experiment, added_arms=(*experiment.added_arms, added))
    _check_whole(in_arm(experiment, name), own, option)
    return experiment


def _read(experiment: BaseExperiment, key: str, text: str) -> Any:
    """The value of a setting that differs, checked by itself."""
    known = sorted(flatten(asdict(experiment)).keys() - {"arm.name", "added_arms"})
    if key not in known:
        raise ValueError(f"{key}={text}: expected a key of the configuration, found none{did_you_mean(key, known)}")
    if key in FIXED:
        why = "it does not change what is learned, or changes how it is judged"
        raise ValueError(f"{key}={text}: cannot differ between arms; {why}")
    if key == "model.streams":
        raise ValueError(f"{key}={text}: cannot differ between arms; --streams gives each of them several sets")
    hint = plain_type(experiment, key)
    several = get_origin(hint) is tuple
    value = tuple(read(word, hint) for word in text.split(",") if word) if several else read(text, hint)
    check_values(change(experiment, {key: value}))
    return value


def _check_whole(experiment: BaseExperiment, own: dict[str, Any], option: str) -> None:
    """Raises UserError where the values do not go together, or one of `own` changes nothing."""
    try:
        check(experiment)
    except ValueError as error:
        raise UserError(f"{option}: {error}") from error
    arm = experiment.arm
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
            raise UserError(f"{option} {idle[0]}: changes nothing; expected {need} too, or from=ARM, found neither")


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
    overrides = dict(experiment.added_arms)[name]
    texts = {k: ",".join(map(str, v)) if isinstance(v, tuple) else str(v) for k, v in overrides}
    return [name, *(f"{key}={text}" for key, text in texts.items())]
