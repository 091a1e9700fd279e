"""Two made-up regressions of known relation: MMoE against a shared bottom (Ma et al. 2018, section 3.2).

    python -m experiments.ablate multitask_synthetic --arms baseline separate mmoe cgc ple home --out runs/multitask \\
        --data.related 0.5

``--data.related`` is the cosine of the two tasks' directions; the runs are over five draws of the data. All heads have
as many parameters, to within 5 %. The baseline is the shared bottom. ``examples/studies/task_relation.py`` goes over
cosines.
"""

from experiments.config import Optimizer, Train
from experiments.head import Head, head_arms
from experiments.multitask import TasksExperiment
from experiments.synthetic_tasks import SyntheticTasks

CONFIG = TasksExperiment(
    name="multitask_synthetic",
    data=SyntheticTasks(),
    model=Head(parameters=14_000, feature_rank=4),
    optimizer=Optimizer(name="adamw", learning_rate=1e-2, weight_decay=0.0, warmup_epochs=1.0),
    train=Train(epochs=30, batch_size=128, dispatch="scan", log_every=78, test_on="last"),
    added_arms=head_arms("model"),
)

SPACE = {"optimizer.learning_rate": "1e-4:3e-2:log", "train.batch_size": "32,64,128,256"}
