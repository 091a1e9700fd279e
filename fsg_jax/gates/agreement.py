"""Agreement: whether several runs select the same channels, beside what chance would give."""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from fsg_jax._checks import check_integer, expect


class Agreement(NamedTuple):
    """How far the sets of channels agree that runs select at one gate; see `agreement`."""

    channels: int
    sizes: tuple[int, ...]
    """Channels selected, by run."""
    jaccard: float
    """Mean over pairs of runs of ``|A & B| / |A | B|``, 1 where both sets are empty."""
    chance: float
    """Its expectation, if every run drew a set of its own size at random."""
    chance_std: float
    """Its standard deviation then."""
    p_value: float
    """Share of such random sets that agree at least as well; at least 1 / (1 + draws)."""
    kappa: float
    """Mean over pairs of Cohen's kappa: 0 by chance, 1 for equal sets; NaN where all sets are empty or all are full."""


class Agreements(NamedTuple):
    """The agreement at each gate, in the order of the gates, and the mean over them."""

    gates: dict[str, Agreement]
    overall: Agreement
    """Means over gates of `jaccard`, `chance` and (where defined) `kappa`; sums of `channels` and `sizes`."""


def agreement(selections: Sequence[Mapping[str, Any]], *, draws: int = 2000, seed: int = 0) -> Agreements:
    """Agreement between runs about the channels that they select, and what chance would give.

    By chance every run selects a set of its own size, all such sets being equally likely and independent. The overlap
    of two sets is then hypergeometric, and the overlaps of different pairs of runs are uncorrelated, for the
    distribution of an overlap is the same whatever one of its sets is: mean and standard deviation are exact. The
    p-value is of a permutation test, one-sided and for each gate alone: of 20 gates one is below 0.05 by chance.

    Channels of networks that started from different weights are exchangeable, so no agreement is to be expected of
    them; it means something where runs share their initial or pretrained weights.

    Args:
      selections: for each run its booleans (channels,) by gate, as from `fsg_jax.selected` or `top_channels`.
      draws: random sets of the permutation test.
      seed: of these.

    Raises:
      ValueError: fewer than two runs, no gate, or runs with other gates or channels or without booleans.

    Source: Cohen 1960 (kappa; of two sets of equal size it is the stability index of Kuncheva 2007).
    """
    expect(len(selections) > 1, "selections", "two runs or more", len(selections))
    expect(selections[0], "selections", "a gate or more", "none")
    check_integer("draws", draws, 1)
    rng, rows, above = np.random.default_rng(seed), {}, np.zeros(draws)
    for name in selections[0]:
        sets = _stack(name, selections)
        drawn = _jaccard(
            [sets[:1].repeat(draws, 0), *(rng.permuted(row[None].repeat(draws, 0), axis=1) for row in sets[1:])]
        )
        rows[name] = _agreement(sets, drawn)
        above += drawn
    extra = sorted({name for chosen in selections for name in chosen} - rows.keys())
    expect(not extra, "selections", f"the gates of the first run, {list(rows)}", f"others too: {extra}")
    return Agreements(rows, _overall(list(rows.values()), above / len(rows)))


def top_channels(values: Mapping[str, Any], share: float) -> dict[str, Bool[np.ndarray, " channels"]]:
    """Which channels are among the `share` of each gate with the largest values, at least one.

    Values equal to the least of them count too, so that where all are equal none is picked by its place.

    Args:
      values: gate values (channels,) by gate, as from `fsg_jax.gate_values`.
      share: of the channels of each gate, above 0 and at most 1.

    Raises:
      ValueError: a share out of range, or values that are not finite.
    """
    expect(0 < share <= 1, "share", "a number above 0 and at most 1", share)
    chosen = {}
    for name, found in values.items():
        expect(np.isfinite(found).all(), f"gate {name!r}", "finite values", "NaN or Inf")
        sort = np.sort(np.asarray(found))
        chosen[name] = np.asarray(found) >= sort[-max(1, round(share * sort.size))]
    return chosen


def _stack(name: str, selections: Sequence[Mapping[str, Any]]) -> Bool[np.ndarray, "runs channels"]:
    rows = [np.asarray(chosen.get(name, ())) for chosen in selections]
    shape = rows[0].shape
    expect(len(shape) == 1 and shape[0], f"gate {name!r}", "booleans (channels,)", f"shape {shape}")
    for number, row in enumerate(rows):
        found = f"{row.dtype} {row.shape} in run {number}" if name in selections[number] else f"none in run {number}"
        expect(row.dtype == bool and row.shape == shape, f"gate {name!r}", f"booleans {shape} in every run", found)
    return np.stack(rows)


def _agreement(sets: Bool[np.ndarray, "runs channels"], drawn: Float[np.ndarray, " draws"]) -> Agreement:
    channels, sizes = sets.shape[1], sets.sum(1).tolist()
    pairs = list(combinations(range(len(sizes)), 2))
    moments = np.array([_by_chance(channels, sizes[i], sizes[j]) for i, j in pairs])
    kappas = [_kappa(channels, sizes[i], sizes[j], int((sets[i] & sets[j]).sum())) for i, j in pairs]
    observed = float(_jaccard(sets[:, None])[0])
    chance, std = float(moments[:, 0].mean()), math.sqrt(moments[:, 1].sum()) / len(pairs)
    return Agreement(channels, tuple(sizes), observed, chance, std, _p_value(drawn, observed), _mean(kappas))


def _overall(rows: Sequence[Agreement], drawn: Float[np.ndarray, " draws"]) -> Agreement:
    observed, chance = (float(np.mean([getattr(row, name) for row in rows])) for name in ("jaccard", "chance"))
    std = math.sqrt(sum(row.chance_std**2 for row in rows)) / len(rows)
    sizes = tuple(map(sum, zip(*(row.sizes for row in rows), strict=True)))
    kappa = _mean([row.kappa for row in rows])
    return Agreement(sum(row.channels for row in rows), sizes, observed, chance, std, _p_value(drawn, observed), kappa)


def _jaccard(sets: Any) -> Float[np.ndarray, " draws"]:
    """The mean Jaccard index over pairs of runs, of sets (draws, channels) of each run."""
    found = []
    for a, b in combinations(sets, 2):
        shared, joined = (a & b).sum(1), (a | b).sum(1)
        found.append(np.where(joined == 0, 1.0, shared / np.maximum(joined, 1)))
    return np.mean(found, axis=0)


def _by_chance(channels: int, a: int, b: int) -> tuple[float, float]:
    """Mean and variance of the Jaccard index of two random sets of `a` and `b` channels."""
    from scipy.stats import hypergeom  # its import takes a while

    shared = np.arange(max(0, a + b - channels), min(a, b) + 1)
    weights = hypergeom.pmf(shared, channels, a, b)
    values = shared / (a + b - shared) if a + b else np.ones(1)
    mean = float(weights @ values)
    return mean, float(weights @ (values - mean) ** 2)


def _kappa(channels: int, a: int, b: int, shared: int) -> float:
    observed = 1 - (a + b - 2 * shared) / channels
    chance = (a * b + (channels - a) * (channels - b)) / channels**2
    return (observed - chance) / (1 - chance) if chance < 1 else math.nan


def _mean(values: Sequence[float]) -> float:
    """The mean of those that are not NaN; NaN of none."""
    defined = [value for value in values if not math.isnan(value)]
    return float(np.mean(defined)) if defined else math.nan


def _p_value(drawn: Float[np.ndarray, " draws"], observed: float) -> float:
    return (1 + int((drawn >= observed - 1e-9).sum())) / (1 + drawn.size)
