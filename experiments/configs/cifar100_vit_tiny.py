"""ViT-Ti/4 on CIFAR-100 at 32x32, from scratch: gates on both residual branches of every block.

    python -m experiments.ablate cifar100_vit_tiny --data.path PATH --seeds 4 \\
        --arms baseline fsg fsg_joint fsg_gr output_heads output_elements static_output --out runs/vit

Arms beside the usual ones: a gate on the outputs of the attention that depends on the input, one value a head or a
channel (output_heads, output_elements), and a static one there (static_output).

Recipe: AdamW 1e-3, weight decay 0.05, 10 epochs of warm-up then cosine, 200 epochs, batch 256, crop, flip,
TrivialAugment, mixup or CutMix, label smoothing 0.1, stochastic depth 0.1, bf16.

Expected of the baseline: about 70 % test accuracy; 69.75 % is ViT-Lite-7/4 (3.7 M parameters, 200 epochs from scratch
at 32x32) in the README of SHI-Labs/Compact-Transformers. The paper's 83.8 % is a fine-tuned ViT at 384x384 and no
comparison. This configuration has not been run to its end here.
"""

from typing import Any

from experiments.config import ARMS, AddedArm, Data, Experiment, Gate, Optimizer, Train, ViT

OUTPUT: dict[str, dict[str, Any]] = {
    "output_heads": {"model.output_gate": "headwise"},
    "output_elements": {"model.output_gate": "elementwise"},
    "static_output": ARMS["fsg_gr"] | {"model.gate_placement": "output"},
}

CONFIG = Experiment(
    name="cifar100_vit_tiny",
    data=Data(augment=("crop", "flip", "trivial", "mixup_or_cutmix"), mixup_alpha=0.8),
    model=ViT(drop_path=0.1),
    gate=Gate(learning_rate=1e-2),
    optimizer=Optimizer(
        name="adamw", learning_rate=1e-3, weight_decay=0.05, warmup_epochs=10.0, clip=1.0, label_smoothing=0.1
    ),
    train=Train(epochs=200, batch_size=256, dtype="bfloat16"),
    added_arms=tuple(AddedArm(name, tuple(arm.items())) for name, arm in OUTPUT.items()),
)

SPACE = {
    "optimizer.learning_rate": "2e-4:4e-3:log",
    "optimizer.weight_decay": "0.01:0.5:log",
    "optimizer.warmup_epochs": "2.0:30.0",
    "optimizer.label_smoothing": "0.0:0.2",
    "data.mixup_alpha": "0.1:1.0",
    "model.drop_path": "0.0:0.3",
    "train.ema_decay": "None,0.999,0.9998",
    "train.batch_size": "128,256,512",
}
