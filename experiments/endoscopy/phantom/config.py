"""What a phantom is made of."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

GENERATOR = "experiments.phantom"
VERSION = 1
"""Raised whenever the same options give other bytes."""

_MINIMUM = {"polyps": 1, "frames": 1, "seed": 0, "width": 64, "height": 64, "broken": 0, "workers": 0}


@dataclass(frozen=True)
class Config:
    """A made-up colonoscopy set; the same options and seed give the same frames, boxes and sizes in both layouts.

    Raises:
      ValueError: a number is out of range.
    """

    out: Path
    """Folder of the set: new, empty, or holding this very set."""
    layout: Literal["real-colon", "sun"]
    """How the files lie."""
    polyps: int = 48
    frames: int = 12
    """Frames that show each polyp."""
    seed: int = 0
    width: int = 320
    height: int = 256
    depth: bool = True
    """Write depth maps."""
    broken: int = 0
    """Number of deliberately damaged frames, which a reader must drop; listed in SYNTHETIC.json."""
    two_polyp_frames: bool = False
    """Every fourth video shows two polyps in its frames."""
    censor: bool = False
    """SUN: a size of 15 mm or more is written as ``15mm-``."""
    workers: int = 0
    """Processes; 0: one a core. The files do not depend on it."""

    def __post_init__(self) -> None:
        for name, minimum in _MINIMUM.items():
            if getattr(self, name) < minimum:
                raise ValueError(f"--{name} is {getattr(self, name)}; expected at least {minimum}")
        if self.two_polyp_frames and self.polyps < 2:
            raise ValueError(f"--two-polyp-frames needs at least 2 polyps; --polyps is {self.polyps}")
        if self.censor and self.layout != "sun":
            raise ValueError(f"--censor: only SUN has censored sizes; --layout is {self.layout!r}")

    def parameters(self) -> dict[str, Any]:
        """The options that the content of the files depends on."""
        return {name: value for name, value in asdict(self).items() if name not in ("out", "workers")}
