"""The step of the goldens: SGD of rate 1 moves every leaf by minus its gradient, the gates first."""

from functools import cache
from typing import Any

import jax
import numpy as np
import optax
import reduced

import fsg_jax as fsg

TX = fsg.routed(params=optax.sgd(1.0), gates=optax.sgd(1.0))
STEP = fsg.make_train_step(fsg.losses.cross_entropy, "sequential")


@cache
def trained(name: str, remat: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    """Changes of all variables in one step from the weights of the rule, and the metrics; compiled once."""
    before = reduced.variables(name)
    model = reduced.reduced(name, remat=remat)
    state = fsg.init_state(model, TX, jax.random.key(0), reduced.inputs(name), variables=before)
    state, metrics = STEP(state, {"image": reduced.inputs(name), "label": reduced.labels()})
    return jax.tree.map(lambda a, b: np.asarray(a, np.float64) - np.asarray(b), state.variables, before), metrics
