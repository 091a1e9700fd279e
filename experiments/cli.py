"""Command lines with tyro: a configuration by name, then overrides; an unknown key is an error."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar, Union

import tyro

from experiments.config import ARMS, Experiment
from experiments.configs import CONFIGS

Arms = tyro.extras.literal_type_from_choices(tuple(ARMS))
T = TypeVar("T")


@dataclass(frozen=True)
class TrainArgs:
    """One arm, one seed."""

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    out: Path
    """Folder of the run."""
    arm: Arms = "baseline"  # type: ignore[valid-type]
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
    arms: tuple[Arms, ...] = ("baseline", "fsg", "fsg_gr")  # type: ignore[valid-type]
    resume: bool = False
    """Continue the ablation in `out`; several processes may work on one folder."""


def parse(kind: type[T], argv: list[str] | None = None) -> T:
    """`kind` filled from ``CONFIG --key value ...``; errors and ``--help`` exit as tyro does."""
    commands = [
        Annotated[
            kind,  # type: ignore[valid-type]
            tyro.conf.subcommand(name, default=kind(experiment=config, out=tyro.MISSING), description=doc),
        ]
        for name, (config, doc) in CONFIGS.items()
    ]
    union = Union[tuple(commands)]  # type: ignore[valid-type]  # noqa: UP007
    return tyro.cli(union, args=argv if argv is not None else sys.argv[1:], config=(tyro.conf.AvoidSubcommands,))
