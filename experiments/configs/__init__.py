"""The configurations by name, each with its recipe as the docstring of its file."""

from typing import Any

from experiments.config import BaseExperiment
from experiments.configs import (
    cifar100_finetune,
    cifar100_resnet18,
    cifar100_resnet18_strong,
    cifar100_speedrun,
    cifar100_vgg_att,
    cifar100_vig_tiny,
    cifar100_vit_tiny,
    digits,
    multitask_groups,
    multitask_synthetic,
    polyp_phantom,
    polyp_tasks,
    polyps,
)

_MODULES: tuple[Any, ...] = (
    *(digits, cifar100_resnet18, cifar100_resnet18_strong, cifar100_vit_tiny, cifar100_speedrun),
    *(cifar100_vig_tiny, cifar100_vgg_att, cifar100_finetune),
    *(multitask_synthetic, multitask_groups),
    *(polyps, polyp_phantom, polyp_tasks),
)
CONFIGS: dict[str, tuple[BaseExperiment, str]] = {m.CONFIG.name: (m.CONFIG, m.__doc__ or "") for m in _MODULES}
SPACES: dict[str, dict[str, str]] = {m.CONFIG.name: m.SPACE for m in _MODULES}
"""What a search varies around each of them; see `experiments.space`."""
