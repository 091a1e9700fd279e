"""Feature-Selection Gates with Gradient Routing in JAX (after Roffo et al., MICCAI 2024, arXiv 2407.04400)."""

from importlib import import_module
from types import ModuleType

from fsg_jax import augment, endoscopy, explain
from fsg_jax.endoscopy import sizing
from fsg_jax.gates import penalties
from fsg_jax.gates.channel_attention import EfficientChannelAttention, SqueezeExcite
from fsg_jax.gates.fold import fold_gates
from fsg_jax.gates.functions import squash
from fsg_jax.gates.gate import Gate
from fsg_jax.gates.penalties import gate_penalty
from fsg_jax.gates.prune import Pruned, mask_gates, prune
from fsg_jax.gates.select import harden, selected
from fsg_jax.gates.summary import count_parameters, gate_summary, gate_values
from fsg_jax.linen.init_state import init_state
from fsg_jax.models import create_model, list_models
from fsg_jax.models.experts import ExpertHead, expert_head
from fsg_jax.models.gla import gated_linear_attention
from fsg_jax.pretrained import Preprocessing, Pretrained, load_pretrained, save_pretrained
from fsg_jax.routing import ROUTINGS, RoutedTransformation, is_weight, route, routed
from fsg_jax.training import losses, metrics, sharding
from fsg_jax.training.checkpoint import Checkpointer, CheckpointError
from fsg_jax.training.evaluate import EvalStep, evaluate, make_eval_step
from fsg_jax.training.state import TrainState
from fsg_jax.training.step import TrainStep, make_train_step
from fsg_jax.training.task_losses import make_task_loss, where_present
from fsg_jax.typing import GATES

__version__ = "0.1.0"


def __getattr__(name: str) -> ModuleType:
    """``fsg_jax.nnx``, which imports Flax NNX."""
    if name == "nnx":
        return import_module("fsg_jax.nnx")
    raise AttributeError(f"module 'fsg_jax' has no attribute {name!r}")


__all__ = [
    "GATES",
    "ROUTINGS",
    "CheckpointError",
    "Checkpointer",
    "EfficientChannelAttention",
    "EvalStep",
    "ExpertHead",
    "Gate",
    "Preprocessing",
    "Pretrained",
    "Pruned",
    "RoutedTransformation",
    "SqueezeExcite",
    "TrainState",
    "TrainStep",
    "augment",
    "count_parameters",
    "create_model",
    "endoscopy",
    "evaluate",
    "expert_head",
    "explain",
    "fold_gates",
    "gate_penalty",
    "gate_summary",
    "gate_values",
    "gated_linear_attention",
    "harden",
    "init_state",
    "is_weight",
    "list_models",
    "load_pretrained",
    "losses",
    "make_eval_step",
    "make_task_loss",
    "make_train_step",
    "mask_gates",
    "metrics",
    "penalties",
    "prune",
    "route",
    "routed",
    "save_pretrained",
    "selected",
    "sharding",
    "sizing",
    "squash",
    "where_present",
]
