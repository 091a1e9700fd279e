"""What two passes over one batch have in common: the computation up to the first leaf that moves between them.

The compiler does not find it by itself: it simplifies the pass that is differentiated and the one that is not in
different ways before it looks for what is equal, and then finds little beyond the first convolution.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun

from fsg_jax.typing import PyTree

_FIXED, _BEFORE, _AFTER = range(3)


class Halves(NamedTuple):
    """A function ``f(moving, fixed, data)`` in two halves: ``after(moving, fixed, before(fixed, data))`` equals it."""

    before: Callable[[PyTree, PyTree], list[jax.Array]]
    """Everything that depends on `data` and not on `moving`; gives what `after` needs of it."""
    after: Callable[[PyTree, PyTree, list[jax.Array]], Any]
    """The rest, and the result."""


def split_before(f: Callable[..., Any], moving: PyTree, fixed: PyTree, data: PyTree) -> Halves:
    """The halves of `f` for arguments of these shapes; `f` is traced once.

    What depends on neither `moving` nor `data`, such as a parameter's cast, its gathering from other devices or a
    random mask, is in both halves: it need not be kept between them. A function that JAX does not look into, such as a
    rematerialised block or one under its own ``jit``, is in the second half if any of its inputs is.

    Args:
      f: ``f(moving, fixed, data)``, of pytrees of arrays; it may close over others, which count as fixed.
      moving: leaves at which the second half is evaluated more than once.
      fixed: leaves that do not change in between.
      data: the batch.
    """
    closed, shape = jax.make_jaxpr(f, return_shape=True)(moving, fixed, data)
    jaxpr, result = closed.jaxpr, jax.tree.structure(shape)
    inputs = iter(jaxpr.invars)
    moves, stays, reads = ([next(inputs) for _ in jax.tree.leaves(tree)] for tree in (moving, fixed, data))
    levels = _levels(jaxpr, dict.fromkeys(moves, _AFTER) | dict.fromkeys(reads, _BEFORE))
    first = [eqn for eqn, level in levels.equations if level != _AFTER]
    second = [eqn for eqn, level in levels.equations if level != _BEFORE]
    wanted = [v for eqn in second for v in eqn.invars] + list(jaxpr.outvars)
    crossing = list(dict.fromkeys(v for v in wanted if levels.of(v) == _BEFORE))

    run_first = _function(jaxpr, closed.consts, [*stays, *reads], crossing, first)
    run_second = _function(jaxpr, closed.consts, [*moves, *stays, *crossing], jaxpr.outvars, second)
    leaves = jax.tree.leaves

    def before(fixed: PyTree, data: PyTree) -> list[jax.Array]:
        return run_first(*leaves(fixed), *leaves(data))

    def after(moving: PyTree, fixed: PyTree, crossing: list[jax.Array]) -> Any:
        return jax.tree.unflatten(result, run_second(*leaves(moving), *leaves(fixed), *crossing))

    return Halves(before, after)


class _Levels(NamedTuple):
    variables: dict[Any, int]
    equations: list[tuple[Any, int]]

    def of(self, atom: Any) -> int:
        return _FIXED if isinstance(atom, Literal) else self.variables.get(atom, _FIXED)


def _levels(jaxpr: Jaxpr, variables: dict[Any, int]) -> _Levels:
    """Where every equation belongs; `variables` has the levels of the inputs that are not fixed."""
    levels = _Levels(variables, [])
    for eqn in jaxpr.eqns:
        level = max(map(levels.of, eqn.invars), default=_FIXED)
        if eqn.effects:  # e.g. a print, which is to happen once
            level = max(level, _BEFORE)
        levels.equations.append((eqn, level))
        variables.update(dict.fromkeys(eqn.outvars, level))
    return levels


def _function(jaxpr: Jaxpr, consts: Any, invars: Any, outvars: Any, eqns: Any) -> Callable[..., list[jax.Array]]:
    part = jaxpr.replace(invars=list(invars), outvars=list(outvars), eqns=eqns)
    return jaxpr_as_fun(ClosedJaxpr(part, consts))
