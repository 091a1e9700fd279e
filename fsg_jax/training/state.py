"""`TrainState`: everything a run is, as one pytree."""

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from flax.core import unfreeze
from flax.errors import InvalidRngError
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import NamedSharding, PartitionSpec
from jax.tree import leaves_with_path as tree_leaves
from jax.tree_util import SequenceKey, keystr

from fsg_jax.gates.functions import Kind, Squashing, get_squashing
from fsg_jax.gates.gate import GATES
from fsg_jax.gates.summary import find_gate_kinds, flat_gates, rule_of, split_name
from fsg_jax.routing.labels import RoutedTransformation, as_routed
from fsg_jax.routing.means import same_structure
from fsg_jax.training.forward import Forward, ModeArguments, Watch, find_flag
from fsg_jax.typing import GateKinds, Key, PyTree


@struct.dataclass
class TrainState:
    """Variables by collection, optimizer state, step, random key and, if asked for, averaged variables.

    Attributes:
      step: number of steps taken, int32 scalar.
      variables: ``{"params", "gates", "batch_stats", ...}``, whichever the model has.
      opt_state: state of `tx`.
      rng: root key of the run; step t uses ``fold_in(rng, t)``.
      ema: exponential moving average of `variables`, in at least float32, or None; integers are not averaged.
      forward: how the module is called (static).
      tx: optimizers by label (static).
      gate_kinds: ``(name, kind)`` of every leaf of gate logits, in the order of the forward pass (static).
      ema_decay: decay of `ema` (static).
    """

    # Leaves are not typed as arrays: tree transformations put shapes, specs and None in their places.
    step: Any
    variables: dict[str, PyTree]
    opt_state: optax.OptState
    rng: Any
    ema: dict[str, PyTree] | None
    forward: Any = struct.field(pytree_node=False)
    tx: RoutedTransformation = struct.field(pytree_node=False)
    gate_kinds: GateKinds = struct.field(pytree_node=False)
    ema_decay: float | None = struct.field(pytree_node=False)

    @property
    def model(self) -> Any:
        """The module."""
        return self.forward.model

    @property
    def trainable(self) -> dict[str, PyTree]:
        """The collections that optimizers move."""
        return {k: v for k, v in self.variables.items() if k in self.forward.trainable}

    @property
    def model_state(self) -> dict[str, PyTree]:
        """The collections that the forward pass updates, e.g. ``batch_stats``."""
        return {k: v for k, v in self.variables.items() if k not in self.forward.trainable}

    @property
    def params(self) -> PyTree:
        """The ``"params"`` collection."""
        return self.variables["params"]

    @property
    def gates(self) -> PyTree:
        """The ``"gates"`` collection; empty for a model without static gates."""
        return self.variables.get(GATES, {})

    @property
    def batch_stats(self) -> PyTree:
        """The ``"batch_stats"`` collection; empty for a model without BatchNorm."""
        return self.variables.get("batch_stats", {})


