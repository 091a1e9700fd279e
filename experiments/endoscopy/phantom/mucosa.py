"""Tiles of mucosa: colour and height over a plane in mm, periodic, at several resolutions."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree

WALL_MM, PIT_MM = 64.0, 12.8
"""Length of a tile's side; the texture has this period."""
_BITS, _LEVELS = 9, 4
_SIDE = 1 << _BITS
_STARTS = np.array([sum(4 ** (_BITS - k) for k in range(level)) for level in range(_LEVELS)])
_PITS = 14  # in a row of a tile


class Tile(NamedTuple):
    """`values` (channels, texels of all levels), finest level first, each of half the side; `period` in mm."""

    values: np.ndarray
    period: float

    def at(self, x: np.ndarray, y: np.ndarray, footprint: np.ndarray) -> np.ndarray:
        """Values (channels, n) at mm coordinates, of the level whose texels are about `footprint` mm wide."""
        texel = self.period / _SIDE
        column, row = ((v * np.float32(1 / texel)).astype(np.intp) & (_SIDE - 1) for v in (x, y))
        level = sum((footprint > np.float32(1.5 * texel * 2**k)).astype(np.intp) for k in range(_LEVELS - 1))
        index = _STARTS.take(level) + ((row >> level) << (_BITS - level)) + (column >> level)
        return np.stack([plane.take(index, mode="clip") for plane in self.values])


@lru_cache(maxsize=1)
def wall_tile() -> Tile:
    """Channels: vessels (0 to 1), blotches (-1 to 1), height of the relief (standard deviation 1)."""
    rng = np.random.default_rng(2024)
    wide, narrow = (np.exp(-((_noise(rng, mm, WALL_MM) / width) ** 2)) for mm, width in ((9.0, 0.09), (4.0, 0.10)))
    vessels = np.clip(wide + 0.6 * narrow * (_noise(rng, 12.0, WALL_MM) > -0.3), 0, 1)
    return _pyramid([vessels, np.tanh(_noise(rng, 14.0, WALL_MM)), _noise(rng, 1.6, WALL_MM)], WALL_MM)


@lru_cache(maxsize=1)
def pit_tile() -> Tile:
    """Channels: ridges between pits (0 to 1), blotches (-1 to 1), height of the relief (standard deviation 1)."""
    rng = np.random.default_rng(2025)
    cells = _cells(_PITS)
    points = (cells + rng.uniform(0, 1, cells.shape)) * (PIT_MM / _PITS)
    texels = (_cells(_SIDE) + 0.5) * (PIT_MM / _SIDE)
    near, second = cKDTree(points % PIT_MM, boxsize=PIT_MM).query(texels, k=2)[0].T
    ridges = np.exp(-(((second - near) / 0.12) ** 2)).reshape(_SIDE, _SIDE)
    return _pyramid([ridges, np.tanh(_noise(rng, 2.5, PIT_MM)), _noise(rng, 0.7, PIT_MM)], PIT_MM)


def _cells(count: int) -> np.ndarray:
    """Column and row of every cell of a square grid, (count * count, 2)."""
    return np.stack(np.meshgrid(np.arange(count), np.arange(count)), axis=-1).reshape(-1, 2)


def _noise(rng: np.random.Generator, wavelength: float, period: float) -> np.ndarray:
    """Periodic noise of mean 0 and variance 1 around one wavelength in mm."""
    frequency = np.fft.fftfreq(_SIDE, period / _SIDE)
    radius = np.hypot(frequency[:, None], frequency) * wavelength
    spectrum = np.fft.fft2(rng.standard_normal((_SIDE, _SIDE))) * radius * np.exp(-((radius - 0.6) ** 2) / 0.18)
    noise = np.fft.ifft2(spectrum).real
    return noise / noise.std()


def _pyramid(channels: list[np.ndarray], period: float) -> Tile:
    levels = [np.stack(channels).astype(np.float32)]
    for _ in range(_LEVELS - 1):
        side = levels[-1].shape[1] // 2
        levels.append(levels[-1].reshape(-1, side, 2, side, 2).mean(axis=(2, 4)))
    return Tile(np.concatenate([level.reshape(len(channels), -1) for level in levels], axis=1), period)
