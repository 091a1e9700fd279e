"""Feature-Selection Gates with Gradient Routing in JAX (after Roffo et al., MICCAI 2024, arXiv 2407.04400)."""

from fsg_jax import augment, losses, metrics, penalties, sharding, sizing
from fsg_jax.attention_gates import EfficientChannelAttention, SqueezeExcite
from fsg_jax.checkpoint import Checkpointer, CheckpointError
from fsg_jax.gates import GATES, Gate
from fsg_jax.models import create_model, list_models
from fsg_jax.optim import RoutedTransformation, routed
from fsg_jax.penalties import gate_penalty
from fsg_jax.routing import ROUTINGS, route
from fsg_jax.squash import squash
from fsg_jax.state import TrainState, init_state
from fsg_jax.step import EvalStep, TrainStep, make_eval_step, make_train_step
from fsg_jax.summary import count_parameters, gate_summary, gate_values

__version__ = "0.1.0"

__all__ = [
    "GATES",
    "ROUTINGS",
    "CheckpointError",
    "Checkpointer",
    "EfficientChannelAttention",
    "EvalStep",
    "Gate",
    "RoutedTransformation",
    "SqueezeExcite",
    "TrainState",
    "TrainStep",
    "augment",
    "count_parameters",
    "create_model",
    "gate_penalty",
    "gate_summary",
    "gate_values",
    "init_state",
    "list_models",
    "losses",
    "make_eval_step",
    "make_train_step",
    "metrics",
    "penalties",
    "route",
    "routed",
    "sharding",
    "sizing",
    "squash",
]