def init_state(
    model: nn.Module,
    tx: optax.GradientTransformation | RoutedTransformation,
    key: Key,
    *inputs: Any,
    variables: Mapping[str, PyTree] | None = None,
    ema_decay: float | None = None,
    train_flag: str | ModeArguments | None = "auto",
    rngs: Sequence[str] = ("dropout", GATES),
    trainable: Sequence[str] = ("params", GATES),
    gate_kinds: Mapping[str, Kind] | None = None,
) -> TrainState:
    """The state at step 0. Its structure and dtypes are those of the state after any number of steps.

    The same key gives a gated model and its ungated twin the same ``params``. Collections into which the model sows
    are not part of the state.

    Args:
      model: a Flax module, called as ``model(*inputs)``, with the flag that tells whether it trains.
      tx: from `fsg_jax.routed`, or a plain optax transformation, which then moves gates and weights alike.
      key: seeds initialisation and, by its own branch, all randomness of training.
      *inputs: an example of each argument of the model; values do not matter.
      variables: start from these (e.g. pretrained) instead of initialising. They are copied. Gates that are missing
        are initialised.
      ema_decay: keep an exponential moving average of all variables with this decay, in (0, 1).
      train_flag: name of the argument (or attribute) that tells the model whether it trains; or a function
        ``train -> keyword arguments``; None: it takes none. ``"auto"`` finds ``train``, ``training``,
        ``is_training``, ``is_train``, and, inverted, ``deterministic``, ``use_running_average``, ``inference``,
        ``is_eval``.
      rngs: random streams that the model draws from in training.
      trainable: collections that optimizers move; all others are state that the forward pass updates.
      gate_kinds: kinds of logits in ``"gates"``, by name, where no `fsg_jax.Gate` tells them.

    Raises:
      ValueError: a leaf without or with two labels, a label without leaves; a model with dropout, BatchNorm or
        stochastic gates and no flag; a random stream that is not in `rngs`; an optimizer that cannot run;
        `variables` that do not fit, every leaf being named; `ema_decay` out of range.
    """
    forward = Forward(model, find_flag(model, train_flag), tuple(rngs), tuple(trainable))
    tx = as_routed(tx)
    init_key, rng = jax.random.split(key)
    init, watch = jax.jit(lambda key, *inputs: forward.init(key, *inputs)), Watch()
    with nn.intercept_methods(watch):
        kinds, shapes = find_gate_kinds(init, init_key, *inputs, known=gate_kinds)
    if forward.flag is None and train_flag == "auto" and watch.parts:
        raise ValueError(
            f"train_flag: expected a flag of {type(model).__name__}, for {watch.parts} act otherwise in training, "
            "found none that is known; name it, or give a function, or None if the model needs none"
        )
    if absent := sorted(set(trainable) - shapes.keys() - {"params", GATES}):
        raise ValueError(f"trainable: expected collections of the model, {sorted(shapes)}, found {absent}")
    given = None if variables is None else unfreeze(dict(variables))
    settled = _settle(forward, tx, _with_dtypes(shapes, given), inputs)
    if given is None:
        values = init(init_key, *inputs)
    else:
        values = {k: v for k, v in given.items() if k in settled or k not in {"intermediates", *shapes}}
        gates = flatten_dict({GATES: values.get(GATES, {})})
        if flatten_dict({GATES: shapes.get(GATES, {})}).keys() - gates.keys():
            missing = flatten_dict({GATES: init(init_key, *inputs)[GATES]})
            values |= unflatten_dict(missing | gates)
        _check_fit(values, settled)
    values = jax.tree.map(lambda shape, leaf: _strong(leaf, shape.dtype), settled, {k: values[k] for k in settled})
    if GATES in tx.transforms and GATES not in values and getattr(model, "gate", model) is not None:
        warnings.warn("labels: the label 'gates' has no leaves, for the model has no gates", stacklevel=2)
    return new_state(forward, tx, rng, values, kinds, ema_decay)


def new_state(
    forward: Any,
    tx: RoutedTransformation,
    rng: Key,
    variables: dict[str, PyTree],
    kinds: GateKinds,
    ema_decay: float | None,
) -> TrainState:
    """The state at step 0 with copies of `variables`. Raises ValueError as `init_state`."""
    if ema_decay is not None and not 0 < ema_decay < 1:
        raise ValueError(f"ema_decay: expected a number in (0, 1) or None, found {ema_decay}")
    values = jax.tree.map(lambda leaf: _strong(leaf, leaf.dtype), variables)
    leaves = {k: v for k, v in values.items() if k in forward.trainable}
    _warn_dead(leaves, kinds, tx)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        variables=values,
        opt_state=tx.init(leaves),
        rng=rng,
        ema=None if ema_decay is None else jax.tree.map(lambda x: _strong(x, _average_dtype(x)), values),
        forward=forward,
        tx=tx,
        gate_kinds=kinds,
        ema_decay=ema_decay,
    )


def _settle(forward: Forward, tx: RoutedTransformation, shapes: dict[str, PyTree], inputs: Any) -> dict[str, PyTree]:
    """Shapes and dtypes of the variables in training: what a step gives them, and without what the model sows."""
    for _ in range(3):
        watch = Watch()
        try:
            with nn.intercept_methods(watch):
                closed, after = jax.make_jaxpr(
                    lambda variables, key, *inputs: forward.train(variables, inputs, key, tx)[1], return_shape=True
                )(shapes, jax.random.key(0), *inputs)
        except InvalidRngError as error:
            raise ValueError(
                f"rngs: expected all random streams of the model, found {forward.rngs}: {error}"
            ) from error
        sown = [name for name, tree in after.items() if not same_structure(tree, shapes[name])]
        for name in sown:
            if not all(any(isinstance(key, SequenceKey) for key in path) for path, _ in tree_leaves(after[name])):
                raise ValueError(
                    f"collection {name!r}: expected the structure that init gives it, found another in training"
                )
        before = {name: tree for name, tree in shapes.items() if name not in sown}
        shapes = before | {name: tree for name, tree in after.items() if name not in sown}
        if shapes == before and not sown:
            break
    if watch.not_drawn:
        warnings.warn(f"stochastic gates {watch.not_drawn} are called without train=True in training", stacklevel=3)
    outputs = iter(closed.jaxpr.outvars)
    changed = {name: [next(outputs) not in closed.jaxpr.invars for _ in jax.tree.leaves(after[name])] for name in after}
    for name, tree in after.items():
        paths = ["/".join((name, keystr(path, simple=True, separator="/"))) for path, _ in tree_leaves(tree)]
        floating = any(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(tree))
        if floating and not any(changed[name]) and not any(map(tx.is_frozen, paths)):
            warnings.warn(
                f"collection {name!r} is neither trained nor changed by the forward pass in training; "
                "name it in trainable= if optimizers are to move it",
                stacklevel=3,
            )
    return shapes


