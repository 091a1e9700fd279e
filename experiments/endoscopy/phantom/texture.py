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
_PIT_SPACING = 0.9


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
    wide, narrow = _vessels(rng, 9.0, 0.09), _vessels(rng, 4.0, 0.10)
    vessels = np.clip(wide + 0.6 * narrow * (_noise(rng, 12.0) > -0.3), 0, 1)
    return _pyramid([vessels, np.tanh(_noise(rng, 14.0)), _noise(rng, 1.6)], WALL_MM)


@lru_cache(maxsize=1)
def pit_tile() -> Tile:
    """Channels: ridges between pits of fixed spacing in mm (0 to 1), blotches (-1 to 1), height of the relief."""
    rng = np.random.default_rng(2025)
    count = round(PIT_MM / _PIT_SPACING)
    cells = np.stack(np.meshgrid(np.arange(count), np.arange(count)), axis=-1).reshape(-1, 2)
    points = (cells + rng.uniform(0, 1, cells.shape)) * (PIT_MM / count)
    texels = (np.stack(np.meshgrid(np.arange(_SIDE), np.arange(_SIDE)), axis=-1) + 0.5) * (PIT_MM / _SIDE)
    near = cKDTree(points % PIT_MM, boxsize=PIT_MM).query(texels.reshape(-1, 2), k=2)[0]
    ridges = np.exp(-(((near[:, 1] - near[:, 0]) / 0.12) ** 2)).reshape(_SIDE, _SIDE)
    blotches = np.tanh(_noise(rng, 2.5, PIT_MM))
    return _pyramid([ridges, blotches, _noise(rng, 0.7, PIT_MM)], PIT_MM)


def _noise(rng: np.random.Generator, wavelength: float, period: float = WALL_MM) -> np.ndarray:
    """Periodic noise of mean 0 and variance 1 around one wavelength in mm."""
    frequency = np.fft.fftfreq(_SIDE, period / _SIDE)
    radius = np.hypot(frequency[:, None], frequency) * wavelength
    spectrum = np.fft.fft2(rng.standard_normal((_SIDE, _SIDE))) * radius * np.exp(-((radius - 0.6) ** 2) / 0.18)
    noise = np.fft.ifft2(spectrum).real
    return noise / noise.std()


def _vessels(rng: np.random.Generator, wavelength: float, width: float) -> np.ndarray:
    """Thin lines where a noise crosses zero."""
    return np.exp(-((_noise(rng, wavelength) / width) ** 2))


def _pyramid(channels: list[np.ndarray], period: float) -> Tile:
    levels = [np.stack(channels).astype(np.float32)]
    for _ in range(_LEVELS - 1):
        side = levels[-1].shape[1] // 2
        levels.append(levels[-1].reshape(-1, side, 2, side, 2).mean(axis=(2, 4)))
    return Tile(np.concatenate([level.reshape(len(channels), -1) for level in levels], axis=1), period)
