"""ResNet-18 (CIFAR stem) on CIFAR-100: the ablation of gates and routing.

    python -m experiments.ablate cifar100_resnet18 --data.path PATH --seeds 4 \\
        --arms baseline fsg fsg_joint fsg_gr se --out runs/cifar100

Recipe: SGD 0.1 with Nesterov momentum 0.9, weight decay 5e-4, 5 epochs of warm-up then cosine, 200 epochs, batch 128,
crop and flip, bf16; trained on 45,000 images, 5,000 held out.

Expected of the baseline: 76 to 79 % test accuracy. 78.4 % is the card of edadaltocg/resnet18_cifar100 (SGD 0.1,
cosine, 200 epochs, batch 64, weight decay 5e-4) and 78.8 % the README of sungyubkim/cifar_jax (200 epochs, batch
1,000, 4 seeds), both on all 50,000 images. SE-ResNet-18 gains 0.8 points in weiaicunzai/pytorch-cifar100 (75.6 to
76.4 %). This configuration has not been run to its end here; a reduced one has, see experiments/results.
"""

from experiments.config import Data, Experiment, Gate, Optimizer, ResNet, Train

CONFIG = Experiment(
    name="cifar100_resnet18",
    data=Data(augment=("crop", "flip")),
    model=ResNet(),
    gate=Gate(learning_rate=1e-2),
    optimizer=Optimizer(warmup_epochs=5.0),
    train=Train(epochs=200, batch_size=128, dtype="bfloat16"),
)

SPACE = {
    "optimizer.learning_rate": "0.02:0.5:log",
    "optimizer.weight_decay": "1e-4:2e-3:log",
    "optimizer.warmup_epochs": "0.0:15.0",
    "optimizer.label_smoothing": "0.0:0.2",
    "train.batch_size": "64,128,256",
}
