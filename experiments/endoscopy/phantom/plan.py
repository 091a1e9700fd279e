"""Which polyps there are, how large they are and which video shows them."""

import math
from statistics import NormalDist

import numpy as np

from experiments.endoscopy.phantom.config import Config
from experiments.endoscopy.phantom.records import VideoPlan

GROUPS = ((2.0, 5.0, 0.5), (5.5, 9.5, 0.25), (10.0, 20.0, 0.25))
"""Smallest and largest size in mm and share of the polyps in each size group: <= 5, 5 to 10, >= 10 mm."""
_LOG_SIZE = NormalDist(math.log(5.0), 0.6)
_STEP = 0.5


def plan_videos(config: Config) -> list[VideoPlan]:
    """The videos of a phantom in order; one polyp each, or two in every fourth with ``two_polyp_frames``."""
    sizes = polyp_sizes(config.polyps, config.seed)
    plans: list[VideoPlan] = []
    start = 0
    while start < config.polyps:
        pair = config.two_polyp_frames and len(plans) % 4 == 0
        polyps = tuple(range(start, min(start + 1 + pair, config.polyps)))
        plans.append(VideoPlan(len(plans), polyps, tuple(sizes[k] for k in polyps)))
        start += len(polyps)
    return plans


def polyp_sizes(count: int, seed: int) -> list[float]:
    """`count` sizes in mm, log-normal within each group of `GROUPS`, in steps of 0.5 mm, in random order."""
    rng = np.random.default_rng([seed, count])
    sizes = np.concatenate([_sizes_of_group(n, group, rng) for n, group in zip(_counts(count), GROUPS, strict=True)])
    return [float(size) for size in rng.permutation(sizes)]


def _counts(count: int) -> list[int]:
    """`count` shared out by the groups' shares; what is left over goes to the largest remainders."""
    quotas = np.array([share for *_, share in GROUPS]) * count
    counts = np.floor(quotas).astype(int)
    for group in np.argsort(-(quotas - counts), kind="stable")[: count - counts.sum()]:
        counts[group] += 1
    return counts.tolist()


def _sizes_of_group(count: int, group: tuple[float, float, float], rng: np.random.Generator) -> np.ndarray:
    low, high, _ = group
    first, last = (_LOG_SIZE.cdf(math.log(end)) for end in (low, high))
    quantiles = first + (last - first) * (np.arange(count) + rng.random(count)) / max(count, 1)
    sizes = np.exp([_LOG_SIZE.inv_cdf(quantile) for quantile in quantiles])
    return np.clip(np.round(sizes / _STEP) * _STEP, low, high)
