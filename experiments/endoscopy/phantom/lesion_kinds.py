"""Made-up histology and site of the polyps: partly to be seen in the frames, never for sure.

Site. Nothing is drawn for it that changes the wall: what was drawn for a stretch of colon anyway places it along the
colon, from cecum to rectum. Its place is the normal quantile of the weighted sum `place_of`: paler mucosa, clearer
vessels, a narrower lumen and folds farther apart lie farther on. The polyps of one video share the true site. A share
`SITE_NOISE` of the written sites is a neighbour of the true one.

Histology. The true class is drawn for each polyp with chances (`chances_of`) that depend on its size (the larger, the
fewer hyperplastic ones and such that are no polyp) and on its true site (sessile serrated lesions first, hyperplastic
polyps last in the colon). It sets the means of three things that are seen on the polyp: how wide its pits are, how
clear the ridges between them, and how pale it is. Every polyp deviates from its class's means, so that even these three
numbers and its tint tell the class of only about nine in ten, and a frame tells less. A share `HISTOLOGY_NOISE` of the
written classes is drawn anew regardless of size, site and looks, and a share ``missing_histology`` of the polyps, drawn
at random, has none written.

All of it has random streams of its own, so that sizes, places, walls and tracks are those of a phantom without labels.
The shares are invented, and say nothing about real polyps.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr

from experiments.endoscopy.phantom.colon import Polyp, Scene
from experiments.endoscopy.phantom.phantom_plan import Config, Lesion, Video
from fsg_jax.endoscopy.index.label_codes import HISTOLOGIES, SITES

HISTOLOGY_NOISE, SITE_NOISE = 0.1, 0.15
"""Shares of the written labels that do not follow the truth."""
_SITE_SHARES = (0.10, 0.20, 0.06, 0.18, 0.06, 0.12, 0.18, 0.10)
_PROXIMAL = SITES.index("transverse")
_DISTAL = SITES.index("sigmoid")
_LABELS, _HIDDEN = 0x1ABE1, 0x41DD  # streams apart from those of sizes, scenes and noise


class _Kind(NamedTuple):
    """How often a class is at 5 mm, the power of size by which that grows, and what is seen of it."""

    share: float
    growth: float
    pits: float
    ridges: float
    pale: float


_KINDS = {  # ridges are pale, so that the paler classes have clearer ones
    "AD": _Kind(0.40, 0.3, pits=1.0, ridges=0.7, pale=0.88),
    "HP": _Kind(0.22, -0.7, pits=0.62, ridges=1.3, pale=1.15),
    "SSL": _Kind(0.14, 0.2, pits=1.6, ridges=1.0, pale=1.12),
    "TSA": _Kind(0.08, 0.4, pits=1.9, ridges=0.4, pale=0.74),
    "OTHER": _Kind(0.07, 0.0, pits=0.8, ridges=0.2, pale=0.98),
    "NO POLYP": _Kind(0.09, -0.7, pits=1.0, ridges=0.1, pale=1.3),
}
_SPREAD = np.array([0.35, 0.5, 0.06])
"""Standard deviations of the logarithms of pits, ridges and pale within a class; the tint has a spread of its own."""


def place_of(scene: Scene) -> float:
    """Where the stretch of colon lies along the colon, from 0 (its beginning) to 1; uniform over random scenes."""
    pale = (scene.cast[1] - 1) / 0.12 + (scene.cast[2] - 1) / 0.18
    vessels, radius = (scene.vessels - 0.7) / 0.3, (scene.wall.mean_radius - 20.5) / 2
    spacing = (scene.wall.spacing - 21) / 4
    score = 1.2 * pale + vessels - 0.4 * radius + 0.4 * spacing  # five uniform numbers of variance 1/3
    return float(ndtr(score / math.sqrt((2 * 1.2**2 + 1 + 2 * 0.4**2) / 3)))


def chances_of(size: float, site: int) -> np.ndarray:
    """The chance of each of `HISTOLOGIES` for a polyp of `size` mm at ``SITES[site]``."""
    weights = {name: kind.share * (size / 5) ** kind.growth for name, kind in _KINDS.items()}
    weights["SSL"] *= 1.6 if site <= _PROXIMAL else 0.6
    weights["HP"] *= 1.6 if site >= _DISTAL else 0.7
    chances = np.array([weights[name] for name in HISTOLOGIES])
    return chances / chances.sum()


def draw_lesions(video: Video, scene: Scene, config: Config) -> tuple[tuple[Lesion, ...], Scene]:
    """The labels of the polyps of a video, and its scene with polyps that look like them."""
    hidden = hidden_polyps(config)
    site = int(np.searchsorted(np.cumsum(_SITE_SHARES)[:-1], place_of(scene), side="right"))
    lesions, polyps = [], []
    for number, size, polyp in zip(video.polyps, video.sizes, scene.polyps, strict=True):
        rng = np.random.default_rng([config.seed, number, 0, 0, _LABELS])
        true = _draw(chances_of(size, site), rng)
        polyps.append(_dress(polyp, _KINDS[HISTOLOGIES[true]], rng))
        written = HISTOLOGIES[_noisy_histology(true, rng)]
        neighbour = SITES[_noisy_site(site, rng)]
        lesions.append(Lesion(HISTOLOGIES[true], SITES[site], None if number in hidden else written, neighbour))
    return tuple(lesions), scene._replace(polyps=tuple(polyps))


def hidden_polyps(config: Config) -> frozenset[int]:
    """The polyps whose histology is not written: the nearest whole number to the share, each as likely as any other."""
    order = np.random.default_rng([config.seed, config.polyps, 0, 0, _HIDDEN]).permutation(config.polyps)
    return frozenset(order[: round(config.missing_histology * config.polyps)].tolist())


def _draw(chances: np.ndarray, rng: np.random.Generator) -> int:
    return int(np.searchsorted(np.cumsum(chances)[:-1], rng.random(), side="right"))


def _dress(polyp: Polyp, kind: _Kind, rng: np.random.Generator) -> Polyp:
    pits, ridges, pale = np.array([kind.pits, kind.ridges, kind.pale]) * np.exp(rng.normal(0, _SPREAD))
    return polyp._replace(tint=polyp.tint * (1, pale, pale), pits=float(pits), ridges=float(ridges))


def _noisy_histology(true: int, rng: np.random.Generator) -> int:
    anew, other = rng.random() < HISTOLOGY_NOISE, _draw(np.array([_KINDS[name].share for name in HISTOLOGIES]), rng)
    return other if anew else true


def _noisy_site(true: int, rng: np.random.Generator) -> int:
    wrong, step = rng.random() < SITE_NOISE, int(rng.choice((-1, 1)))
    if not wrong:
        return true
    return true + step if 0 <= true + step < len(SITES) else true - step
