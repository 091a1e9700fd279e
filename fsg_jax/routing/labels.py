"""Optimizers by label: which transformation moves which leaf, every leaf exactly once."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from inspect import Parameter, signature
from types import EllipsisType
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import keystr, tree_map_with_path

from fsg_jax._checks import expect
from fsg_jax.routing.equality import content
from fsg_jax.routing.means import like, strong
from fsg_jax.typing import GATES, PyTree


@dataclass(frozen=True)
class RoutedTransformation:
    """Optimizers by label, of which single labels can be moved; made by `routed`.

    It is an optax transformation too, which moves all labels at once. Two are equal if they compute the same: steps
    compiled for one serve the other.

    Attributes:
      transforms: label to transformation; None for a frozen label.
      patterns: label to the regular expression of the leaf paths that it claims; ``...``: all that no other claims.
      content: of both, by which transformations are compared.
    """

    transforms: Mapping[str, optax.GradientTransformation | None] = field(compare=False)
    patterns: Mapping[str, str | EllipsisType] = field(compare=False)
    content: Any = field(repr=False)

    @cached_property
    def frozen(self) -> frozenset[str]:
        """Labels that never move: those of None or ``optax.set_to_zero()``."""
        zero = content(optax.set_to_zero().update)
        return frozenset(k for k, tx in self.transforms.items() if tx is None or content(tx.update) == zero)

    def is_frozen(self, path: str) -> bool:
        """Whether the pattern of a frozen label matches a path, e.g. that of the statistics of a frozen part."""
        patterns = [self.patterns.get(label) for label in self.frozen]
        return any(isinstance(pattern, str) and re.fullmatch(pattern, path) for pattern in patterns)

    def init(self, trainable: PyTree) -> optax.OptState:
        """Returns the optimizer state of all labels, that of `optax.multi_transform`; it shares no buffer.

        Raises:
          ValueError: as `routed` says; a label without a leaf, unless it is ``"gates"``, so that one optimizer serves
            the ungated twin too; a transformation that cannot run in a routed step.
        """
        labels = self.labels(trainable)
        empty = sorted(set(self.transforms) - set(jax.tree.leaves(labels)) - {GATES})
        roots = sorted({path.split("/")[0] for path in paths_of(trainable)})
        expect(not empty, "labels", f"leaves for every label; there are some in {roots}", f"none for {empty}")
        shapes = {label: self._settle(label, labels, _guarded(trainable)) for label in {*self.transforms} - self.frozen}
        state = self._multi_transform(labels).init(_guarded(trainable))
        inner = {
            k: jax.tree.map(lambda x, shape: strong(x, shape.dtype), s, shapes.get(k, s))
            for k, s in state.inner_states.items()
        }
        return state._replace(inner_states=inner)

    def update(self, grads: PyTree, opt_state: Any, trainable: PyTree, **extra: Any) -> tuple[PyTree, optax.OptState]:
        """Returns the updates of all leaves and the new state, as any optax transformation."""
        tx = self._multi_transform(self.labels(trainable))
        updates, opt_state = tx.update(_guarded(grads), opt_state, _guarded(trainable), **extra)
        return updates[0] if callable(trainable) else updates, opt_state

    def as_optax(self) -> optax.GradientTransformationExtraArgs:
        """A plain optax transformation, e.g. for `optax.chain` or Flax's own ``TrainState``."""
        return optax.GradientTransformationExtraArgs(self.init, self.update)

    def __iter__(self) -> Iterator[Callable[..., Any]]:
        """``init, update = tx``, as of any optax transformation."""
        return iter(self.as_optax())

    def labels(self, tree: PyTree) -> PyTree:
        """Returns the label of every leaf, a tree of strings. Raises ValueError as `routed` says."""
        return label_tree(tree, self.patterns, self.transforms)

    def step(self, active: Collection[str], grads: PyTree, opt_state: Any, trainable: PyTree, **extra: Any) -> Any:
        """Moves the leaves of the `active` labels; all other leaves and optimizer states stay bit for bit as they are.

        Zero gradients would not do: they would still decay the moments of an Adam.

        Args:
          active: labels to move.
          grads: gradients, with the structure of `trainable`; None may stand at leaves that do not move.
          opt_state: as from ``init``.
          trainable: e.g. ``{"params": ..., "gates": ...}``.
          **extra: for the transformations that take it, e.g. ``value``, the loss.

        Returns:
          New `trainable` and `opt_state`, with the structure and dtypes of the old ones.
        """
        labels, tree = self.labels(trainable), _guarded(trainable)
        grads = _guarded(jax.tree.map(lambda p, g: jnp.zeros_like(p) if g is None else g, trainable, grads))
        updates, new = self._multi_transform(labels, active).update(grads, opt_state, tree, **extra)
        updates = updates[0] if callable(trainable) else updates

        def move(label: str, leaf: jax.Array, update: jax.Array) -> jax.Array:
            return optax.apply_updates(leaf, update) if label in active else leaf

        return jax.tree.map(move, labels, trainable, updates), like(new, opt_state)

    def _multi_transform(self, labels: PyTree, active: Collection[str] | None = None) -> Any:
        chosen = {k: _hold(tx or optax.set_to_zero()) for k, tx in self.transforms.items()}
        moving = set(self.transforms if active is None else active) - self.frozen
        return optax.multi_transform(chosen | {k: _tolerant(self.transforms[k]) for k in moving}, _guarded(labels))

    def _settle(self, label: str, labels: PyTree, tree: PyTree) -> PyTree:
        """Shapes and dtypes that the state of one label has from the first update on. Raises ValueError."""
        alone = replace(self, transforms=dict.fromkeys(self.transforms) | {label: self.transforms[label]})
        tx = alone._multi_transform(labels)
        try:
            state = before = jax.eval_shape(tx.init, tree)
            for _ in range(3):  # dtypes may widen, e.g. those of averages of bfloat16 leaves
                updates, state = jax.eval_shape(tx.update, tree, state, tree, value=jnp.zeros(()))
            jax.tree.map(lambda *_: None, (tree, before), (updates, state))
        except Exception as error:
            wanted = "a transformation of (gradients, state, leaves), given value=loss and nothing else"
            raise ValueError(f"optimizer of label {label!r}: expected {wanted}, found {error!r}") from error
        return state.inner_states[label]


