"""Command lines with tyro: a configuration by name, then overrides; an unknown key is an error."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import tyro

from experiments.config import ARMS, Experiment
from experiments.configs import CONFIGS
from experiments.errors import UserError

if TYPE_CHECKING:
    ArmName = str
else:
    ArmName = tyro.extras.literal_type_from_choices(tuple(ARMS))


@dataclass(frozen=True)
class TrainArgs:
    """One arm, one seed."""

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    out: Path
    """Folder of the run."""
    arm: ArmName = "baseline"
    """What the gates are and who moves them."""
    seed: int = 0
    resume: bool = False
    """Continue the run in `out` from its newest checkpoint."""


@dataclass(frozen=True)
class AblateArgs:
    """All arms, several seeds, compared in pairs."""

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    out: Path
    """Folder of the ablation: one folder a run, results.jsonl and the report."""
    seeds: int = 3
    """Number of seeds, from 0."""
    arms: tuple[ArmName, ...] = ("baseline", "fsg", "fsg_gr")
    """What the gates are and who moves them; ``baseline`` is what the others are compared with."""
    resume: bool = False
    """Continue the ablation in `out`; several processes may work on one folder."""
    together: int | None = None
    """Seeds that run side by side in one program, on data in device memory; by default what suits model and device."""


T = TypeVar("T", TrainArgs, AblateArgs)


def parse(kind: type[T], module: str, argv: list[str] | None = None) -> T:
    """`kind` filled from ``CONFIG --key value ...``; wrong options and ``--help`` exit as tyro does.

    Raises:
      UserError: there is no such configuration.
    """
    argv = sys.argv[1:] if argv is None else argv
    if argv and not argv[0].startswith("-") and argv[0] not in CONFIGS:
        raise UserError(f"no configuration is named {argv[0]!r}; there are {', '.join(CONFIGS)}")
    defaults = {name: (doc, kind(experiment=config, out=tyro.MISSING)) for name, (config, doc) in CONFIGS.items()}
    return tyro.extras.overridable_config_cli(defaults, prog=f"python -m {module}", args=argv)
