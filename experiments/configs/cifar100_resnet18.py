"""ResNet-18 (CIFAR stem) on CIFAR-100: the ablation of gates and routing.

    python -m experiments.ablate cifar100_resnet18 --data.path PATH --seeds 4 \\
        --arms baseline fsg fsg_joint fsg_gr se --out runs/cifar100

Recipe: SGD 0.1, Nesterov 0.9, weight decay 5e-4, 200 epochs, batch 128, crop and flip. EXPECTED
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
