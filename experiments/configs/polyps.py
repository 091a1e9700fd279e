"""Polyp sizing on REAL-Colon and SUN, the paper's subject (Roffo et al. 2024).

    python -m experiments.index real-colon ROOT --out index/real_colon
    python -m experiments.index sun ROOT --sizes SIZES.csv --out index/sun
    python -m experiments.split index/real_colon index/sun --out splits.csv --folds 6
    python -m experiments.ablate polyp_size --data.index index/real_colon index/sun --data.splits splits.csv \\
        --streams rgb mask --out runs/polyps

Recipe: ResNet-18 with the ImageNet stem on each stream at 384x384, 40 frames of every polyp an epoch, 40 epochs, batch
32, AdamW 2e-4 with cosine decay, gates by Adam 3e-4, smooth L1 weighted by size (3 from 5 to 10 mm, 5 from 10 mm),
rotation, flips, colour jitter and noise. The weights of the epoch with the smallest validation loss are tested. From
scratch unless ``--model.pretrained FILE`` names ImageNet's weights of the backbone, as in the paper. Not run here: the
datasets are not at hand.
"""

from experiments.config import Gate, Optimizer, Train
from experiments.endoscopy.polyp_config import PolypExperiment

CONFIG = PolypExperiment(
    name="polyp_size",
    gate_loss="paper",
    gate=Gate(learning_rate=3e-4, clip=8.0),
    optimizer=Optimizer(name="adamw", learning_rate=2e-4, weight_decay=1e-5, clip=8.0),
    train=Train(epochs=40, batch_size=32, eval_batch_size=64, dtype="bfloat16", test_on="best"),
)

SPACE = {
    "optimizer.learning_rate": "2e-5:2e-3:log",
    "optimizer.weight_decay": "1e-6:1e-2:log",
    "optimizer.warmup_epochs": "0.0:5.0",
    "data.frames_per_polyp": "20,40,80",
    "train.batch_size": "16,32,64",
}
