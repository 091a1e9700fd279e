"""Pruning: a model without the channels that a score puts last, smaller in every weight that makes or reads them."""

import math
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from fsg_jax._checks import check_choice, check_integer, expect
from fsg_jax.gates.fold import values_of
from fsg_jax.gates.select import HARD_LOGITS
from fsg_jax.gates.sites import Site, Use, flat_variables, nested_variables, remove, scale, sites_of
from fsg_jax.linen.batch_stats import recalibrate
from fsg_jax.linen.costs import Cost, layer_costs, total
from fsg_jax.typing import GATES, Variables

SCORES = ("gate", "magnitude", "random")
"""What decides which channels go first."""
COSTS = {"flops": "flops", "params": "parameters"}
"""Fields of `fsg_jax.linen.costs.Cost` by the names that a budget has."""

Kept = dict[str, Bool[np.ndarray, " channels"]]
"""Which channels are kept, by gate."""


class Layer(NamedTuple):
    """One row of `Table`: a layer with weights, or what is computed beside them; channels are those of its output."""

    name: str
    channels: tuple[int, int]
    parameters: tuple[int, int]
    flops: tuple[int, int]


class Table(NamedTuple):
    """What pruning did; each pair is before and after.

    Attributes:
      layers: in the order of the forward pass.
      parameters: of the whole model, before and after.
      flops: of the whole model for one example, before and after (`fsg_jax.linen.costs.layer_costs`).
      kept: by the name of the site, which of its channels were kept; what `mask_gates` takes.
    """

    layers: tuple[Layer, ...]
    parameters: tuple[int, int]
    flops: tuple[int, int]
    kept: Kept

    def __str__(self) -> str:
        """The table as text."""
        rows: list[tuple[str, ...]] = [("layer", "channels", "parameters", "FLOPs")]
        for layer in (*self.layers, Layer("total", (0, 0), self.parameters, self.flops)):
            rows.append((layer.name or "(top)", *(f"{a:,} -> {b:,}" if a or b else "" for a, b in layer[1:])))
        sizes = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(map(str.ljust, row, sizes)).rstrip() for row in rows)


class Pruned(NamedTuple):
    """A smaller model, its variables, and what changed."""

    model: nn.Module
    variables: dict[str, Any]
    table: Table

    @property
    def kept(self) -> Kept:
        """Which channels were kept, by the name of the site; what `mask_gates` takes."""
        return self.table.kept


def prune(
    model: nn.Module,
    variables: Variables,
    inputs: Any,
    *,
    budget: Mapping[str, Any],
    divisor: int = 8,
    min_keep: int = 8,
    score: str = "gate",
    calibrate: Iterable[Any] | None = None,
    seed: int = 0,
) -> Pruned:
    """Removes the channels with the lowest scores until the model meets its budget.

    The channels are those inside the blocks, where the gates are in the placement ``"hidden"``: units of MLPs, heads
    and value channels of attention, channels between convolutions. They are ranked over the whole model; where scores
    are equal, the sites give up equal shares. What is left computes what the model computes with the other channels at
    0 (`mask_gates`); the two are compared on `inputs`. The pruned model differs in its attribute ``widths`` alone,
    keeps its gates, and trains on as any other.

    Args:
      model: with a method ``gate_sites()`` (`fsg_jax.gates.sites`) and an attribute ``widths``.
      variables: by collection.
      inputs: a batch of the model's input.
      budget: upper bounds of what is left, ``{"flops": "50%"}``, ``{"params": 0.25}`` (a share, at most 1) or
        ``{"flops": 2e8, "params": "30%"}`` (absolute numbers, above 1, for one example); all are met.
      divisor: a site keeps a multiple of so many features, or all.
      min_keep: least number of features that a site keeps, or all. A head counts with all its features.
      score: ``"gate"``, the absolute value of the gate; ``"magnitude"``, the norm of all kernels that make or read the
        channel, over its mean in the site (the group norm of Fang et al. 2023); ``"random"``, uniform.
      calibrate: batches of inputs, from which the BatchNorm statistics of the pruned model are measured.
      seed: of ``"random"``.

    Raises:
      ValueError: a budget that cannot be met, telling the least that can; an unknown score; a site without a gate for
        ``"gate"``; gates inside the blocks that depend on their input; a pruned model that does not compute what the
        masked one does.
    """
    check_choice("score", score, SCORES)
    check_integer("divisor", divisor, 1)
    check_integer("min_keep", min_keep, 1)
    flat = flat_variables(variables)
    sites = {name: site for name, site in sites_of(model).items() if site.made}
    expect(sites, type(model).__name__, "sites with channels that can be removed", "none")
    for name in sites:
        others = [path for path in flat if path.startswith(f"params/{name}/")]
        expect(not others, f"gate {name!r}", "a static gate, or none", f"one with weights {others}")
    before = layer_costs(model, variables, inputs)
    limits = {
        cost: _limit(cost, bound, getattr(total(before), COSTS.get(cost, ""), 0)) for cost, bound in budget.items()
    }
    expect(limits, "budget", f"one or more of {', '.join(COSTS)}", budget)
    ranks = _ranks(_scores(model, variables, flat, sites, score, seed))

    def over(kept: Kept) -> dict[str, int]:
        after = total(layer_costs(*_without(model, flat, sites, kept), inputs))
        return {k: getattr(after, COSTS[k]) for k, most in limits.items() if getattr(after, COSTS[k]) > most}

    keep = partial(_keep, sites, ranks, divisor, min_keep)
    low, high = 0, sum(map(len, ranks.values()))
    least = over(keep(high))
    wanted = f"at least {least}, which is left with divisor={divisor} and min_keep={min_keep}"
    expect(not least, "budget", wanted, {k: limits[k] for k in least})
    while low < high:  # the fewest of the lowest ranks without which the budget is met
        middle = (low + high) // 2
        low, high = (middle + 1, high) if over(keep(middle)) else (low, middle)
    kept = keep(low)
    smaller, weights = _without(model, flat, sites, kept)
    weights = jax.tree.map(jnp.asarray, weights)
    _check_equal(mask_gates(model, variables, kept), (smaller, weights), inputs)
    after = layer_costs(smaller, weights, inputs)
    rows = tuple(_row(name, before, after, flat, flat_variables(weights)) for name in before)
    old, new = total(before), total(after)
    table = Table(rows, (old.parameters, new.parameters), (old.flops, new.flops), kept)
    return Pruned(smaller, weights if calibrate is None else recalibrate(smaller, weights, calibrate), table)


