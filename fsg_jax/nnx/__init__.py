"""Gates and the routed step for models of Flax NNX; imported when ``fsg_jax.nnx`` is first used."""

from fsg_jax.nnx.gate import Gate, GateLogits
from fsg_jax.nnx.module import init_state, make_train_step, merge

__all__ = ["Gate", "GateLogits", "init_state", "make_train_step", "merge"]
