"""What a finished or stopped run left: its configuration, record, weights and model. Nothing is written or renamed."""

import re
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin
from typing import get_type_hints as type_hints

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import fsg_jax as fsg
from experiments import build
from experiments.config import BaseExperiment, Experiment, check
from experiments.configs import CONFIGS
from experiments.errors import UserError
from experiments.run_folder import CONFIG, LATER, RESULT, check_record, identity
from fsg_jax._checks import expect, look_up
from fsg_jax._files import read_json
from fsg_jax.linen.gate_kinds import find_gate_kinds
from fsg_jax.routing.labels import paths_of
from fsg_jax.training.checkpoint_files import read_meta, read_verified
from fsg_jax.typing import GateKinds

CHECKPOINTS = "checkpoints"
DATA: dict[str, tuple[tuple[int, int, int], int]] = {"digits": ((8, 8, 1), 10), "cifar100": ((32, 32, 3), 100)}
DATA |= {"kvasir_crops": ((96, 96, 3), 2)}
"""Height, width and channels of the images, and the number of classes."""


class Run(NamedTuple):
    """The folder of a run."""

    path: Path
    config: dict[str, Any]
    record: dict[str, Any] | None
    """None unless the run is finished."""

    @property
    def name(self) -> str:
        """Experiment, arm, streams and fold if it has them, and seed."""
        return f"{self.group} seed {self.config['seed']}"

    @property
    def group(self) -> str:
        """What it shares with the runs of other seeds."""
        streams, fold = self.config["model"].get("streams"), self.config["data"].get("fold")
        parts = [self.config["name"], self.config["arm"]["name"], *(["+".join(streams)] if streams else [])]
        return " ".join(parts if fold is None else [*parts, f"fold {fold}"])


class Saved(NamedTuple):
    """The weights of one checkpoint: the averaged ones if there are any, for they are what was evaluated."""

    variables: dict[str, Any]
    step: int
    extra: dict[str, Any]


class Restored(NamedTuple):
    """The model of a run with its weights."""

    experiment: BaseExperiment
    model: nn.Module
    variables: dict[str, Any]
    inputs: Any
    """Shapes of its inputs, for a batch of one."""
    kinds: GateKinds
    """Of its gates, in the order of the forward pass."""
    saved: Saved


def find_runs(path: Path) -> list[Run]:
    """The runs in a folder: its own, or all below it, as in an arm's folder or an ablation's; by path."""
    found = [file.parent for file in sorted(path.rglob(CONFIG)) if (file.parent / CHECKPOINTS).is_dir()]
    return [read_run(folder) for folder in ([path] if path in found else found)]


def run_around(path: Path) -> tuple[Run, Path | None] | None:
    """The run whose folder this is, or whose checkpoint, which is given too; None of anything else."""
    for folder, checkpoint in ((path, None), (path.parent.parent, path)):
        right = checkpoint is None or checkpoint.parent.name == CHECKPOINTS
        if right and (folder / CONFIG).is_file() and (folder / CHECKPOINTS).is_dir():
            return read_run(folder), checkpoint
    return None


def read_run(path: Path) -> Run:
    """The configuration and the record of a run.

    Raises:
      ValueError: they are damaged, or not of one run.
    """
    config = read_json(path / CONFIG)
    parts: list[Any] = [config.get(key) for key in ("arm", "model", "data")]
    right = all(isinstance(part, dict) for part in parts) and {"name", "seed"} <= config.keys() and "name" in parts[0]
    expect(right, str(path / CONFIG), "the configuration of a run", "another")
    if not (path / RESULT).exists():
        return Run(path, config, None)
    record = check_record(read_json(path / RESULT), path / RESULT)
    same = isinstance(record.get("config"), dict) and identity(record["config"]) == identity(config)
    expect(same, str(path / RESULT), f"the record of the run in {CONFIG}", "that of another")
    return Run(path, config, record)


def checkpoint_of(run: Run) -> Path:
    """The checkpoint that was tested; of a run that is not finished, or was not tested, the newest.

    Raises:
      UserError: it is not there.
    """
    steps = sorted(int(path.name) for path in (run.path / CHECKPOINTS).glob("*") if path.name.isdigit())
    expect(steps, str(run.path / CHECKPOINTS), "a checkpoint", "none")
    step = steps[-1] if run.record is None else _tested(run.record)
    if step not in steps:
        raise UserError(f"{run.path}: expected the checkpoint of step {step}, which was tested, found those of {steps}")
    return run.path / CHECKPOINTS / str(step)


def _tested(record: Mapping[str, Any]) -> int:
    """The step whose validation metrics the record has, the last of equals."""
    wanted = record["validation"]
    rows = [row for row in record["history"] if {k: row.get(f"val_{k}") for k in wanted} == wanted]
    expect(rows, "result.json", "a row of the history with the validation metrics of the record", "none")
    return rows[-1]["step"]


def read_checkpoint(path: Path, run: str | None = None) -> Saved:
    """The variables in the folder of one checkpoint, verified against their checksums; no template is needed.

    Raises:
      ValueError: it is damaged, is of another run than `run`, or holds no variables by collection.
    """
    try:
        meta = read_meta(path)
        template = {name: _empty(text) for name, text in meta["crc32"].items()}
        leaves = read_verified(path, template, {} if run is None else {"run": run})
    except Exception as error:  # the readers raise errors of any type
        raise ValueError(f"checkpoint {path}: expected a sound one, found {type(error).__name__}: {error}") from error
    part = "ema" if any(name.startswith(".ema[") for name in leaves) else "variables"
    variables: dict[str, Any] = {}
    for name, leaf in leaves.items():
        if name.startswith(f".{part}["):
            *parents, last = re.findall(r"\['(.*?)'\]", name)
            tree = variables
            for parent in parents:
                tree = tree.setdefault(parent, {})
            tree[last] = jnp.asarray(leaf)
    expect("params" in variables, f"checkpoint {path}", "variables by collection", sorted(variables) or "none")
    return Saved(variables, meta["step"], meta["extra"])


