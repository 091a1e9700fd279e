"""The configurations by name, each with its recipe as the docstring of its file."""

from experiments.config import Experiment
from experiments.configs import (
    cifar100_resnet18,
    cifar100_resnet18_strong,
    cifar100_speedrun,
    cifar100_vit_tiny,
    digits,
)
from experiments.space import Space

_MODULES = (digits, cifar100_resnet18, cifar100_resnet18_strong, cifar100_vit_tiny, cifar100_speedrun)
CONFIGS: dict[str, tuple[Experiment, str]] = {m.CONFIG.name: (m.CONFIG, m.__doc__ or "") for m in _MODULES}
SPACES: dict[str, Space] = {m.CONFIG.name: m.SPACE for m in _MODULES}
"""What a search varies around each of them."""
