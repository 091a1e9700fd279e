"""The step of the goldens: SGD of rate 1 moves every leaf by minus its gradient, the gates first; and how far it is."""

from functools import cache
from typing import Any

import jax
import numpy as np
import optax
import reduced
import timm_weights
from flax.traverse_util import flatten_dict

import fsg_jax as fsg

TX = fsg.routed(params=optax.sgd(1.0), gates=optax.sgd(1.0))
STEP = fsg.make_train_step(fsg.losses.cross_entropy, "sequential")


@cache
def trained(name: str, remat: bool = False, dtype: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Changes of all variables in one step from the weights of the rule, and the metrics; compiled once."""
    before = reduced.variables(name)
    model = reduced.reduced(name, remat=remat, **({} if dtype is None else {"dtype": dtype}))
    state = fsg.init_state(model, TX, jax.random.key(0), reduced.inputs(name), variables=before)
    state, metrics = STEP(state, {"image": reduced.inputs(name), "label": reduced.labels()})
    return jax.tree.map(lambda a, b: np.asarray(a, np.float64) - np.asarray(b), state.variables, before), metrics


def distance(changes: dict[str, Any], golden: dict[str, list[float]]) -> tuple[float, float]:
    """How far the changes of a step are from those of a golden, of which norm and projection are kept.

    Returns:
      The error of a leaf's projection, a share of the leaf's norm, the median over leaves that move; and that of all
      leaves together, an estimate of the norm of the error as a share of that of all changes.
    """
    names, errors, norms = timm_weights.torch_names(changes), [], []
    for path, change in flatten_dict(changes).items():
        norm, projection = golden[names[path]]
        change = timm_weights.to_torch(path, np.asarray(change))
        probe = np.random.default_rng(timm_weights.crc(f"{names[path]}/probe")).normal(0, 1, change.shape)
        errors.append(abs(np.sum(probe * change) - projection))
        norms.append(norm)
    moving = np.array(norms) > 1e-6
    each = np.array(errors)[moving] / np.array(norms)[moving]
    return float(np.median(each)), float(np.linalg.norm(errors) / np.linalg.norm(norms))