def routed(
    labels: Mapping[str, str | EllipsisType] | None = None, **transforms: optax.GradientTransformation | None
) -> RoutedTransformation:
    """One optax transformation a label: ``routed(params=optax.sgd(0.1), gates=optax.adam(1e-2))``.

    A leaf's label is its collection (``"params"`` or ``"gates"``), unless a pattern in `labels` claims it::

        routed(params=..., gates=..., frozen=None, labels={"frozen": "(params|batch_stats)/(stem|stage1)/.*"})

    A label of None, or of ``optax.set_to_zero()``, is frozen: no gradient is taken of it. Where its pattern matches
    running statistics too, as above, these stay as they are and are those that BatchNorm uses.

    Clipping and weight decay given inside a label's transformation see that label's leaves alone. Decoupled weight
    decay on gate logits pulls sigmoid gates to 0.5, not to 0. A schedule counts the passes that move its label: with
    ``gate_every=k``, one of k steps. `optax.multi_transform` (also `optax.partition`) does the labelling; every
    transformation is given the loss of its pass as ``value``.

    Args:
      labels: label to a regular expression that must match the whole path of a leaf (`re.fullmatch`), the path
        being the tree's keys joined with ``/``, collection first; ``...`` for all leaves that no other claims.
      **transforms: label to transformation.

    Raises:
      ValueError: at ``init`` and in the step, naming the leaf: a leaf with no transformation or with two labels;
        a pattern that matches nothing. Here: a pattern for a label without a transformation.
    """
    expect(transforms, "routed", "at least one transformation, e.g. params=optax.sgd(0.1)", "none")
    extra = sorted({*(labels or {})} - transforms.keys())
    expect(not extra, "labels", f"labels with a transformation, {sorted(transforms)}", extra)
    return RoutedTransformation(transforms, dict(labels or {}), content([transforms, dict(labels or {})]))


def as_routed(tx: optax.GradientTransformation | RoutedTransformation) -> RoutedTransformation:
    """`tx` itself if it is routed; else one that moves every leaf, gates too, under the label ``"all"``."""
    return tx if isinstance(tx, RoutedTransformation) else routed(labels={"all": ".*"}, all=tx)


def label_tree(tree: PyTree, patterns: Mapping[str, str | EllipsisType], known: Collection[str]) -> PyTree:
    """Returns the label of every leaf; every leaf has exactly one, or a ValueError names it. See `routed`."""
    paths = paths_of(tree)
    rest = [label for label, pattern in patterns.items() if pattern is ...]
    named = {label: pattern for label, pattern in patterns.items() if isinstance(pattern, str)}
    idle = {k: pattern for k, pattern in named.items() if not any(re.fullmatch(pattern, path) for path in paths)}
    expect(not idle, "labels", f"patterns that match some of {len(paths)} leaves", f"others: {idle}")

    def label_of(path: str) -> str:
        claims = [k for k, pattern in named.items() if re.fullmatch(pattern, path)] or rest or [path.split("/")[0]]
        expect(len(claims) == 1, f"leaf {path!r}", "one label", f"more than one label: {sorted(claims)}")
        expect(claims[0] in known, f"leaf {path!r}", f"a label with a transformation, {sorted(known)}", repr(claims[0]))
        return claims[0]

    return jax.tree.unflatten(jax.tree.structure(tree), map(label_of, paths))


def paths_of(tree: PyTree) -> list[str]:
    """Paths of the leaves, keys joined with ``/``."""
    return [keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(tree)]


def is_weight(tree: PyTree) -> PyTree:
    """Returns a mask for weight decay, ``optax.adamw(..., mask=is_weight)``: True at all leaves but gate logits."""
    return tree_map_with_path(lambda path, _: keystr(path[:1], simple=True) != GATES, tree)


def _guarded(tree: PyTree) -> PyTree:
    """`tree`, in a tuple if it can be called, as a module of Equinox: optax would take it for a function."""
    return (tree,) if callable(tree) else tree


def _tolerant(tx: Any) -> optax.GradientTransformation:
    """`tx`, given ``value`` only if it takes it."""
    parameters = signature(tx.update).parameters.values()
    if any(p.name == "value" or p.kind is Parameter.VAR_KEYWORD for p in parameters):
        return optax.GradientTransformationExtraArgs(tx.init, tx.update)
    return optax.GradientTransformation(tx.init, tx.update)


def _hold(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """`tx` that moves no leaf and keeps its state."""
    return optax.GradientTransformation(tx.init, lambda updates, state, _=None: (optax.tree.zeros_like(updates), state))
