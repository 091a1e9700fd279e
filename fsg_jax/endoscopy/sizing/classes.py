"""Size classes: how millimetres are cut into two or three groups."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from fsg_jax._checks import look_up
from fsg_jax.typing import AnyArray


def _check_cuts(name: str, cuts: Sequence[float], count: int) -> None:
    ascending = all(low < high for low, high in pairwise(cuts))
    if len(cuts) != count or not ascending or not all(map(math.isfinite, cuts)):
        raise ValueError(f"{name}: expected {count} finite sizes in ascending order, found {tuple(cuts)}")


@dataclass(frozen=True)
class ClassScheme:
    """Ordered size classes.

    Args:
        name: of the scheme.
        classes: names from the smallest to the largest.
        thresholds: mm, ascending, one fewer than the classes.
        closed: for every threshold, whether a size equal to it belongs to the class below.

    Raises:
        ValueError: numbers do not match, or thresholds are not finite and ascending.
    """

    name: str
    classes: tuple[str, ...]
    thresholds: tuple[float, ...]
    closed: tuple[bool, ...]

    def __post_init__(self) -> None:
        _check_cuts("thresholds", self.thresholds, len(self.classes) - 1)
        if len(self.closed) != len(self.thresholds):
            raise ValueError(f"closed: expected {len(self.thresholds)} values, found {len(self.closed)}")

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.classes)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the probabilities, ``p_<class>``."""
        return tuple(f"p_{name}" for name in self.classes)


BINARY_10 = ClassScheme("binary_10", ("below_10mm", "from_10mm"), (10.0,), (False,))
"""Below 10 mm against 10 mm or more: the binary task of the code of Roffo et al. (2024)."""

BINARY_5 = ClassScheme("binary_5", ("up_to_5mm", "above_5mm"), (5.0,), (True,))
"""Up to 5 mm against more: the binary task of the audit of polyp sizing (arXiv 2605.20461)."""

TRI_CLASS = ClassScheme("tri_class", ("diminutive", "small", "large"), (5.0, 10.0), (True, False))
"""Up to 5 mm, between 5 and 10 mm, 10 mm or more; Roffo et al. (2024) write Dim, Small and Large."""

SCHEMES = {scheme.name: scheme for scheme in (BINARY_10, BINARY_5, TRI_CLASS)}
"""The schemes of size classes by name."""

REFERENCE_CUTS_MM = (4.75, 10.0)
"""Where Roffo et al. (2024) cut the predictions, not the truth, into the three classes when testing.

How 4.75 was chosen is not known; cutting predictions at the thresholds of the truth is the default here.
"""


def get_scheme(name: str) -> ClassScheme:
    """Returns the scheme of that name; ValueError lists `SCHEMES`."""
    return look_up(SCHEMES, name, "class scheme")


def make_scheme(thresholds: Sequence[float], name: str = "custom") -> ClassScheme:
    """Returns a scheme of classes ``up_to_<t>mm`` and, last, ``above_<t>mm``; a size equal to t is in the class below.

    Raises:
        ValueError: there is no threshold, or they are not finite and ascending.
    """
    if not thresholds:
        raise ValueError("thresholds: expected at least one size in mm, found none")
    classes = (*(f"up_to_{t:g}mm" for t in thresholds), f"above_{thresholds[-1]:g}mm")
    return ClassScheme(name, classes, tuple(map(float, thresholds)), (True,) * len(thresholds))


def class_of(
    size_mm: Float[AnyArray, "*shape"], scheme: ClassScheme, cuts_mm: Sequence[float] | None = None
) -> Int[AnyArray, "*shape"]:
    """Returns the index of the class of every size.

    Args:
        size_mm: true or predicted sizes, NumPy or JAX.
        scheme: of K classes.
        cuts_mm: thresholds to use in place of the scheme's, for predictions; see `REFERENCE_CUTS_MM`.

    Returns:
        Indices 0 to K - 1. Inside `jax.jit`, where it cannot be refused, NaN gets K: no class, and a NaN loss.

    Raises:
        ValueError: a size is NaN, or the cuts are not as many as the scheme's, finite and ascending.
    """
    above = exceeds(size_mm, scheme, cuts_mm)
    xp = _namespace(size_mm)
    return xp.where(xp.isnan(size_mm), scheme.num_classes, above.sum(-1)).astype(xp.int32)


def exceeds(
    size_mm: Float[AnyArray, "*shape"], scheme: ClassScheme, cuts_mm: Sequence[float] | None = None
) -> AnyArray:
    """Returns whether every size lies in a class above each threshold: booleans (*shape, K - 1).

    Args and errors are those of `class_of`.
    """
    cuts = scheme.thresholds if cuts_mm is None else tuple(cuts_mm)
    _check_cuts("cuts_mm", cuts, len(scheme.thresholds))
    if not isinstance(size_mm, jax.core.Tracer) and (count := int(np.isnan(size_mm).sum())):
        raise ValueError(f"size_mm: {count} of {np.size(size_mm)} sizes are NaN, which is of no class; drop them first")
    pairs = zip(cuts, scheme.closed, strict=True)
    above = [size_mm > cut if closed else size_mm >= cut for cut, closed in pairs]
    return _namespace(size_mm).stack(above, -1)


def _namespace(values: AnyArray) -> Any:
    return jnp if isinstance(values, jax.Array) else np
