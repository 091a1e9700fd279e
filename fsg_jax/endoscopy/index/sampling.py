"""Which frames of every polyp an epoch has: as many of each, so that long videos do not rule."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Int64

from fsg_jax._checks import check_integer
from fsg_jax.endoscopy.index.schema import Table
from fsg_jax.endoscopy.index.sort import Rows, key_codes, natural_order

Polyps = Sequence[Int64[np.ndarray, " _"]]
"""The row numbers of every polyp, by `rows_by_polyp`."""


def rows_by_polyp(table: Table, rows: Int[np.ndarray, " rows"] | None = None) -> list[np.ndarray]:
    """The row numbers of every polyp, polyps in natural order, the rows of each in the order of time.

    Args:
      table: an index, its rows in any order.
      rows: the rows to keep, such as those of a role; None keeps all.
    """
    order = natural_order(table)
    if rows is not None:
        order = order[np.isin(order, rows)]
    codes = key_codes(table, ["dataset", "polyp_id"])[0][order]
    return np.split(order, np.flatnonzero(np.diff(codes)) + 1) if len(order) else []


def epoch_length(polyps: Polyps, frames_per_polyp: int, *, skip_single_frame: bool = False) -> int:
    """Rows in an epoch, the same in every epoch: the sum of ``min(frames_per_polyp, frames)`` over the polyps."""
    return sum(min(frames_per_polyp, len(rows)) for rows in _kept(polyps, frames_per_polyp, skip_single_frame))


def sample_epoch(
    polyps: Polyps, frames_per_polyp: int, seed: int, epoch: int, *, skip_single_frame: bool = False
) -> Rows:
    """Up to `frames_per_polyp` rows of every polyp, drawn without replacement, all in random order.

    Args:
      polyps: the rows of every polyp, by `rows_by_polyp`.
      frames_per_polyp: 1 or more; a polyp with fewer frames gives them all.
      seed: 0 to 2**32 - 1; with `epoch`, all that the draw depends on.
      epoch: 0 or more.
      skip_single_frame: leave out polyps with one frame, as the reference implementation does.

    Raises:
      ValueError: an argument out of its range, or no rows.
    """
    check_integer("seed", seed, 0, 2**32 - 1)
    check_integer("epoch", epoch, 0)
    kept = _kept(polyps, frames_per_polyp, skip_single_frame)
    rng = np.random.default_rng(np.random.SeedSequence([seed, epoch]))
    drawn = [rng.choice(rows, min(frames_per_polyp, len(rows)), replace=False) for rows in kept]
    return rng.permutation(np.concatenate(drawn))


def sample_fixed(polyps: Polyps, frames_per_polyp: int | None, *, skip_single_frame: bool = False) -> Rows:
    """Up to `frames_per_polyp` rows of every polyp, evenly spaced in time; always the same, for validation.

    Of ``n`` rows, ``N < n`` are wanted: those at ``floor((2 i + 1) n / (2 N))``, the middles of N equal parts.

    Args:
      polyps: the rows of every polyp, by `rows_by_polyp`.
      frames_per_polyp: 1 or more; None takes all.
      skip_single_frame: as in `sample_epoch`.

    Raises:
      ValueError: `frames_per_polyp` out of range, or no rows.
    """
    wanted = max(map(len, polyps), default=1) if frames_per_polyp is None else frames_per_polyp
    return np.concatenate([_spaced(rows, wanted) for rows in _kept(polyps, wanted, skip_single_frame)])


def _kept(polyps: Polyps, frames_per_polyp: int, skip_single_frame: bool) -> Polyps:
    check_integer("frames_per_polyp", frames_per_polyp, 1)
    kept = [rows for rows in polyps if len(rows) > skip_single_frame]
    if not kept:
        raise ValueError(f"polyps: expected at least one with frames, found none among {len(polyps)} to sample from")
    return kept


def _spaced(rows: Int64[np.ndarray, " frames"], wanted: int) -> Rows:
    count = min(wanted, len(rows))
    return rows[(2 * np.arange(count) + 1) * len(rows) // (2 * count)]
