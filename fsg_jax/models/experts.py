"""One head of experts for many tasks: shared bottom, MMoE, CGC, PLE and HoME are configurations of it.

A tree says which tasks belong together: the root is ``"shared"``, below it are groups, below these the tasks. Every
level has experts at some nodes of the tree. A gate mixes, by one softmax, the experts on the path from the root to its
own node, and none else.

Sources: MMoE, Ma et al. 2018 (KDD); CGC and PLE, Tang et al. 2020 (RecSys); HoME, Wang et al. 2024 (arXiv 2408.05430).
The full text of the HoME paper could not be read. Its problem statement, the names of its parts, the normalised experts
with Swish, the gate ``2 sigmoid`` of low rank and the residual self-gate are confirmed by its abstract or by other
implementations; that two low-rank gates are mixed, that their rank is the width over their number, and what the gates
of the second level read are not. For these the options say what we do.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict
from jax.nn import initializers
from jaxtyping import Array, Float

from fsg_jax._checks import check_choice, check_integer, check_positive, check_rates, expect, look_up
from fsg_jax.gates.functions import at_least_float32
from fsg_jax.gates.sites import Site, Use
from fsg_jax.models.arguments import check_factory
from fsg_jax.models.layers import ModuleDef, apply_gate
from fsg_jax.typing import LOG_VARIANCE

SHARED = "shared"
"""The root of the tree."""
CAPTURE = "experts"
"""Collection into which every level sows ``gates`` and ``activations``; see `ExpertHead`."""

NORMS = ("none", "layer", "batch")
ACTIVATIONS = {"relu": jax.nn.relu, "swish": jax.nn.silu}
GATE_INPUTS = ("stream", "concat", "concat_gated")

Vectors = Float[Array, "batch _features"]
Weights = Float[Array, "batch gates experts"]


class StackedDense(nn.Module):
    """``y_e = x_e W_e + b_e`` for all experts e at once; kernel (experts, inputs, features)."""

    experts: int
    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Float[Array, "batch experts features"]:
        """`x` is (batch, inputs), the same for all, or (batch, experts, inputs)."""
        shape = (self.experts, x.shape[-1], self.features)
        kernel = self.param("kernel", initializers.lecun_normal(batch_axis=(0,)), shape, jnp.float32)
        bias = self.param("bias", initializers.zeros, (self.experts, self.features), jnp.float32)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return jnp.einsum("bi,eio->beo" if x.ndim == 2 else "bei,eio->beo", x, kernel) + bias[None]


class Experts(nn.Module):
    """All experts of a level: ``activation(norm(fc(relu(... fc0(x)))))``, stacked in one tensor a layer.

    Attributes:
      count: experts.
      widths: of their layers, the last one that of the output.
      norm: of each expert's last layer: ``"layer"``, over its features (epsilon 1e-6); ``"batch"``, over the batch
        (epsilon 1e-5, running averages of momentum 0.9, biased variance); ``"none"``.
      activation: ``"swish"`` or ``"relu"``, of the last layer.
      dtype: of the computation.
    """

    count: int
    widths: Sequence[int]
    norm: str
    activation: str
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Float[Array, "batch experts features"]:
        """`x` as for `StackedDense`."""
        *hidden, width = self.widths
        for i, features in enumerate(hidden):
            x = jax.nn.relu(StackedDense(self.count, features, self.dtype, name=f"fc{i}")(x))
        x = StackedDense(self.count, width, self.dtype, name=f"fc{len(hidden)}")(x)
        if self.norm == "layer":  # scale and bias (experts, features)
            x = nn.LayerNorm(1e-6, self.dtype, reduction_axes=-1, feature_axes=(-2, -1), name="norm")(x)
        elif self.norm == "batch":
            axes: Any = (-2, -1)
            x = nn.BatchNorm(not train, axes, momentum=0.9, epsilon=1e-5, dtype=self.dtype, name="norm")(x)
        return ACTIVATIONS[self.activation](x)


class GateLogits(nn.Module):
    """``W relu(... W0 x + b0)``: the logits of a gate; the last layer has a bias if `bias`, the hidden ones always."""

    features: int
    hidden: Sequence[int] = ()
    bias: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Vectors) -> Vectors:
        """(batch, features), in at least float32."""
        for i, width in enumerate(self.hidden):
            x = jax.nn.relu(nn.Dense(width, dtype=self.dtype, name=f"fc{i}")(x))
        return at_least_float32(nn.Dense(self.features, use_bias=self.bias, dtype=self.dtype, name="out")(x))


class FeatureGate(nn.Module):
    """``x * (1 + sum_l a_l (2 sigmoid(x A_l B_l) - 1))``, ``a = softmax(x M)``: HoME's private view of an input.

    That is ``x * sum_l a_l 2 sigmoid(...)``, written so that it is the identity, bit for bit, where every ``B_l`` is 0,
    as at the start: the weights of a softmax need not sum to 1 in floating point.

    Attributes:
      count: low-rank gates that are mixed; one has no mix.
      rank: of each.
      bias: of the mix.
      dtype: of the computation.
    """

    count: int
    rank: int
    bias: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Vectors) -> Vectors:
        """The same shape as `x`."""
        dim = x.shape[-1]
        down = self.param("down", initializers.lecun_normal(batch_axis=(0,)), (self.count, dim, self.rank), jnp.float32)
        up = self.param("up", initializers.zeros, (self.count, self.rank, dim), jnp.float32)
        y, down, up = nn.dtypes.promote_dtype(x, down, up, dtype=self.dtype)
        gates = 2 * jax.nn.sigmoid(jnp.einsum("bi,lir,lro->blo", y, down, up)) - 1
        if self.count == 1:
            return y * (1 + gates[:, 0])
        mix = jax.nn.softmax(GateLogits(self.count, bias=self.bias, dtype=self.dtype, name="mix")(x))
        return y * (1 + jnp.einsum("bl,blo->bo", mix.astype(gates.dtype), gates))


class Level(nn.Module):
    """One level of experts and gates; the other attributes are those of `ExpertHead`.

    Attributes:
      experts: their number by node, in the order of the stacked tensor.
      outputs: by the node of each stream that the level puts out, the nodes whose experts its gate sees.
      sources: by node, the stream that its experts and gates read.
      widths: of an expert's layers.
    """

    experts: Mapping[str, int]
    outputs: Mapping[str, Sequence[str]]
    sources: Mapping[str, str]
    widths: Sequence[int]
    norm: str
    activation: str
    feature_gates: int
    feature_rank: int | None
    self_gates: bool
    gate_input: str
    gate_hidden: Sequence[int]
    gate_bias: bool
    gate_dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, streams: Mapping[str, Vectors], *, train: bool) -> dict[str, Vectors]:
        """The streams that the level puts out, by node."""
        raw = {node: streams[source] for node, source in self.sources.items()}
        seen = {node: self._view(node, raw[node]) for node, number in self.experts.items() if number}
        inputs = [seen[node] for node, number in self.experts.items() for _ in range(number)]
        same, count = all(x is inputs[0] for x in inputs), len(inputs)
        stack = Experts(count, self.widths, self.norm, self.activation, self.dtype, name="experts")
        experts = stack(inputs[0] if same else jnp.stack(inputs, 1), train=train)

        ends = np.cumsum([*self.experts.values()])
        columns = {node: np.arange(end - n, end) for (node, n), end in zip(self.experts.items(), ends, strict=True)}
        rows = []
        for node, path in self.outputs.items():
            own = np.concatenate([columns[name] for name in path])
            logits = self._logits(f"gate_{node}", len(own), self._gate_input(node, seen, streams))
            rows.append(jnp.full((logits.shape[0], count), -jnp.inf, logits.dtype).at[:, own].set(logits))
        weights = self._drop(jax.nn.softmax(jnp.stack(rows, 1)), train)
        if not self.is_initializing():
            self.sow(CAPTURE, "gates", weights)
            self.sow(CAPTURE, "activations", experts)
        mixed = jnp.einsum("bge,bed->bgd", weights.astype(experts.dtype), experts)
        found = {node: mixed[:, i] for i, node in enumerate(self.outputs)}
        for node in found:
            if self.self_gates and self.experts.get(node):
                found[node] += self._own(node, raw[node], experts[:, columns[node]])
        return found

    def _view(self, node: str, x: Vectors) -> Vectors:
        """What the experts of a node read: its stream, through a feature gate of the node if there are any."""
        if not self.feature_gates:
            return x
        rank = self.feature_rank or max(x.shape[-1] // self.feature_gates, 1)
        return FeatureGate(self.feature_gates, rank, self.gate_bias, self.dtype, name=f"feature_gate_{node}")(x)

    def _gate_input(self, node: str, seen: Mapping[str, Vectors], streams: Mapping[str, Vectors]) -> Vectors:
        source = self.sources[node]
        if self.gate_input == "stream" or source == SHARED or SHARED not in streams:
            return streams[source]
        gated = seen if self.gate_input == "concat_gated" else {}
        return jnp.concatenate([gated.get(name, streams[name]) for name in (source, SHARED)], axis=-1)

    def _logits(self, name: str, features: int, x: Vectors) -> Vectors:
        """Of a gate; over one expert it has nothing to learn, and no parameters."""
        if features == 1:
            return jnp.zeros((x.shape[0], 1), at_least_float32(x).dtype)
        return GateLogits(features, self.gate_hidden, self.gate_bias, self.dtype, name=name)(x)

    def _drop(self, weights: Weights, train: bool) -> Weights:
        """In training, without some of the experts, the others scaled up to a sum of 1; never without all."""
        if not train or not self.gate_dropout:
            return weights
        kept = weights * jax.random.bernoulli(self.make_rng("dropout"), 1 - self.gate_dropout, weights.shape)
        total = kept.sum(-1, keepdims=True)
        return jnp.where(total > 0, kept / jnp.where(total > 0, total, 1), weights)

    def _own(self, node: str, x: Vectors, experts: Float[Array, "batch _own width"]) -> Vectors:
        """HoME's self-gate: a residual over a node's own experts, so that these always have a gradient."""
        number = experts.shape[1]
        logits = GateLogits(number, (), self.gate_bias, self.dtype, name=f"self_gate_{node}")(x)
        weights = jax.nn.sigmoid(logits) if number == 1 else jax.nn.softmax(logits)
        return jnp.einsum("be,bed->bd", weights.astype(experts.dtype), experts)


class Tower(nn.Module):
    """``out(relu(... fc0(g(x))))``, ``g`` the gate if any: the layers of one task."""

    outputs: int
    hidden: Sequence[int]
    dropout: float
    gate: ModuleDef | None
    dtype: Any

    @nn.compact
    def __call__(self, x: Vectors, *, train: bool) -> Vectors:
        """(batch, outputs), in at least float32."""
        x = apply_gate(self.gate, x, name="gate", train=train)
        for i, width in enumerate(self.hidden):
            x = jax.nn.relu(nn.Dense(width, dtype=self.dtype, name=f"fc{i}")(x))
            x = nn.Dropout(self.dropout, name=f"drop{i}")(x, deterministic=not train)
        return at_least_float32(nn.Dense(self.outputs, dtype=self.dtype, name="out")(x))


class ExpertHead(nn.Module):
    """Outputs for several tasks from one embedding, by levels of experts that gates mix; see the module's text.

    For node n of a level, with the experts E of the nodes on its path: ``z_n = sum_e softmax(G_n(.))_e E_e(.)``, and
    with self-gates also ``sum_e S_n(.)_e E_e(.)`` over its own experts, where ``S_n`` is a softmax or, over one expert,
    a sigmoid. All levels but the last put out a stream for every node that they name; the last puts out those of the
    tasks, which go through a tower each. The experts and gates of a node read the stream of the node from the level
    before, or that of the nearest node above it; on the first level all read the embedding.

    With ``capture=("experts",)`` (`fsg_jax.make_eval_step`), or ``mutable=["experts"]``, each level gives ``gates``,
    (batch, gates, experts), whose rows sum to 1 and are 0 off the path, and ``activations``, (batch, experts, width);
    `gate_names` and `expert_names` are the names of rows and columns.

    Attributes:
      tasks: number of outputs by task, e.g. ``{"size": 1, "histology": 4}``.
      groups: tasks by group; none: every task stands below the root. A task is in one group or in none.
      experts: for each level the number of experts by node: a node's own name, or ``"group"`` or ``"task"`` for all of
        that kind. ``"shared"`` is the root.
      expert_width: of the streams, for all levels or for each.
      expert_hidden: widths of an expert's layers before the last; ReLU between.
      gate_hidden: likewise, of the gates that mix.
      tower_hidden: likewise, of the towers.
      norm: of the experts' last layer, ``"none"``, ``"layer"`` or ``"batch"``. A batch of frames from few videos makes
        the statistics of ``"batch"``, which HoME has, unsafe.
      activation: of the experts, ``"relu"`` or ``"swish"``.
      feature_gates: low-rank feature gates that are mixed at each node (HoME: 2); 0: none.
      feature_rank: of each; None: the width of the stream over `feature_gates`.
      self_gates: HoME's residual gates of a node's own experts.
      masked: a gate sees the experts on its path alone; False: those of all nodes (HoME without its hierarchy mask).
      share_all: the gate of ``"shared"`` sees the experts of all nodes, as in PLE and HoME; or those of the root alone.
        It is the one way by which a task's loss reaches the experts of other groups.
      gate_input: what a gate reads from the second level on: ``"stream"``, its node's stream; ``"concat"``, that and
        the stream of ``"shared"``; ``"concat_gated"``, both through the feature gates of their nodes.
      gate_bias: the gates have a bias.
      gate_dropout: rate at which a gate leaves out an expert in training; random stream ``"dropout"``.
      dropout: rate after each hidden layer of a tower.
      gate: factory of feature-selection gates ``tower_TASK/gate`` on the input of each tower; None makes none.
      log_variance: learn the weights of the tasks (Kendall et al. 2018): the outputs then hold ``"log_variance"``, one
        value a task in the order of `tasks`, 0 at the start, which `fsg_jax.make_task_loss` uses.
      dtype: of the computation; softmaxes and outputs are float32.

    Raises:
      ValueError: on construction, for an attribute out of its range, or a level at which a gate sees no expert or a
        node has nothing to read.
    """

    tasks: Mapping[str, int]
    groups: Mapping[str, Sequence[str]] = FrozenDict()
    experts: Sequence[Mapping[str, int]] = (FrozenDict({SHARED: 4}),)
    expert_width: int | Sequence[int] = 64
    expert_hidden: Sequence[int] = ()
    gate_hidden: Sequence[int] = ()
    tower_hidden: Sequence[int] = (32,)
    norm: str = "none"
    activation: str = "relu"
    feature_gates: int = 0
    feature_rank: int | None = None
    self_gates: bool = False
    masked: bool = True
    share_all: bool = True
    gate_input: str = "stream"
    gate_bias: bool = False
    gate_dropout: float = 0.0
    dropout: float = 0.0
    gate: ModuleDef | None = None
    log_variance: bool = False
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        """Checks the attributes."""
        expect(isinstance(self.tasks, Mapping), "tasks", "outputs by task", self.tasks)
        expect(self.tasks, "tasks", "one or more", "none")
        for task, outputs in self.tasks.items():
            check_integer(f"tasks[{task!r}]", outputs, 1)
        members = [task for group in self.groups.values() for task in group]
        expect(sorted(members) == sorted(set(members) & set(self.tasks)), "groups", "tasks, each once", members)
        names = [SHARED, "group", "task", LOG_VARIANCE, *self.groups, *self.tasks]
        expect(len(set(names)) == len(names), "tasks, groups", f"names that differ, also from {names[:4]}", names[4:])
        bad = [name for name in names if not name or "/" in name]
        expect(not bad, "tasks, groups", "names that are not empty and have no /", bad)
        expect(self.experts, "experts", "one level or more", "none")
        for i, level in enumerate(self.experts):
            expect(isinstance(level, Mapping), f"experts[{i}]", "numbers of experts by node", repr(level))
            for name, number in level.items():
                expect(name in {*names} - {LOG_VARIANCE}, f"experts[{i}]", f"nodes, {names[:3]} or of the tree", name)
                check_integer(f"experts[{i}][{name!r}]", number, 0)
        if not isinstance(self.expert_width, int):
            expect(
                isinstance(self.expert_width, Sequence), "expert_width", "an integer, or one a level", self.expert_width
            )
            found = len(self.expert_width)
            expect(found == len(self.experts), "expert_width", f"one a level, {len(self.experts)}", found)
        for i, width in enumerate(self._widths()):
            check_integer(f"expert_width[{i}]", width, 1)
        for argument in ("expert_hidden", "gate_hidden", "tower_hidden"):
            check_positive(**{f"{argument}[{i}]": width for i, width in enumerate(getattr(self, argument))})
        check_choice("norm", self.norm, NORMS)
        check_choice("activation", self.activation, ACTIVATIONS)
        check_choice("gate_input", self.gate_input, GATE_INPUTS)
        check_integer("feature_gates", self.feature_gates, 0)
        if self.feature_rank is not None:
            check_integer("feature_rank", self.feature_rank, 1)
        check_rates(gate_dropout=self.gate_dropout, dropout=self.dropout)
        check_factory("gate", self.gate)
        for i, (_, seen, sources) in enumerate(self._levels()):
            empty = [node for node, path in seen.items() if not path]
            expect(not empty, f"experts[{i}]", "an expert on the path of every output", f"none for {empty}")
            lost = [node for node, source in sources.items() if not source]
            expect(not lost, f"experts[{i}]", "a stream of the level before on every path", f"none for {lost}")
        super().__post_init__()

    def _widths(self) -> list[int]:
        return [self.expert_width] * len(self.experts) if isinstance(self.expert_width, int) else [*self.expert_width]

    def _levels(self) -> list[tuple[dict[str, int], dict[str, tuple[str, ...]], dict[str, str]]]:
        """`experts`, `outputs` and `sources` of each `Level`; a source is empty where there is none.

        The embedding, which the first level reads, is the stream of the root.
        """
        paths: dict[str, tuple[str, ...]] = {SHARED: (SHARED,)} | {name: (SHARED, name) for name in self.groups}
        group_of = {task: name for name, members in self.groups.items() for task in members}
        for task in self.tasks:
            paths[task] = (*paths[group_of.get(task, SHARED)], task)
        kinds = dict.fromkeys(self.groups, "group") | dict.fromkeys(self.tasks, "task")
        levels, there = [], {SHARED}
        for i, level in enumerate(self.experts):
            named = [node for node in paths if node in level or kinds.get(node) in level]
            experts = {node: level.get(node, level.get(kinds.get(node, ""), 0)) for node in named}
            outputs = {}
            for node in self.tasks if i == len(self.experts) - 1 else named:
                everything = not self.masked or (node == SHARED and self.share_all)
                path = named if everything else paths[node]
                outputs[node] = tuple(name for name in path if experts.get(name))
            needed = [node for node in paths if node in experts or node in outputs]
            sources = {n: next((name for name in reversed(paths[n]) if name in there), "") for n in needed}
            levels.append((experts, outputs, sources))
            there = set(outputs)
        return levels

    @property
    def gate_names(self) -> list[list[str]]:
        """For each level the nodes whose gates are the rows of ``gates``."""
        return [list(outputs) for _, outputs, _ in self._levels()]

    @property
    def expert_names(self) -> list[list[str]]:
        """For each level the names of the experts, ``NODE.NUMBER``, the columns of ``gates``."""
        return [[f"{node}.{i}" for node, n in experts.items() for i in range(n)] for experts, _, _ in self._levels()]

    def gate_sites(self) -> dict[str, Site]:
        """Which weights read the channels of each gate; see `fsg_jax.gates.sites`."""
        first = "fc0" if self.tower_hidden else "out"
        width = self._widths()[-1]
        return {f"tower_{task}/gate": Site(width, (Use(f"tower_{task}/{first}", "in"),)) for task in self.tasks}

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> dict[str, Array]:
        """Returns (batch, outputs) by task, in float32, and ``"log_variance"`` if it is learned.

        Args:
          x: the embedding, (batch, features), floating point.
          train: draw dropout, and take the statistics of the batch for ``norm="batch"``.

        Raises:
          ValueError: `x` has another rank or is not floating point.
        """
        fits = x.ndim == 2 and jnp.issubdtype(x.dtype, jnp.floating)
        expect(fits, "x", "floating point of shape (batch, features)", f"{x.dtype} of shape {x.shape}")
        level = partial(
            Level,
            norm=self.norm,
            activation=self.activation,
            feature_gates=self.feature_gates,
            feature_rank=self.feature_rank,
            self_gates=self.self_gates,
            gate_input=self.gate_input,
            gate_hidden=self.gate_hidden,
            gate_bias=self.gate_bias,
            gate_dropout=self.gate_dropout,
            dtype=self.dtype,
        )
        streams = {SHARED: x}
        for i, (nodes, width) in enumerate(zip(self._levels(), self._widths(), strict=True), 1):
            streams = level(*nodes, (*self.expert_hidden, width), name=f"level{i}")(streams, train=train)
        found = {}
        for task, outputs in self.tasks.items():
            tower = Tower(outputs, self.tower_hidden, self.dropout, self.gate, self.dtype, name=f"tower_{task}")
            found[task] = tower(streams[task], train=train)
        if self.log_variance:
            found[LOG_VARIANCE] = self.param(LOG_VARIANCE, initializers.zeros, (len(self.tasks),), jnp.float32)
        return found


HOME: dict[str, Any] = {
    "experts": ({SHARED: 2, "group": 2}, {SHARED: 1, "group": 1, "task": 1}),
    "norm": "layer",
    "activation": "swish",
    "feature_gates": 2,
    "self_gates": True,
    "gate_input": "concat",
}
"""The options that make HoME of a head."""
HEADS: dict[str, dict[str, Any]] = {
    "separate": {"experts": ({"task": 1},)},
    "shared_bottom": {"experts": ({SHARED: 1},)},
    "mmoe": {"experts": ({SHARED: 4},)},
    "cgc": {"experts": ({SHARED: 2, "task": 1},)},
    "ple": {"experts": ({SHARED: 2, "task": 1}, {SHARED: 2, "task": 1})},
    "home": HOME,
}
"""Arguments of the named heads. Numbers of experts are ours: those of the papers' systems are not published or not
transferable."""


def expert_head(name: str, /, tasks: Mapping[str, int], **options: Any) -> ExpertHead:
    """An `ExpertHead` by name, a key of `HEADS`; `options` override its arguments.

    The ``name`` of the module, where it is a part of another one, is one of the `options`.

    Raises:
      ValueError: there is no such head, or an argument is out of its range.
    """
    return ExpertHead(tasks, **{**look_up(HEADS, name, "head of experts"), **options})
