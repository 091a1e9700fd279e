"""The state at step 0 of a Flax module: what fits, what is missing, and what structure and dtypes it keeps."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.core import unfreeze
from flax.errors import InvalidRngError
from flax.traverse_util import flatten_dict, unflatten_dict

from fsg_jax._checks import check_shapes, expect
from fsg_jax.gates.functions import Kind
from fsg_jax.linen.forward import Forward, ModeArguments, Watch, find_flag
from fsg_jax.linen.gate_kinds import find_gate_kinds
from fsg_jax.routing.labels import RoutedTransformation, as_routed, paths_of
from fsg_jax.routing.means import like
from fsg_jax.training.new_state import new_state
from fsg_jax.training.state import TrainState
from fsg_jax.typing import GATES, Key, PyTree


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
    inside = isinstance(jnp.zeros(()), jax.core.Tracer)  # of another program, which has options of its own
    options = None if inside else once_options()
    init, watch = jax.jit(lambda key, *inputs: forward.init(key, *inputs), compiler_options=options), Watch()
    with nn.intercept_methods(watch):
        kinds, shapes = find_gate_kinds(init, init_key, *inputs, known=gate_kinds)
    needed = forward.flag is None and train_flag == "auto" and watch.parts
    wanted = f"the argument that tells {type(model).__name__} that it trains (None: it needs none), for {watch.parts}"
    expect(not needed, "train_flag", f"{wanted} act otherwise in training", "none that is known")
    absent = sorted(set(trainable) - shapes.keys() - {"params", GATES})
    expect(not absent, "trainable", f"collections of the model, {sorted(shapes)}", absent)
    given = None if variables is None else unfreeze(dict(variables))
    settled = _settle(forward, tx, _with_dtypes(shapes, given), inputs)
    if given is None:
        values = init(init_key, *inputs)
    else:
        values = {k: v for k, v in given.items() if k in settled or k not in {"intermediates", *shapes}}
        gates, all_gates = (flatten_dict({GATES: tree.get(GATES, {})}) for tree in (values, shapes))
        if all_gates.keys() - gates.keys():
            values |= unflatten_dict(flatten_dict({GATES: init(init_key, *inputs)[GATES]}) | gates)
        _check_fit(values, settled)
    values = like({k: values[k] for k in settled}, settled)
    if GATES in tx.transforms and GATES not in values and getattr(model, "gate", model) is not None:
        hint = "a twin without gates says so by an attribute gate=None"
        warnings.warn(f"labels: the label 'gates' has no leaves, for the model has no gates; {hint}", stacklevel=2)
    return new_state(forward, tx, rng, values, kinds, ema_decay)


def once_options() -> dict[str, Any] | None:
    """Compiler options of a program that runs once: on the CPU the same values from a third of the compilation."""
    slow = jax.default_backend() == "cpu" and not jax.config.read("jax_disable_most_optimizations")
    return {"xla_backend_optimization_level": 1} if slow else None


def _settle(forward: Forward, tx: RoutedTransformation, shapes: dict[str, PyTree], inputs: Any) -> dict[str, PyTree]:
    """Shapes and dtypes of the variables in training: what a step gives them, and without what the model sows."""
    train = jax.make_jaxpr(lambda variables, *a: forward.train(variables, a[1:], a[0], tx)[1], return_shape=True)
    for _ in range(3):
        watch, names = Watch(), [name for name in shapes if name not in forward.trainable]
        try:
            with nn.intercept_methods(watch):
                closed, after = train(shapes, jax.random.key(0), *inputs)
        except InvalidRngError as error:
            missing = f"{forward.rngs}; {str(error).split(chr(40))[0]}"
            raise ValueError(f"rngs: expected all streams that the model draws from, found {missing}") from error
        sown = [k for k in names if paths_of(after[k]) != paths_of(shapes[k])]
        before = {name: tree for name, tree in shapes.items() if name not in sown}
        shapes = before | {name: after[name] for name in names if name not in sown}
        if shapes == before and not sown:
            break
    if watch.not_drawn and forward.flag is not None:
        warnings.warn(f"stochastic gates {watch.not_drawn} are called without train=True in training", stacklevel=3)
    outputs, same = iter(closed.jaxpr.outvars), set(map(id, closed.jaxpr.invars))
    for name, tree in after.items():
        paths, leaves = [f"{name}/{path}" for path in paths_of(tree)], jax.tree.leaves(tree)
        still = all([id(next(outputs)) in same for _ in leaves]) and not any(map(tx.is_frozen, paths))
        still = still and (name != "batch_stats" or forward.flag is not None)
        if still and any(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves):
            hint = "name it in trainable= if optimizers are to move it"
            warnings.warn(f"collection {name!r}: neither trained nor changed by the forward pass; {hint}", stacklevel=3)
    return shapes


def _with_dtypes(shapes: dict[str, PyTree], given: dict[str, PyTree] | None) -> dict[str, PyTree]:
    """`shapes` with the dtypes of the given leaves, floating-point for floating-point."""
    flat = dict(zip(paths_of(given or {}), jax.tree.leaves(given or {}), strict=True))

    def with_dtype(path: str, leaf: Any) -> Any:
        dtype = getattr(flat.get(path), "dtype", leaf.dtype)
        same = jnp.issubdtype(dtype, jnp.floating) == jnp.issubdtype(leaf.dtype, jnp.floating)
        return jax.ShapeDtypeStruct(leaf.shape, jnp.zeros((), dtype).dtype if same else leaf.dtype)

    leaves = map(with_dtype, paths_of(shapes), jax.tree.leaves(shapes))
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def _check_fit(values: dict[str, PyTree], shapes: dict[str, PyTree]) -> None:
    """Raises ValueError that lists every leaf that is missing, extra or of another shape."""
    found, wanted = (
        dict(zip(paths_of(tree), map(jnp.shape, jax.tree.leaves(tree)), strict=True)) for tree in (values, shapes)
    )
    check_shapes(found, wanted, "variables", "those of the model")
