"""Six made-up regressions in two groups, of which one task a group has few labels: HoME and its parts.

    python -m experiments.ablate multitask_groups --out runs/groups --arms baseline separate mmoe cgc ple home \\
        home_no_norm home_no_feature_gates home_no_self_gates home_no_mask home_no_share_all home_routed

Tasks of a group have directions of cosine 0.8, those of different groups 0.1. The third task of each group has a label
in 2 % of the training examples. All heads have as many parameters, to within 5 %. The baseline is the shared bottom.
"""

from experiments.config import Optimizer, Train
from experiments.head import Head, head_arms
from experiments.multitask import TasksExperiment
from experiments.synthetic_tasks import SyntheticTasks

CONFIG = TasksExperiment(
    name="multitask_groups",
    data=SyntheticTasks(groups=(3, 3), related=0.8, correlation=0.1, labelled=(1.0, 1.0, 0.02, 1.0, 1.0, 0.02)),
    model=Head(parameters=28_000, feature_rank=4),
    optimizer=Optimizer(name="adamw", learning_rate=1e-2, weight_decay=0.0, warmup_epochs=1.0),
    train=Train(epochs=30, batch_size=128, dispatch="scan", log_every=78, test_on="last"),
    added_arms=head_arms("model"),
)

SPACE = {"optimizer.learning_rate": "1e-4:3e-2:log", "train.batch_size": "32,64,128,256"}
