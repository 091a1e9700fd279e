"""What `inspect`, `export` and `predict` are given: a run, a checkpoint, a saved model, or a name of weights."""

from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax

import fsg_jax as fsg
from experiments import pretrained
from experiments.classification import STATISTICS
from experiments.config import BaseExperiment, Experiment
from experiments.errors import UserError
from experiments.trained import find_runs, restore, run_around
from fsg_jax._checks import expect
from fsg_jax.pretrained.fit import example
from fsg_jax.pretrained.preprocessing import Preprocessing

MODEL = "model.safetensors"
"""What marks the folder of a saved model."""


class Source(NamedTuple):
    """A network with its weights."""

    model: nn.Module
    variables: dict[str, Any]
    inputs: Any
    """Shapes of its inputs, for a batch of one."""
    sized: bool
    """Whether height and width of the inputs are known; else they are some that fit."""
    preprocessing: Preprocessing | None
    """From an image to its input; None where an image alone is none."""
    origin: str
    """Which weights these are, in words."""


def load(text: str, image_size: int | None = None) -> Source:
    """The network at a path, or of a name that `fsg_jax.load_pretrained` knows, which is given `image_size`.

    Of a run the weights that were tested; of one that is not finished the newest; of a checkpoint its own.

    Raises:
      UserError: the folder holds something else, or several runs.
      ValueError, OSError, ImportError: what is there is damaged, does not fit, or needs an extra.
    """
    path = Path(text)
    if (path / MODEL).is_file() or not path.is_dir():
        return _saved(text, image_size)
    found = run_around(path)
    if found is None:
        names = [str(run.path) for run in find_runs(path)]
        raise UserError(f"{path}: expected a run, a checkpoint of a run, or {MODEL} in it, found {names or 'none'}")
    expect(image_size is None, "--image-size", "none for a run, which has its own", image_size)
    run, checkpoint = found
    restored = restore(run, checkpoint)
    origin = f"{run.name}, step {restored.saved.step}"
    preprocessing = preprocessing_of(restored.experiment, restored.inputs)
    return Source(restored.model, restored.variables, restored.inputs, True, preprocessing, origin)


def _saved(text: str, image_size: int | None) -> Source:
    model, variables, preprocessing = fsg.load_pretrained(text, image_size=image_size)
    sides = image_size and (image_size, image_size)
    if preprocessing is not None:
        sides = preprocessing.size
    inputs = example(model, variables["params"])
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *(sides or x.shape[1:3]), x.shape[3]), x.dtype), inputs)
    return Source(model, variables, shapes, sides is not None, preprocessing, text)


def preprocessing_of(experiment: BaseExperiment, inputs: Any) -> Preprocessing | None:
    """That of a classification: its statistics, or those of the weights it started from; polyp sizing needs boxes."""
    if not isinstance(experiment, Experiment):
        return None
    _, height, width, channels = inputs.shape
    mean, std = STATISTICS[experiment.data.name]
    if (start := experiment.model.pretrained) is not None:
        pretrained.pin(experiment)  # the weights are still those
        mean, std = pretrained.statistics(start, channels)
    return Preprocessing(mean, std, (height, width), crop=1.0, interpolation="bilinear")
