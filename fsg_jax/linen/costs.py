"""What a model costs in evaluation: parameters and floating-point operations, by layer, counted without computing."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr

from fsg_jax.gates.sites import flat_variables
from fsg_jax.typing import Variables

FREE = {"broadcast_in_dim", "concatenate", "convert_element_type", "copy", "dynamic_slice", "dynamic_update_slice"}
FREE |= {
    "gather",
    "iota",
    "pad",
    "reshape",
    "rev",
    "select_n",
    "slice",
    "split",
    "squeeze",
    "stop_gradient",
    "transpose",
}
"""Operations that move values and compute none."""


class Cost(NamedTuple):
    """Parameters and floating-point operations; a multiplication and an addition are two operations."""

    parameters: int = 0
    flops: int = 0


def layer_costs(model: nn.Module, variables: Variables, inputs: Any) -> dict[str, Cost]:
    """Costs of one example by the path of the layer, in the order of the forward pass.

    Products of matrices and convolutions count two operations for each product of two numbers, reductions one for each
    number that goes in and all else one for each number that comes out. Taps of a convolution that fall on its padding
    count nothing, as in XLA's own cost analysis; tables of published models count them (ResNet-18 at 32 pixels: 1.11
    instead of 0.97 billion). A loop of unknown length counts once, of branches the last. Parameters are those of
    ``"params"`` and ``"gates"``. The sum over layers is the whole model.

    Args:
      model: called as ``model(inputs)``.
      variables: by collection; shapes suffice.
      inputs: a batch; values do not matter.
    """
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype), inputs)
    flops: Counter[str] = Counter()
    for path, count in _count(jax.make_jaxpr(model.apply)(variables, one).jaxpr):
        flops[path] += count
    sizes: Counter[str] = Counter()
    for path, leaf in flat_variables(variables).items():
        kind, *modules, _ = path.split("/")
        if kind in ("params", "gates"):
            sizes["/".join(modules)] += math.prod(jnp.shape(leaf))
    return {path: Cost(sizes[path], flops[path]) for path in dict.fromkeys([*flops, *sizes])}


def total(costs: dict[str, Cost]) -> Cost:
    """The sum over layers."""
    return Cost(*(sum(column) for column in zip(*costs.values(), strict=True)))


def _count(jaxpr: Jaxpr, outer: str = "", times: int = 1) -> Iterator[tuple[str, int]]:
    """Path and operations of each equation. Flax names the scopes: the model's class, then modules and methods."""
    for eqn in jaxpr.eqns:
        scope = "/".join(filter(None, (outer, str(eqn.source_info.name_stack))))
        inner = [p for v in eqn.params.values() for p in (v if isinstance(v, tuple | list) else [v])]
        inner = [p.jaxpr if isinstance(p, ClosedJaxpr) else p for p in inner if isinstance(p, ClosedJaxpr | Jaxpr)]
        if inner:
            steps = eqn.params["length"] if eqn.primitive.name == "scan" else 1
            for body in inner[-1:]:  # of branches the last; a jvp rule is no jaxpr
                yield from _count(body, scope, times * steps)
        elif eqn.primitive.name not in FREE:
            modules = [part for part in scope.split("/")[1:] if "." not in part and "," not in part]
            yield "/".join(modules), times * _operations(eqn)


def _operations(eqn: Any) -> int:
    out, shapes = math.prod(eqn.outvars[0].aval.shape), [v.aval.shape for v in eqn.invars]
    if eqn.primitive.name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        return 2 * out * math.prod(shapes[0][i] for i in contracted)
    if eqn.primitive.name == "conv_general_dilated":
        return 2 * _products(eqn, *shapes)
    return math.prod(shapes[0]) if eqn.primitive.name.startswith("reduce_") else out


def _products(eqn: Any, image: Sequence[int], kernel: Sequence[int]) -> int:
    """Products of a convolution whose tap lies on the image."""
    spec, params = eqn.params["dimension_numbers"], eqn.params
    out = eqn.outvars[0].aval.shape
    count = out[spec.out_spec[0]] * out[spec.out_spec[1]] * kernel[spec.rhs_spec[1]]
    for i, (x, k, y) in enumerate(zip(spec.lhs_spec[2:], spec.rhs_spec[2:], spec.out_spec[2:], strict=True)):
        spread, size = params["lhs_dilation"][i], (image[x] - 1) * params["lhs_dilation"][i] + 1
        taps = np.arange(kernel[k]) * params["rhs_dilation"][i] - params["padding"][i][0]
        at = np.arange(out[y])[:, None] * params["window_strides"][i] + taps
        count *= int(np.sum((at >= 0) & (at < size) & (at % spread == 0)))
    return count
