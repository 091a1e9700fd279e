"""ResNet-18 (CIFAR stem) on CIFAR-100 with a stronger recipe: does a gate still help a well-trained baseline?

    python -m experiments.ablate cifar100_resnet18_strong --data.path PATH --seeds 4 \\
        --arms baseline fsg fsg_joint fsg_gr se --out runs/cifar100_strong

Recipe: that of ``cifar100_resnet18`` with mixup (alpha 0.4), label smoothing 0.1 and averaged weights (decay 0.999).

Expected of the baseline: about 80 %. 79.8 ± 0.3 % is the README of sungyubkim/cifar_jax with mixup 0.4 (200 epochs,
batch 1,000, 4 seeds, all 50,000 images). Chosen from published recipes: not tuned, and not run to its end here.
"""

from experiments.config import Data, Experiment, Gate, Optimizer, ResNet, Train

CONFIG = Experiment(
    name="cifar100_resnet18_strong",
    data=Data(augment=("crop", "flip", "mixup"), mixup_alpha=0.4),
    model=ResNet(),
    gate=Gate(learning_rate=1e-2),
    optimizer=Optimizer(warmup_epochs=5.0, label_smoothing=0.1),
    train=Train(epochs=200, batch_size=128, dtype="bfloat16", ema_decay=0.999),
)

SPACE = {
    "optimizer.learning_rate": "0.02:0.5:log",
    "optimizer.weight_decay": "1e-4:2e-3:log",
    "optimizer.warmup_epochs": "0.0:15.0",
    "optimizer.label_smoothing": "0.0:0.2",
    "data.mixup_alpha": "0.1:1.0",
    "train.ema_decay": "None,0.99,0.999,0.9995",
    "train.batch_size": "64,128,256",
}
