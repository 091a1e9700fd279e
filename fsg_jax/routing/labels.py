"""Optimizers by label: which transformation moves which leaf, every leaf exactly once."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import keystr, tree_map_with_path

from fsg_jax.gates.gate import GATES
from fsg_jax.typing import PyTree


@dataclass(frozen=True, eq=False)
class RoutedTransformation:
    """Optimizers by label, of which single labels can be moved; made by `routed`.

    Attributes:
      transforms: label to transformation.
      patterns: label to the regular expression of the leaf paths that it claims.
    """

    transforms: Mapping[str, optax.GradientTransformation]
    patterns: Mapping[str, str]

    def init(self, trainable: PyTree) -> optax.OptState:
        """Returns the optimizer state of all labels, that of `optax.multi_transform`."""
        return optax.multi_transform(self.transforms, self.labels(trainable)).init(trainable)

    def labels(self, tree: PyTree) -> PyTree:
        """Returns the label of every leaf, a tree of strings. Raises ValueError as `routed` says."""
        return label_tree(tree, self.patterns, self.transforms)

    def step(
        self, active: Collection[str], grads: PyTree, opt_state: optax.OptState, trainable: PyTree
    ) -> tuple[PyTree, optax.OptState]:
        """Moves the leaves of the `active` labels; all other leaves and optimizer states stay bit for bit as they are.

        Zero gradients would not do: they would still decay the moments of an Adam.

        Args:
          active: labels to move.
          grads: gradients, with the structure of `trainable`; None may stand at leaves that do not move.
          opt_state: as from ``init``.
          trainable: e.g. ``{"params": ..., "gates": ...}``.

        Returns:
          New `trainable` and `opt_state`.
        """
        labels = self.labels(trainable)
        chosen = {k: t if k in active else _hold(t) for k, t in self.transforms.items()}
        grads = jax.tree.map(lambda p, g: jnp.zeros_like(p) if g is None else g, trainable, grads)
        updates, opt_state = optax.multi_transform(chosen, labels).update(grads, opt_state, trainable)

        def move(label: str, leaf: jax.Array, update: jax.Array) -> jax.Array:
            return optax.apply_updates(leaf, update) if label in active else leaf

        return jax.tree.map(move, labels, trainable, updates), opt_state


def routed(labels: Mapping[str, str] | None = None, **transforms: optax.GradientTransformation) -> RoutedTransformation:
    """One optax transformation a label: ``routed(params=optax.sgd(0.1), gates=optax.adam(1e-2))``.

    A leaf's label is its collection (``"params"`` or ``"gates"``), unless a pattern in `labels` claims it::

        routed(params=..., gates=..., frozen=optax.set_to_zero(), labels={"frozen": "params/(stem|stage1)/.*"})

    Clipping and weight decay given inside a label's transformation see that label's leaves alone. Decoupled weight
    decay on gate logits pulls sigmoid gates to 0.5, not to 0. `optax.multi_transform` (also `optax.partition`) does
    the labelling.

    Args:
      labels: label to a regular expression that must match the whole path of a leaf (`re.fullmatch`), the path
        being the tree's keys joined with ``/``, collection first.
      **transforms: label to transformation.

    Raises:
      ValueError: at ``init`` and in the step, naming the leaf: a leaf with no transformation or with two labels;
        a pattern that matches nothing. Here: a pattern for a label without a transformation.
    """
    if not transforms:
        raise ValueError("routed needs at least one transformation, e.g. routed(params=optax.sgd(0.1))")
    patterns = dict(labels or {})
    for label in patterns.keys() - transforms.keys():
        raise ValueError(f"labels: expected labels with a transformation, {sorted(transforms)}, found {label!r}")
    return RoutedTransformation(transforms, patterns)


def as_routed(tx: optax.GradientTransformation | RoutedTransformation) -> RoutedTransformation:
    """`tx` itself if it is routed; else one that moves every leaf, gates too, under the label ``"all"``."""
    return tx if isinstance(tx, RoutedTransformation) else routed(labels={"all": ".*"}, all=tx)


def label_tree(tree: PyTree, patterns: Mapping[str, str], known: Collection[str]) -> PyTree:
    """Returns the label of every leaf; every leaf has exactly one, or a ValueError names it. See `routed`."""
    paths = jax.tree.leaves(tree_map_with_path(lambda path, _: keystr(path, simple=True, separator="/"), tree))
    for label, pattern in patterns.items():
        if not any(re.fullmatch(pattern, path) for path in paths):
            raise ValueError(f"labels: the pattern {pattern!r} of {label!r} matches none of {len(paths)} leaves")

    def label_of(path: str) -> str:
        claims = [k for k, pattern in patterns.items() if re.fullmatch(pattern, path)] or [path.split("/")[0]]
        if len(claims) > 1:
            raise ValueError(f"leaf {path!r} has more than one label: {sorted(claims)}")
        if claims[0] not in known:
            found = f"leaf {path!r} has label {claims[0]!r}, which no transformation moves"
            raise ValueError(f"{found}; there are {sorted(known)}")
        return claims[0]

    return jax.tree.unflatten(jax.tree.structure(tree), map(label_of, paths))


def gate_labels(tree: Mapping[str, PyTree], labels: PyTree) -> frozenset[str]:
    """Labels all of whose leaves are in the ``"gates"`` collection.

    Raises:
      ValueError: a label that holds gates and other leaves, unless it is the only label.
    """
    of_gates = set(jax.tree.leaves(labels.get(GATES, {})))
    of_others = {k for name in tree if name != GATES for k in jax.tree.leaves(labels[name])}
    mixed = of_gates & of_others
    if mixed and mixed != of_gates | of_others:
        raise ValueError(f"labels {sorted(mixed)} hold both gates and other leaves; give the gates labels of their own")
    return frozenset(of_gates - of_others)


def is_weight(tree: PyTree) -> PyTree:
    """Returns a mask for weight decay, ``optax.adamw(..., mask=is_weight)``: True at all leaves but gate logits."""
    return tree_map_with_path(lambda path, _: path[0].key != GATES, tree)


def _hold(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """`tx` that moves no leaf and keeps its state."""

    def update(updates: PyTree, state: Any, params: Any = None) -> tuple[PyTree, Any]:
        del params
        return jax.tree.map(jnp.zeros_like, updates), state

    return optax.GradientTransformation(tx.init, update)
