"""Size, size class, histology and site of a polyp by one network, on the phantom; heads of experts compared.

    python -m experiments.phantom --out runs/tasks/raw --layout real-colon --polyps 96 --frames 12 \\
        --missing-histology 0.5
    python -m experiments.index real-colon runs/tasks/raw --out runs/tasks/index
    python -m experiments.split runs/tasks/index --out runs/tasks/splits.csv --folds 3
    python -m experiments.ablate polyp_tasks --data.index runs/tasks/index --data.splits runs/tasks/splits.csv \\
        --arms baseline separate mmoe cgc ple home home_routed --out runs/tasks/runs

The epoch that is tested is that with the least sum of the losses on the validation polyps; where one task overfits
early, ``--train.test-on last`` is fairer to the others (see experiments/results). The baseline is a shared bottom; all
heads have as many parameters, to within 5 %. Histology and site of the phantom depend in part on what is seen (see
``experiments/endoscopy/phantom/lesion_kinds.py``). Other data need their labels in the index; docs/experts.md says how.
"""

from experiments.config import Gate, Optimizer, Train
from experiments.endoscopy.polyp_config import MultiStream, PolypData, PolypTasksExperiment
from experiments.head import Head, head_arms

CONFIG = PolypTasksExperiment(
    name="polyp_tasks",
    data=PolypData(frame_size=64, input_size=64, frames_per_polyp=8, validation_frames=None),
    model=MultiStream(width=8, hidden=0, streams=("rgb",)),
    head=Head(parameters=12_000, feature_rank=4),
    gate=Gate(learning_rate=3e-3),
    optimizer=Optimizer(name="adamw", learning_rate=2e-3, weight_decay=1e-4, clip=8.0),
    train=Train(epochs=20, batch_size=16, eval_batch_size=64, test_on="best"),
    added_arms=head_arms("head"),
)

SPACE = {
    "optimizer.learning_rate": "2e-4:2e-2:log",
    "optimizer.weight_decay": "1e-6:1e-2:log",
    "train.batch_size": "8,16,32",
}
