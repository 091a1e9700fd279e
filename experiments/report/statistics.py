"""Paired differences to the baseline over seeds, with their t test."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

SPREAD = 1e-9
"""Differences within this are equal; one example of a million moves the accuracy by 1e-6."""


class Paired(NamedTuple):
    """Differences treatment - control over the shared seeds.

    `mean` is None without a shared seed. `interval` and `p_value` are None where a t test has no meaning,
    and `note` then says why.
    """

    differences: dict[Any, float]
    mean: float | None
    interval: tuple[float, float] | None
    p_value: float | None
    note: str


def paired(treatment: Mapping[Any, float], control: Mapping[Any, float], confidence: float = 0.95) -> Paired:
    """Paired t test by seed: mean(d) ± t_{n-1} · std(d) / sqrt(n), d_s = treatment_s - control_s.

    Args:
        treatment: Value by seed.
        control: Value by seed; seeds found on one side only are left out of the pairs.
        confidence: Level of the two-sided interval, in (0, 1).
    """
    seeds = sorted(treatment.keys() & control.keys())
    differences = {seed: treatment[seed] - control[seed] for seed in seeds}
    if not seeds:
        return Paired(differences, None, None, None, "no seed shared with the baseline")
    mean = float(np.mean(list(differences.values())))
    if len(seeds) < 2:
        return Paired(differences, mean, None, None, "only one pair, an interval needs two or more")
    if np.ptp(list(differences.values())) <= SPREAD:
        note = "all differences are equal: no spread to base an interval or a test on"
        return Paired(differences, mean, None, None, note)
    result = stats.ttest_rel([treatment[seed] for seed in seeds], [control[seed] for seed in seeds])
    low, high = result.confidence_interval(confidence)
    return Paired(differences, mean, (float(low), float(high)), float(result.pvalue), "")