def _with_dtypes(shapes: dict[str, PyTree], given: dict[str, PyTree] | None) -> dict[str, PyTree]:
    """`shapes` with the dtypes of the given leaves, floating-point for floating-point."""
    flat = flatten_dict(given or {})

    def dtype(path: tuple[str, ...], leaf: Any) -> Any:
        found = flat.get(path)
        same = hasattr(found, "dtype") and jnp.issubdtype(found.dtype, jnp.floating) == jnp.issubdtype(
            leaf.dtype, jnp.floating
        )
        return jax.ShapeDtypeStruct(leaf.shape, jnp.asarray(found).dtype) if same else leaf

    return unflatten_dict({path: dtype(path, leaf) for path, leaf in flatten_dict(shapes).items()})


def _check_fit(values: dict[str, PyTree], shapes: dict[str, PyTree]) -> None:
    """Raises ValueError that lists every leaf that is missing, extra or of another shape."""
    found, wanted = (
        {keystr(path, simple=True, separator="/"): jnp.shape(leaf) for path, leaf in tree_leaves(tree)}
        for tree in (values, shapes)
    )
    lines = [f"missing {path}" for path in sorted(wanted.keys() - found.keys())]
    lines += [f"extra {path}" for path in sorted(found.keys() - wanted.keys())]
    lines += [
        f"{path}: expected shape {wanted[path]}, found {found[path]}"
        for path in sorted(wanted.keys() & found.keys())
        if wanted[path] != found[path]
    ]
    if lines:
        raise ValueError(f"variables: expected those of the model, found {len(lines)} differences: {'; '.join(lines)}")


def _warn_dead(leaves: dict[str, PyTree], kinds: GateKinds, tx: RoutedTransformation) -> None:
    """Warns of gates that start where their kind has no gradient, and so never move."""
    gates = leaves.get(GATES, {})
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(gates)):
        return
    labels = flatten_dict(tx.labels(leaves).get(GATES, {}), sep="/")
    moving = {split_name(path) for path, label in labels.items() if label not in tx.frozen}
    dead = []
    for name, logits, kind in flat_gates(gates, kinds):
        named = kind if isinstance(kind, str | Squashing) else "sigmoid"
        if kind in ("sigmoid", "straight_through") or get_squashing(named).sample or name.split("[")[0] not in moving:
            continue
        slopes = jax.grad(lambda g, kind=kind: jnp.sum(rule_of(kind)(g)))(logits.astype(jnp.float32))
        if count := int(jnp.sum(slopes == 0)):
            dead.append(f"{count} of {logits.size} of {name!r}")
    if dead:
        warnings.warn(f"gates start where their kind has no gradient, and never move: {', '.join(dead)}", stacklevel=3)


def _strong(leaf: Any, dtype: Any) -> Any:
    """A copy in this dtype, not weakly typed."""
    return leaf.copy() if jnp.issubdtype(dtype, jax.dtypes.prng_key) else jnp.array(leaf, dtype)


def _average_dtype(leaf: Any) -> Any:
    floating = jnp.issubdtype(leaf.dtype, jnp.floating)
    return jnp.promote_types(leaf.dtype, jnp.float32) if floating else leaf.dtype


def gather_leaves(tree: PyTree, shardings: PyTree) -> PyTree:
    """Gathers the leaves that `shardings`, a tree like `tree`, splits over devices; their gradients come back split.

    Inside jit. Without it the partitioner may split activations as the parameters are split.
    """
    return jax.tree.map(lambda leaf, s: leaf if s.is_fully_replicated else _gather(leaf, s), tree, shardings)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gather(leaf: jax.Array, sharding: NamedSharding) -> jax.Array:
    return jax.lax.with_sharding_constraint(leaf, NamedSharding(sharding.mesh, PartitionSpec()))


_gather.defvjp(lambda leaf, s: (_gather(leaf, s), None), lambda s, _, g: (jax.lax.with_sharding_constraint(g, s),))
