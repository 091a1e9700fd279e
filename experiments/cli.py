"""Command lines with tyro: a configuration by name, then overrides; an unknown key is an error."""

import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import tyro

from experiments import arms
from experiments.config import ARMS, BaseExperiment, settings
from experiments.configs import CONFIGS
from experiments.errors import UserError
from fsg_jax._checks import look_up

if TYPE_CHECKING:
    ArmName = str
else:
    ArmName = tyro.extras.literal_type_from_choices(tuple(ARMS)) | str  # the help lists the names
AddedArms = tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]]


@dataclass(frozen=True)
class TrainArgs:
    """One arm, one seed."""

    experiment: Annotated[BaseExperiment, tyro.conf.arg(name="")]
    out: Path
    """Folder of the run."""
    arm: ArmName = "baseline"
    """What the gates are and who moves them."""
    add_arm: AddedArms = ()
    """NAME KEY=VALUE ...: an arm more, with these values of any keys; from=ARM adds them to those of another arm."""
    seed: int = 0
    resume: bool = False
    """Continue the run in `out` from its newest checkpoint."""


@dataclass(frozen=True)
class AblateArgs:
    """All arms, several seeds, compared in pairs; for polyps also several sets of streams and folds."""

    experiment: Annotated[BaseExperiment, tyro.conf.arg(name="")]
    out: Path
    """Folder of the ablation: one folder a run, results.jsonl and the report."""
    seeds: int | None = None
    """Number of seeds; None: 3, and 1 for polyps."""
    arms: tuple[ArmName, ...] = ("baseline", "fsg", "fsg_gr")
    """What the gates are and who moves them; ``baseline`` is what the others are compared with."""
    add_arm: AddedArms = ()
    """NAME KEY=VALUE ...: an arm more, with these values of any keys; from=ARM adds them to those of another arm."""
    streams: tuple[str, ...] = ()
    """Polyps: sets of streams, each joined with plus signs: rgb mask+depth; none given: --model.streams."""
    folds: tuple[int, ...] = ()
    """Polyps: test folds; none given: all of the split file."""
    resume: bool = False
    """Continue the ablation in `out`; several processes may work on one folder."""
    together: int | None = None
    """Seeds that run side by side in one program, on data in device memory; by default what suits model and device."""
    first_seed: int = 0
    """The first of the seeds; ablations of other seeds are joined by `experiments.report FOLDER FOLDER ...`."""
    minutes: float | None = None
    """No run is begun that would end later than so many minutes from now, by how long the finished ones took."""


@dataclass(frozen=True)
class TuneArgs:
    """Hyper-parameters of one arm, chosen on the validation split; the test split is not read."""

    experiment: Annotated[BaseExperiment, tyro.conf.arg(name="")]
    out: Path
    """Folder of the search: one folder a trial, trials.jsonl and tune.md."""
    arm: ArmName = "baseline"
    """What the gates are and who moves them."""
    add_arm: AddedArms = ()
    """NAME KEY=VALUE ...: an arm more, with these values of any keys; from=ARM adds them to those of another arm."""
    trials: int = 20
    """Settings tried in all, the configuration's own first."""
    seeds: int = 1
    """Runs of each trial, with seeds from 0; their mean is compared."""
    space: tuple[str, ...] = ()
    """Ranges beside or instead of those of the configuration: KEY=LOW:HIGH, KEY=LOW:HIGH:log or KEY=VALUE,VALUE,..."""
    only: tuple[str, ...] = ()
    """Keys to search; none given: all that have a range."""
    pruner: Literal["median", "halving", "none"] = "median"
    """Ends a trial that is below the median of the others at the same epoch, or not in the best third of them."""
    sampler_seed: int = 0
    """Of the search itself."""
    resume: bool = False
    """Continue the search in `out`; several processes may work on one folder."""


T = TypeVar("T", TrainArgs, AblateArgs, TuneArgs)


def parse(kind: type[T], module: str, argv: list[str] | None = None) -> T:
    """`kind` filled from ``CONFIG --key value ...``; wrong options and ``--help`` exit as tyro does.

    Raises:
      ValueError: there is no such configuration.
    """
    argv = sys.argv[1:] if argv is None else argv
    if argv and not argv[0].startswith("-"):
        look_up(CONFIGS, argv[0], "configuration")
    defaults = {name: (doc, kind(experiment=config, out=tyro.MISSING)) for name, (config, doc) in CONFIGS.items()}
    return tyro.extras.overridable_config_cli(defaults, prog=f"python -m {module}", args=argv)


def with_added_arms(args: T) -> T:
    """`args` whose experiment has the arms of ``--add-arm``; those of an ablation are run too.

    Raises:
      UserError: an arm is wrong, or is not the one that is run.
    """
    experiment = args.experiment
    for words in args.add_arm:
        experiment = arms.add_arm(experiment, *words)
    names: list[str] = [words[0] for words in args.add_arm]
    changed: dict[str, Any] = {"experiment": experiment, "add_arm": ()}
    if isinstance(args, AblateArgs):
        changed["arms"] = (*args.arms, *(name for name in names if name not in args.arms))
    elif names and args.arm not in names:
        raise UserError(f"--add-arm {names[0]}: expected --arm {names[0]} too, found --arm {args.arm}")
    return replace(args, **changed)


def overrides(experiment: BaseExperiment) -> str:
    """The options that make `experiment` of the configuration with its name, to be pasted into a shell."""
    config, _ = CONFIGS[experiment.name]
    default = settings(config)
    options = [_option(k, v) for k, v in settings(experiment).items() if v != default.get(k)]
    new = [arm for arm in experiment.added_arms if arm not in config.added_arms]
    options += [["--add-arm", *arms.spell(arm.name, experiment)] for arm in new]
    return " ".join(shlex.join(option) for option in options)


def _option(key: str, value: Any) -> list[str]:
    flag = key.replace("_", "-")
    if isinstance(value, bool):
        part, _, name = flag.rpartition(".")
        return [f"--{flag}" if value else f"--{part}.no-{name}"]
    return [f"--{flag}", *map(str, value if isinstance(value, tuple) else (value,))]
