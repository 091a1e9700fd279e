"""ResNet-18 (CIFAR stem) on CIFAR-100 with a stronger recipe: does a gate still help a well-trained baseline?

    python -m experiments.ablate cifar100_resnet18_strong --data.path PATH --seeds 4 \\
        --arms baseline fsg fsg_joint fsg_gr se --out runs/cifar100_strong

Recipe: that of ``cifar100_resnet18`` with mixup (alpha 0.4), label smoothing 0.1 and averaged weights (decay 0.999).

Expected of the baseline: about 80 %. 79.8 ± 0.3 % is the README of sungyubkim/cifar_jax with mixup 0.4 (200 epochs,
batch 1,000, 4 seeds, all 50,000 images). Chosen from published recipes: not tuned, and not run to its end here.
"""

from experiments.config import change
from experiments.configs import cifar100_resnet18 as plain

CONFIG = change(
    plain.CONFIG,
    {
        "name": "cifar100_resnet18_strong",
        "data.augment": ("crop", "flip", "mixup"),
        "data.mixup_alpha": 0.4,
        "optimizer.label_smoothing": 0.1,
        "train.ema_decay": 0.999,
    },
)

SPACE = plain.SPACE | {"data.mixup_alpha": "0.1:1.0", "train.ema_decay": "None,0.99,0.999,0.9995"}
