"""Heads of experts in the configurations: which one, how wide, who moves its gates, and how its experts are used."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, partial
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fsg_jax as fsg
from experiments.build import clipping
from experiments.config import AddedArm, Count, Gate, Share, Width, within
from fsg_jax._checks import expect
from fsg_jax.models.expert_usage import anomalies, expert_usage
from fsg_jax.models.experts import ExpertHead, expert_head
from fsg_jax.routing import Pass, RoutedTransformation
from fsg_jax.typing import Loss

TOLERANCE = 0.05
"""Of the number of parameters, relative."""


@dataclass(frozen=True)
class Head:
    """A head of experts for several tasks; what is None is as `fsg_jax.models.experts.HEADS` says."""

    name: Literal["separate", "shared_bottom", "mmoe", "cgc", "ple", "home"] = "shared_bottom"
    parameters: Count | None = None
    """Number of parameters of the head, by which the width of the experts is chosen, to within 5 %; None: `width`."""
    width: Width = 16
    """Of the experts, without `parameters`."""
    hidden: tuple[Width, ...] = ()
    """Widths of an expert's layers before the last."""
    tower: tuple[Width, ...] = (8,)
    """Widths of the hidden layers of each task."""
    norm: Literal["none", "layer", "batch"] | None = None
    activation: Literal["relu", "swish"] | None = None
    feature_gates: Annotated[int, within(0, 2**6)] | None = None
    feature_rank: Width | None = None
    """Of each feature gate; None: the width of the stream over their number."""
    self_gates: bool | None = None
    masked: bool = True
    """Each gate sees the experts on its path alone."""
    share_all: bool = True
    """The shared gate sees the experts of all groups."""
    gate_input: Literal["stream", "concat", "concat_gated"] | None = None
    gate_dropout: Share = 0.0
    dropout: Share = 0.0
    log_variance: bool = False
    """Learn the weights of the tasks."""


def head_arms(prefix: str) -> tuple[AddedArm, ...]:
    """The family, and HoME without each part; `prefix` is the key of the head. ``baseline`` is the shared bottom."""
    parts: dict[str, dict[str, Any]] = {
        "no_norm": {"norm": "none", "activation": "relu"},
        "no_feature_gates": {"feature_gates": 0},
        "no_self_gates": {"self_gates": False},
        "no_mask": {"masked": False},
        "no_share_all": {"share_all": False},
    }
    arms: dict[str, dict[str, Any]] = {name: {"name": name} for name in ("separate", "mmoe", "cgc", "ple", "home")}
    arms |= {f"home_{name}": {"name": "home", **values} for name, values in parts.items()}
    found = {arm: {f"{prefix}.{key}": value for key, value in values.items()} for arm, values in arms.items()}
    for arm in ("mmoe", "home"):
        found[f"{arm}_routed"] = found[arm] | {"arm.routing": "tasks"}
    return tuple(AddedArm(arm, tuple(values.items())) for arm, values in found.items())


def make_head(
    config: Head, tasks: Mapping[str, int], groups: Mapping[str, Sequence[str]], inputs: int, **options: Any
) -> ExpertHead:
    """The head of a configuration for embeddings of `inputs` features.

    Raises:
      ValueError: no width gives the number of parameters asked for; the nearest number is named.
    """
    own = {k: v for k, v in vars(config).items() if k not in ("name", "parameters", "width", "hidden", "tower")}
    own = {k: v for k, v in own.items() if v is not None}
    own |= {"expert_hidden": config.hidden, "tower_hidden": config.tower, "groups": dict(groups), **options}
    width = config.width
    if config.parameters is not None:
        members = tuple((name, tuple(group)) for name, group in groups.items())
        width = fit_width(config, tuple(tasks.items()), members, inputs)
    return expert_head(config.name, tasks, expert_width=width, **own)


@cache
def fit_width(
    config: Head, tasks: tuple[tuple[str, int], ...], groups: tuple[tuple[str, tuple[str, ...]], ...], inputs: int
) -> int:
    """The width of the experts with which a head has the number of parameters that the configuration asks for.

    Raises:
      ValueError: as `make_head`.
    """

    def size(width: int) -> int:
        return count(
            make_head(replace(config, parameters=None, width=width), dict(tasks), dict(groups), inputs), inputs
        )

    wanted, some = config.parameters or 0, (8, 16, 32)
    curve = np.polynomial.Polynomial.fit(some, [size(width) for width in some], 2)  # of the square, rounding aside
    near_it = int(max((curve - wanted).roots().real.max(), 1))
    width = min((near_it, near_it + 1), key=lambda width: abs(size(width) - wanted))
    near = abs(size(width) - wanted) <= TOLERANCE * wanted
    found = f"{size(width)} at width {width}"
    expect(near, f"parameters of the head {config.name}", f"{wanted} within 5 %", found)
    return width


def factory(head: ExpertHead) -> Any:
    """What makes heads like this one, as a model takes it."""
    own = {f.name: getattr(head, f.name) for f in fields(head) if f.name not in ("parent", "name")}
    return partial(ExpertHead, **own)


def count(head: ExpertHead, inputs: int) -> int:
    """Parameters of a head; nothing is computed."""
    shapes = jax.eval_shape(head.init, jax.random.key(0), jnp.zeros((1, inputs)))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


def task_passes(
    head: ExpertHead, path: str, loss: Loss, weights: optax.GradientTransformation, gate: Gate
) -> tuple[RoutedTransformation, list[Pass]]:
    """Gradient routing of a head: a pass a task, which moves the task's gates by the task's loss; then the weights.

    The gates of a task are those that mix its experts, its self-gates and its feature gates, on every level.

    Args:
      head: the head.
      path: of the head's parameters, e.g. ``"params/head/"``.
      loss: from `fsg_jax.make_task_loss`.
      weights: moves all other leaves.
      gate: learning rate and clipping of the gates.
    """
    labels = {f"gates_{task}": rf"{path}level\d+/(self_|feature_)?gate_{task}/.*" for task in head.tasks}
    optimizers = {label: optax.chain(*clipping(gate.clip), optax.adam(gate.learning_rate)) for label in labels}

    def only(task: str) -> Loss:
        return lambda outputs, batch: {task: loss(outputs, batch)[task]}

    passes = [Pass([f"gates_{task}"], only(task)) for task in head.tasks] + [Pass(["weights"])]
    return fsg.routed(labels={**labels, "weights": ...}, weights=weights, **optimizers), passes


def usage_record(head: ExpertHead, captured: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a record that say how experts are used: by level, and the anomalies."""
    levels = expert_usage(head, captured)
    shown = [
        {k: np.round(v, 4).tolist() if isinstance(v, np.ndarray) else list(v) for k, v in level._asdict().items()}
        for level in levels
    ]
    found = {name: value if np.isfinite(value) else None for name, value in anomalies(head, levels).items()}
    return {"experts": shown, "anomalies": found}
