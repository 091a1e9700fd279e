"""The configurations of the experiments, small enough for tests."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import cifar_files
import numpy as np

from experiments.ablate import ablate
from experiments.cli import AblateArgs
from experiments.config import BaseExperiment, EfficientNet, Experiment, ViT
from experiments.configs import CONFIGS

VIT = ViT(patch_size=4, depth=1)


def digits(**parts: dict[str, Any]) -> Experiment:
    """128 digits, a ViT of one block, 2 epochs of 2 steps, every one saved; `parts` override."""
    experiment = replace(CONFIGS["digits"][0], model=VIT)
    train = {"epochs": 2, "checkpoint_every_seconds": 0.0}
    experiment = change(experiment, data={"num_train": 128}, train=train, optimizer={"warmup_epochs": 0.5})
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
    if experiment.data.name == "kvasir_crops":
        return change(experiment, data={"path": crops(folder)}, train={"batch_size": 10})
    data = {"path": cifar_files.write_npz(folder), "checksum": False, "validation": 10}
    return change(experiment, data=data, train={"batch_size": 10})


def crops(folder: Path) -> Path:
    """A file of crops of noise, those of the second class brighter."""
    draw, path = np.random.default_rng(0), folder / "crops.npz"
    arrays: dict[str, np.ndarray] = {"class_names": np.array(["none", "polyp"])}
    for split, count in (("train", 40), ("validation", 10), ("test", 10)):
        labels = np.arange(count, dtype=np.int32) % 2
        noise = draw.integers(0, 200, (count, 96, 96, 3))
        arrays |= {f"{split}_labels": labels}
        arrays |= {f"{split}_images": (noise + 50 * labels[:, None, None, None]).astype(np.uint8)}
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def ablation(experiment: BaseExperiment, arms: tuple[str, ...], seeds: int, out: Path, **options: Any) -> list[dict]:
    """The records of an ablation."""
    return ablate(AblateArgs(experiment, out, seeds, arms, **options))


def change(experiment: Experiment, **parts: dict[str, Any]) -> Experiment:
    """`experiment` with some values of some parts replaced."""
    return replace(experiment, **{name: replace(getattr(experiment, name), **kw) for name, kw in parts.items()})
