"""Is there a polyp in this crop? Networks that learn from crops of Kvasir-SEG, without masks, for localisation.

    python -m experiments.crops KVASIR --out runs/crops.npz
    python -m experiments.ablate kvasir_crops --data.path runs/crops.npz --seeds 3 \\
        --arms baseline att3 att3_sigmoid att3_dot --out runs/kvasir
    python -m experiments.localise runs/kvasir --frames KVASIR --out runs/localised

Crops of 96 pixels of the training frames, those with a polyp covered by its mask by a fifth or more, those without not
at all, seen at half their size. All arms have the trunk of VGG-16, whose poolings keep it cheap: maps are 12, 6 and 3
pixels wide for a crop and 44, 22 and 11 for a whole frame of 352, at half its size too. baseline has no attention and
is read by Grad-CAM; att3, att3_sigmoid and att3_dot have attention over its last three maps. Results of a small run are
in docs/attention_maps.md.
"""

from typing import Any

from experiments.config import VGG, AddedArm, Data, Experiment, Gate, Optimizer, Train

VARIANTS: dict[str, dict[str, Any]] = {
    "att3": {"model.attention": True},
    "att3_sigmoid": {"model.attention": True, "model.normalise": "sigmoid_mean"},
    "att3_dot": {"model.attention": True, "model.score": "dot"},
}

CONFIG = Experiment(
    name="kvasir_crops",
    data=Data(name="kvasir_crops", image_size=48, augment=("flip", "crop")),
    model=VGG(width=8, dropout=0.0, head_dropout=0.0, conv_dropout=(0.0, 0.0)),
    gate=Gate(learning_rate=1e-2),
    optimizer=Optimizer(learning_rate=0.05),
    train=Train(epochs=14, batch_size=32, eval_batch_size=100),
    added_arms=tuple(AddedArm(name, tuple(arm.items())) for name, arm in VARIANTS.items()),
)

SPACE = {
    "optimizer.learning_rate": "0.005:0.2:log",
    "optimizer.weight_decay": "1e-4:5e-3:log",
    "model.dropout": "0.0:0.5",
    "train.batch_size": "16,32,64",
}
