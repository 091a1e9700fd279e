"""What two passes over one batch have in common: the computation up to the first leaf that moves between them.

`share_prefix` wraps a forward function. The passes call what it returns in place of that function and know nothing of
it. The compiler does not find the common part by itself: it simplifies the pass that is differentiated and the one that
is not in different ways before it looks for what is equal, and then finds little beyond the first convolution.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun

from fsg_jax.typing import PyTree

_FIXED, _BEFORE, _AFTER = range(3)


def share_prefix(forward: Callable[..., Any], moves: PyTree, trainable: PyTree, inputs: PyTree) -> Callable[..., Any]:
    """Returns ``f(trainable, ...) = forward(trainable, inputs)``, the common part being computed here, once.

    The common part is what comes before the first moving leaf. `f` ignores its other arguments. It holds while the
    leaves that do not move have the values that they have in `trainable`, and can be differentiated
    in reverse mode; gradients of the fixed leaves go back through the common part, which is not computed again.

    Args:
      forward: a function of pytrees of arrays; whatever it closes over counts as fixed.
      moves: a tree like `trainable` of bools, True at the leaves that change between the calls.
      trainable: values at the first call.
      inputs: the batch that all calls see.
    """

    def part(tree: PyTree, moving: bool) -> PyTree:
        return jax.tree.map(lambda m, leaf: leaf if m == moving else None, moves, tree)

    def run(moving: PyTree, fixed: PyTree, inputs: PyTree) -> Any:
        whole = jax.tree.map(lambda m, a, b: a if m else b, moves, moving, fixed)
        return forward(whole, inputs)

    fixed = part(trainable, False)
    before, after = split_at_first_use(run, part(trainable, True), fixed, inputs)
    boundary, pull_back = jax.vjp(lambda fixed: before(fixed, inputs), fixed)

    @jax.custom_vjp
    def prefix(fixed: PyTree) -> list[jax.Array]:
        del fixed
        return boundary

    prefix.defvjp(lambda fixed: (boundary, None), lambda _, gradient: pull_back(gradient))

    def shared(trainable: PyTree, *_: Any, **__: Any) -> Any:
        fixed = part(trainable, False)
        return after(part(trainable, True), fixed, prefix(fixed))

    return shared


def split_at_first_use(f: Callable[..., Any], moving: PyTree, fixed: PyTree, data: PyTree) -> tuple[Any, Any]:
    """Splits `f` in two, ``f(moving, fixed, data) == after(moving, fixed, before(fixed, data))``; it is traced once.

    `before` computes everything that depends on `data` and not on `moving`, and returns what `after` needs of it.

    What depends on neither `moving` nor `data`, such as a parameter's cast, its gathering from other devices or a
    random mask, is in both parts: it need not be kept between them. A function that JAX does not look into, such as a
    rematerialised block or one under its own ``jit``, is in the second part if any of its inputs is.

    Args:
      f: ``f(moving, fixed, data)``, of pytrees of arrays; it may close over others, which count as fixed.
      moving: leaves at which the second part is evaluated more than once.
      fixed: leaves that do not change in between.
      data: the batch.
    """
    closed, shape = jax.make_jaxpr(f, return_shape=True)(moving, fixed, data)
    jaxpr, result = closed.jaxpr, jax.tree.structure(shape)
    inputs = iter(jaxpr.invars)
    moves, stays, reads = ([next(inputs) for _ in jax.tree.leaves(tree)] for tree in (moving, fixed, data))
    levels = dict.fromkeys(moves, _AFTER) | dict.fromkeys(reads, _BEFORE)

    def level_of(atom: Any) -> int:
        return _FIXED if isinstance(atom, Literal) else levels.get(atom, _FIXED)

    first, second = [], []
    for eqn in jaxpr.eqns:
        level = max(map(level_of, eqn.invars), default=_FIXED)
        if eqn.effects:  # e.g. a print, which is to happen once
            level = max(level, _BEFORE)
        first += [eqn] * (level != _AFTER)
        second += [eqn] * (level != _BEFORE)
        levels |= dict.fromkeys(eqn.outvars, level)
    wanted = [v for eqn in second for v in eqn.invars] + list(jaxpr.outvars)
    boundary = list(dict.fromkeys(v for v in wanted if level_of(v) == _BEFORE))

    run_first = _function(jaxpr, closed.consts, [*stays, *reads], boundary, first)
    run_second = _function(jaxpr, closed.consts, [*moves, *stays, *boundary], jaxpr.outvars, second)

    def before(fixed: PyTree, data: PyTree) -> list[jax.Array]:
        return run_first(*jax.tree.leaves((fixed, data)))

    def after(moving: PyTree, fixed: PyTree, boundary: list[jax.Array]) -> Any:
        return jax.tree.unflatten(result, run_second(*jax.tree.leaves((moving, fixed)), *boundary))

    return before, after


def _function(jaxpr: Jaxpr, consts: Any, invars: Any, outvars: Any, eqns: Any) -> Callable[..., list[jax.Array]]:
    part = jaxpr.replace(invars=list(invars), outvars=list(outvars), eqns=eqns)
    return jaxpr_as_fun(ClosedJaxpr(part, consts))