def _empty(text: str) -> np.ndarray:
    """An array of the type and shape that a checkpoint notes, ``float32[3, 4]:crc``."""
    dtype, shape = re.fullmatch(r"(\w+)\[([\d, ]*)\]:\w+", text).groups()  # type: ignore[union-attr]
    return np.empty([int(n) for n in shape.split(",") if n.strip()], jnp.dtype(dtype))


def restore(run: Run, checkpoint: Path | None = None) -> Restored:
    """The model of a run, with the weights of a checkpoint, by default that of `checkpoint_of`; no data are read.

    Raises:
      UserError, ValueError: the configuration is not one of this version, or the weights are damaged or do not fit.
    """
    saved = read_checkpoint(checkpoint or checkpoint_of(run), identity(run.config))
    experiment = read_experiment(run.config)
    model, inputs = model_of(experiment), inputs_of(experiment)
    kinds, shapes = find_gate_kinds(model.init, jax.random.key(0), inputs)
    found, wanted = (dict(zip(paths_of(t), map(np.shape, jax.tree.leaves(t)), strict=True)) for t in (saved[0], shapes))
    differ = sorted(path for path in found | wanted if found.get(path) != wanted.get(path))
    expect(not differ, f"{run.path}: weights", "those of its configuration", f"others: {', '.join(differ[:3])}")
    return Restored(experiment, model, saved.variables, inputs, kinds, saved)


def read_experiment(config: Mapping[str, Any]) -> BaseExperiment:
    """The experiment of which `experiments.config.describe` gave `config`, in its arm.

    Raises:
      ValueError: there is no such configuration in this version, or a value is out of its range.
    """
    default, _ = look_up(CONFIGS, config.get("name", ""), "configuration")
    values = {key: value for key, value in config.items() if key != "seed"}
    experiment = _fill(replace(default, added_arms=()), values, "")
    check(experiment)
    return experiment


def _fill(default: Any, values: Mapping[str, Any], key: str) -> Any:
    """The dataclass `default` with the JSON values of its fields."""
    names, hints = {field.name for field in fields(default)}, type_hints(type(default), include_extras=True)
    unknown = sorted(values.keys() - names)
    expect(not unknown, f"configuration {key}".strip(), f"keys of {sorted(names)}", unknown)
    return replace(default, **{n: _typed(v, hints[n], getattr(default, n), f"{key}.{n}") for n, v in values.items()})


def _typed(value: Any, hint: Any, default: Any, key: str) -> Any:
    kinds = _kinds(hint)
    if isinstance(value, Mapping):
        known: list[Any] = [default] if is_dataclass(default) else []
        known += [
            kind() for kind in kinds if isinstance(kind, type) and is_dataclass(kind) and kind is not type(default)
        ]
        later = {name.rpartition(".")[2]: value for name, value in LATER.items()}
        fits = [one for one in known if not (value.keys() ^ vars(one).keys()) - later.keys()]
        expect(fits, f"configuration {key}", "the keys of this version", sorted(value))
        return _fill(fits[0], {name: then for name, then in later.items() if hasattr(fits[0], name)} | dict(value), key)
    if isinstance(value, list):
        (inner,) = {get_args(kind)[0] for kind in kinds if get_origin(kind) is tuple} or {Any}
        return tuple(_typed(one, inner, None, key) for one in value)
    return Path(value) if isinstance(value, str) and Path in kinds else value


def _kinds(hint: Any) -> list[Any]:
    """The types that a hint allows."""
    if get_origin(hint) in (Union, types.UnionType):
        return [kind for part in get_args(hint) for kind in _kinds(part)]
    return _kinds(get_args(hint)[0]) if get_origin(hint) is Annotated else [hint]


def model_of(experiment: BaseExperiment) -> nn.Module:
    """The model of an experiment in its arm, with Flax's own convolutions, which convert everywhere."""
    options = dict(experiment.model.options())
    gate, dtype = build.make_gate(experiment.gate, experiment.arm), jnp.dtype(experiment.train.dtype)
    name, classes = options.pop("name"), _num_outputs(experiment)
    return fsg.create_model(name, num_classes=classes, gate=gate, dtype=dtype, **options)


def _num_outputs(experiment: Any) -> int:
    if isinstance(experiment, Experiment):
        return look_up(DATA, experiment.data.name, "data")[1]
    from experiments.endoscopy.size_task import make_target  # needs the endoscopy extra

    return make_target(experiment.target, experiment.loss).num_outputs


def inputs_of(experiment: Any) -> Any:
    """Shapes of what the model is given, for a batch of one."""
    if isinstance(experiment, Experiment):
        height, width, channels = look_up(DATA, experiment.data.name, "data")[0]
        size = experiment.data.image_size
        return jax.ShapeDtypeStruct((1, size or height, size or width, channels), jnp.float32)
    side = experiment.data.input_size
    from fsg_jax.endoscopy.inputs import INPUT_CHANNELS

    streams = experiment.model.streams
    return {name: jax.ShapeDtypeStruct((1, side, side, INPUT_CHANNELS[name]), jnp.float32) for name in streams}
