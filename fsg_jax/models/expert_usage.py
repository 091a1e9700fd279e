"""How the experts of a head are used: weights by gate and expert, and what goes wrong, measured.

HoME (Wang et al. 2024) names three anomalies in words; the measures here are ours. *Collapse*: outputs of experts
differ in scale, and many are zero. *Degradation*: one task occupies an expert that is there for all. *Underfitting*: a
task passes over its own experts.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from fsg_jax._checks import expect
from fsg_jax.models.experts import SHARED, ExpertHead


class LevelUsage(NamedTuple):
    """One level of a head, over some examples.

    Attributes:
      gates: names of the nodes whose gates these are.
      experts: names of the experts, ``NODE.NUMBER``.
      weights: mean weight by gate and expert; rows sum to 1. Self-gates are not in it.
      entropy: by gate, mean entropy of its weights over the logarithm of the experts that it sees, in [0, 1]; 0 for a
        gate over one expert.
      zeros: by expert, share of its outputs that are 0, as those of ReLU that pass no gradient.
      scale: by expert, root mean square of its outputs.
    """

    gates: Sequence[str]
    experts: Sequence[str]
    weights: Float[np.ndarray, "gates experts"]
    entropy: Float[np.ndarray, " gates"]
    zeros: Float[np.ndarray, " experts"]
    scale: Float[np.ndarray, " experts"]


def expert_usage(head: ExpertHead, captured: Mapping[str, Any]) -> list[LevelUsage]:
    """The usage of every level.

    Args:
      head: the head.
      captured: its collection ``"experts"``, over all examples: ``{"level1": {"gates": ..., "activations": ...}}``,
        each an array with the examples first, or a tuple of one, as Flax sows it.

    Raises:
      ValueError: `captured` is of another head.
    """
    levels = []
    for i, (gates, experts) in enumerate(zip(head.gate_names, head.expert_names, strict=True), 1):
        found = captured.get(f"level{i}", {})
        weights, outputs = (_array(found.get(name)) for name in ("gates", "activations"))
        fits = weights.shape[1:] == (len(gates), len(experts)) and outputs.shape[:2] == (len(weights), len(experts))
        wanted = f"gates (examples, {len(gates)}, {len(experts)}) and activations (examples, {len(experts)}, width)"
        expect(fits and len(weights), f"level{i}", wanted, f"{weights.shape} and {outputs.shape}")
        with np.errstate(divide="ignore", invalid="ignore"):
            nats = -np.where(weights > 0, weights * np.log(weights), 0).sum(-1).mean(0)
        most = np.log(np.maximum((weights > 0).any(0).sum(-1), 2))
        scale = np.sqrt(np.square(outputs).mean((0, 2)))
        levels.append(LevelUsage(gates, experts, weights.mean(0), nats / most, (outputs == 0).mean((0, 2)), scale))
    return levels


def _array(leaf: Any) -> np.ndarray:
    leaf = leaf[0] if isinstance(leaf, tuple) and len(leaf) == 1 else leaf
    return np.asarray(np.zeros(0) if leaf is None else leaf, np.float64)


def anomalies(head: ExpertHead, levels: Sequence[LevelUsage]) -> dict[str, float]:
    """The three anomalies, each in numbers; what a head cannot have is left out.

    Returns:
      ``scale_ratio``: the largest scale of an expert over the smallest of its level, the worst of the levels; infinite
      where one puts out zeros only. ``mostly_zero``: share of experts of which more than 90 % of the outputs are 0.
      ``occupied``: on the last level, the largest share that one task has in the weights that all tasks give to a
      shared expert; even use is 1 over the tasks. ``own_weight_TASK``: the weight that a task gives to its own experts
      on the last level, over their share of the experts that it sees; 1 is even, 0 is passed over.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = [level.scale.max() / level.scale.min() if level.scale.max() else np.inf for level in levels]
    found = {"scale_ratio": float(max(ratios))}
    found["mostly_zero"] = float(np.mean(np.concatenate([level.zeros for level in levels]) > 0.9))
    last = levels[-1]
    owners = np.array([name.rsplit(".", 1)[0] for name in last.experts])
    shared = last.weights[:, owners == SHARED]
    if shared.size and len(last.gates) > 1:
        total = shared.sum(0)
        found["occupied"] = float((shared.max(0) / np.where(total, total, 1)).max())
    for task, weights in zip(last.gates, last.weights, strict=True):
        own = owners == task
        if own.any() and (weights[~own] > 0).any():
            found[f"own_weight_{task}"] = float(weights[own].sum() / (own.sum() / (weights > 0).sum()))
    return found
