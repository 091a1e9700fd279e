"""Which task an experiment is."""

from typing import Any

from experiments import classification
from experiments.config import Experiment
from experiments.task import Task


def make_task(experiment: Any, arm: str) -> Task:
    """The task of a configuration.

    Raises:
      ValueError, OSError: what a run cannot start with.
    """
    if isinstance(experiment, Experiment):
        return classification.make_task(experiment, arm)
    from experiments.endoscopy import size_task as polyps  # needs the endoscopy extra

    return polyps.make_task(experiment, arm)