def mask_gates(model: nn.Module, variables: Variables, kept: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    """The model, and its variables with all channels that are not `kept` at 0: the masked twin of a pruned model.

    A gate becomes exactly 0; where a site has no gate, or one whose kind has no 0, the weights that read the channels
    become 0.

    Args:
      model: with a method ``gate_sites()`` (`fsg_jax.gates.sites`).
      variables: by collection.
      kept: by the name of the site, a boolean a channel, such as `Pruned.kept` or what `fsg_jax.selected` returns.

    Raises:
      ValueError: a name that is no site, another number of channels, or a site that can be masked in neither way.
    """
    flat, sites = flat_variables(variables), sites_of(model)
    values = values_of(model, variables) if variables.get(GATES) else {}
    for name, keep in kept.items():
        expect(name in sites, "kept", f"sites of the model, such as {next(iter(sites), None)!r}", repr(name))
        site, keep = sites[name], np.asarray(keep)
        wanted = f"{site.channels} booleans"
        expect(
            keep.dtype == bool and keep.shape == (site.channels,),
            f"kept[{name!r}]",
            wanted,
            f"{keep.dtype} {keep.shape}",
        )
        path, masked = f"{GATES}/{name}/logits", False
        for logit in HARD_LOGITS if name in values else ():
            logits = jnp.where(keep, flat[path], jnp.asarray(logit, flat[path].dtype))
            closed = values_of(model, nested_variables({**flat, path: logits}))[name]
            if masked := bool(jnp.all(closed[~keep] == 0)):
                flat[path] = logits
                break
        expect(
            masked or (site.absorb and not site.shortcut), f"site {name!r}", "a gate that can be 0, or weights", "none"
        )
        if not masked:
            scale(flat, site.absorb, jnp.asarray(keep, jnp.float32))
    return model, nested_variables(flat)


def _limit(cost: str, bound: Any, before: int) -> float:
    """An upper bound as an absolute number."""
    check_choice("budget", cost, COSTS)
    try:
        percent = isinstance(bound, str) and bound.endswith("%")
        number = float(bound[:-1]) / 100 if percent else float(bound)
        share = percent or number <= 1
    except (TypeError, ValueError):
        number, share = math.nan, False
    wanted = "a share such as '50%' or 0.5, or a number above 1"
    expect(0 < number < math.inf and not (share and number > 1), f"budget[{cost!r}]", wanted, repr(bound))
    return number * before if share else number


def _scores(
    model: nn.Module, variables: Variables, flat: dict[str, Any], sites: dict[str, Site], score: str, seed: int
) -> dict[str, Float[np.ndarray, " channels"]]:
    """A score a channel by the name of the site; what comes last goes first."""
    if score == "random":
        rng = np.random.default_rng(seed)
        return {name: rng.random(site.channels) for name, site in sites.items()}
    if score == "magnitude":
        return {name: _magnitude(flat, site) for name, site in sites.items()}
    values = values_of(model, variables) if getattr(model, "gate", None) is not None else {}
    missing = sorted(sites.keys() - values.keys())
    expect(not missing, "score 'gate'", "gates in the blocks (gate_placement='hidden')", f"none at {missing[:3]}")
    return {name: np.abs(np.asarray(values[name], np.float64)) for name in sites}


def _magnitude(flat: dict[str, Any], site: Site) -> Float[np.ndarray, " channels"]:
    """Norm of all kernel entries that belong to a channel, over its mean in the site."""
    square = np.zeros(site.channels)
    for use in (*site.made, *site.absorb):
        if (kernel := flat.get(f"params/{use.module}/kernel")) is not None:
            by_entry = np.moveaxis(np.asarray(kernel, np.float64), -1 if use.side == "out" else -2, 0) ** 2
            entries = by_entry.reshape(len(by_entry), -1).sum(1)[use.indices(np.arange(site.channels))]
            square += entries.reshape(site.channels, -1).sum(1)
    norms = np.sqrt(square)
    return norms / max(norms.mean(), np.finfo(np.float64).tiny)


def _ranks(scores: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The rank of each channel among all, from 0, the lowest; equal scores take turns between the sites."""
    values, turns = (
        np.concatenate([*scores.values()]),
        np.concatenate([np.arange(len(s)) / len(s) for s in scores.values()]),
    )
    ranks = np.empty(len(values), int)
    ranks[np.lexsort((turns, values))] = np.arange(len(values))
    return dict(zip(scores, np.split(ranks, np.cumsum([len(s) for s in scores.values()])[:-1]), strict=True))


def _keep(sites: dict[str, Site], ranks: Mapping[str, Any], divisor: int, min_keep: int, lowest: int) -> Kept:
    """All channels but the `lowest`, and the best of these that divisor, minimum and equal groups ask for."""
    kept: Kept = {}
    for name, site in sites.items():
        groups = np.ones(1, bool) if site.grouped_by is None else kept[site.grouped_by]
        by_group = np.reshape(ranks[name], (len(groups), -1))
        wanted = int(np.max(np.sum(by_group[groups] >= lowest, axis=1)))
        steps, least = math.ceil(divisor / site.unit), math.ceil(min_keep / site.unit / groups.sum())
        count = min(by_group.shape[1], math.ceil(max(wanted, least) / steps) * steps)
        best = np.argsort(np.argsort(-by_group, axis=1), axis=1) < count
        kept[name] = (best & groups[:, None]).reshape(-1)
    return kept


def _without(model: Any, flat: dict[str, Any], sites: dict[str, Site], kept: Kept) -> tuple[nn.Module, dict[str, Any]]:
    """The model and its variables without the channels that are not kept."""
    smaller, widths = dict(flat), dict(model.widths)
    gone: list[tuple[Use, np.ndarray]] = []
    for name, keep in kept.items():
        if not keep.all():
            channels = np.flatnonzero(~keep)
            gone += [(use, channels) for use in (*sites[name].made, *sites[name].absorb)]
            widths[name] = int(keep.sum())
            logits = f"{GATES}/{name}/logits"
            if logits in flat:
                smaller[logits] = np.asarray(flat[logits])[keep]
    remove(smaller, gone)
    return model.clone(widths=widths), nested_variables(smaller)


def _check_equal(masked: tuple[Any, Any], pruned: tuple[Any, Any], inputs: Any) -> None:
    """Raises ValueError unless both models compute the same, up to rounding."""
    wanted, found = (jax.jit(model.apply)(variables, inputs) for model, variables in (masked, pruned))
    error, size = float(jnp.max(jnp.abs(wanted - found))), float(jnp.max(jnp.abs(wanted)))
    tolerance = 1e-3 if getattr(pruned[0], "dtype", jnp.float32) == jnp.float32 else 5e-2
    expect(error <= tolerance * size + 1e-6, "pruned model", "the outputs of the masked one", f"up to {error:.2g} off")


def _row(name: str, before: Mapping[str, Cost], after: Mapping[str, Cost], *flat: Mapping[str, Any]) -> Layer:
    leaves = [
        f.get(f"params/{name}/kernel", f.get(f"params/{name}/scale", f.get(f"{GATES}/{name}/logits"))) for f in flat
    ]
    wide, narrow = (0 if leaf is None else leaf.shape[-1] for leaf in leaves)
    old, new = before[name], after[name]
    return Layer(name, (wide, narrow), (old.parameters, new.parameters), (old.flops, new.flops))
