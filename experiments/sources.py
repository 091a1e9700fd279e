"""What `inspect`, `export` and `predict` are given: a run, a checkpoint, a saved model, or a name of weights."""

from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

import fsg_jax as fsg
from experiments.errors import UserError
from experiments.trained import find_runs, restore, run_around
from fsg_jax._checks import expect
from fsg_jax.models.multistream import get_channels
from fsg_jax.pretrained.preprocessing import Preprocessing

MODEL = "model.safetensors"
"""What marks the folder of a saved model."""


class Source(NamedTuple):
    """A network with its weights."""

    model: nn.Module
    variables: dict[str, Any]
    inputs: Any
    """Shapes of its inputs, for a batch of one."""
    preprocessing: Preprocessing | None
    """From an image to its input; None where an image alone is none."""
    origin: str
    """Which weights these are, in words."""


def load(text: str) -> Source:
    """The network at a path, or of a name that `fsg_jax.load_pretrained` knows.

    Of a run the weights that were tested; of one that is not finished the newest; of a checkpoint its own.

    Raises:
      UserError: the folder holds something else, or several runs.
      ValueError, OSError, ImportError: what is there is damaged, does not fit, or needs an extra.
    """
    path = Path(text)
    if (path / MODEL).is_file() or not path.is_dir():
        model, variables, preprocessing = fsg.load_pretrained(text)
        return Source(model, variables, _inputs(model, preprocessing), preprocessing, text)
    found = run_around(path)
    if found is None:
        names = [str(run.path) for run in find_runs(path)]
        raise UserError(f"{path}: expected a run, a checkpoint of a run, or {MODEL} in it, found {names or 'none'}")
    run, checkpoint = found
    restored = restore(run, checkpoint)
    origin = f"{run.name}, step {restored.saved.step}"
    return Source(restored.model, restored.variables, restored.inputs, _preprocessing(run.config), origin)


def _inputs(model: nn.Module, preprocessing: Preprocessing) -> Any:
    """Shapes of what a saved model is given."""
    height, width = preprocessing.size
    streams = getattr(model, "streams", None)
    if streams is None:
        return jax.ShapeDtypeStruct((1, height, width, len(preprocessing.mean)), jnp.float32)
    return {name: jax.ShapeDtypeStruct((1, height, width, c), jnp.float32) for name, c in get_channels(streams).items()}


def _preprocessing(config: dict[str, Any]) -> Preprocessing | None:
    """That of a classification: its statistics at its size; polyp sizing needs boxes."""
    from experiments.classification import STATISTICS
    from experiments.trained import DATA

    name = config["data"].get("name")
    if name not in DATA:
        return None
    mean, std = STATISTICS[name]
    expect(len(mean) == DATA[name][0][2], "data.name", "statistics of every channel", name)
    return Preprocessing(mean, std, DATA[name][0][:2], crop=1.0, interpolation="bilinear")
