"""The configurations of the experiments, small enough for tests."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import cifar_files

from experiments.ablate import ablate
from experiments.cli import AblateArgs
from experiments.config import BaseExperiment, EfficientNet, Experiment, ViT
from experiments.configs import CONFIGS

VIT = ViT(patch_size=4, depth=1)


def digits(**parts: dict[str, Any]) -> Experiment:
    """128 digits, a ViT of one block, 2 epochs of 2 steps; `parts` override, e.g. ``train={"epochs": 3}``."""
    experiment = replace(CONFIGS["digits"][0], model=VIT)
    experiment = change(experiment, data={"num_train": 128}, train={"epochs": 2}, optimizer={"warmup_epochs": 0.5})
    return change(experiment, **parts)


def shrunk(name: str, folder: Path) -> Experiment:
    """A configuration with a small model and little data, otherwise as it is; CIFAR-100 is made in `folder`."""
    experiment = CONFIGS[name][0]
    if isinstance(experiment.model, ViT):
        experiment = change(experiment, model={"depth": 1, "patch_size": 16})
    elif isinstance(experiment.model, EfficientNet):
        experiment = change(experiment, model={"pretrained": None}, data={"image_size": None, "num_train": None})
    else:
        experiment = change(experiment, model={"width": 4})
    experiment = change(experiment, train={"epochs": 2}, optimizer={"warmup_epochs": 0.5})
    if experiment.data.name == "digits":
        return change(experiment, data={"num_train": 128})
    data = {"path": cifar_files.write_npz(folder), "checksum": False, "validation": 10}
    return change(experiment, data=data, train={"batch_size": 10})


def ablation(experiment: BaseExperiment, arms: tuple[str, ...], seeds: int, out: Path, **options: Any) -> list[dict]:
    """The records of an ablation."""
    return ablate(AblateArgs(experiment, out, seeds, arms, **options))


def change(experiment: Experiment, **parts: dict[str, Any]) -> Experiment:
    """`experiment` with some values of some parts replaced."""
    return replace(experiment, **{name: replace(getattr(experiment, name), **kw) for name, kw in parts.items()})
