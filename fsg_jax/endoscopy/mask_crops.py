"""Crops of frames with a mask: where in a frame there is a polyp to see, and where there is none."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64

from fsg_jax._checks import check_integer, check_nonnegative, expect


class Crop(NamedTuple):
    """A square of a frame: its first row and column, and the share of its pixels that the mask covers."""

    top: int
    left: int
    share: float


def mask_shares(mask: Bool[np.ndarray, "height width"], size: int) -> Float64[np.ndarray, "tops lefts"]:
    """The share of every square of `size` pixels that the mask covers, by its first row and column.

    Raises:
      ValueError: the mask is smaller than the square.
    """
    check_integer("size", size, 1)
    expect(min(mask.shape) >= size, "mask", f"at least {size} x {size} pixels", mask.shape)
    sums = np.pad(mask.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    within = sums[size:, size:] - sums[:-size, size:] - sums[size:, :-size] + sums[:-size, :-size]
    return within / size**2


def draw_crops(
    mask: Bool[np.ndarray, "height width"], size: int, count: int, rng: np.random.Generator, least: float = 0.2
) -> tuple[list[Crop], list[Crop]]:
    """Crops with a polyp and crops without, each drawn from all there are, of which each is as likely.

    Args:
      mask: of the polyps of the frame.
      size: height and width of a crop in pixels.
      count: of each kind; there are fewer where the frame has fewer.
      rng: draws.
      least: a crop with a polyp is covered by this share at least; one without is not covered at all.

    Returns:
      Those with and those without.

    Raises:
      ValueError: the mask is smaller than a crop, or `least` is not above 0.
    """
    check_integer("count", count, 0)
    check_nonnegative(least=least)
    expect(least > 0, "least", "a share above 0", least)
    shares = mask_shares(mask, size)
    kinds = []
    for there in (shares >= least, shares == 0):
        places = np.flatnonzero(there)
        taken = rng.choice(places, min(count, len(places)), replace=False)
        spots = zip(*np.unravel_index(taken, shares.shape), strict=True)
        kinds.append([Crop(int(top), int(left), float(shares[top, left])) for top, left in spots])
    return kinds[0], kinds[1]
