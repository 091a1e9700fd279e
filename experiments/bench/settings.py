"""Sizes of a benchmark, with defaults by device."""

from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

from fsg_jax._checks import check_integer, check_positive, expect

MODELS = ("resnet18", "vit_tiny", "efficientnet_b0")
PEERS = ("eager", "compile")
PRECISIONS = ("float32", "bfloat16")
ATTENTIONS = ("einsum", "xla", "cudnn")
NORMS = ("auto", "flax", "fast")


@dataclass(frozen=True)
class Settings:
    """What every suite is run with.

    Attributes:
      models: names for `fsg_jax.create_model`, of `MODELS`; EfficientNet-B0, whose twin is timm's, must be asked for.
      precision: of the computation; parameters are float32.
      batch: images a step.
      image: side of an image in pixels; ViTs take patches of 4.
      classes: number of classes.
      width: channels of the first stage of a ResNet.
      depth: blocks of a ViT.
      dim: channels of a token of a ViT, a multiple of 3.
      attention: of a ViT; ``"einsum"`` is the model's own, others are implementations of
        `fsg_jax.models.fused_attention`.
      norm: ``"flax"``, ``"fast"`` (`fsg_jax.models.norms`), or ``"auto"``, what commands take on the device.
      repeats: rounds of a measurement; in each round every side is timed once.
      seconds: about how long one side is timed in one round.
      peers: PyTorch peers, of `PEERS`.
      compile_mode: ``mode`` of `torch.compile`.
      seeds: numbers of seeds trained side by side.
      steps: steps of one dispatch in the suite ``dispatch``, and of an epoch in the suite ``epochs``.
      epochs: epochs that are timed.
      examples: images of the made-up data set that the input pipelines read.
      tokens: numbers of patches, squares, rising, two or more, of the suites ``tokens`` and ``chunks`` (the largest).
      matmul: side of the matrices whose product gives the peak.

    Raises:
      ValueError: a value with which no benchmark can be run.
    """

    models: tuple[str, ...] = MODELS[:2]
    precision: str = "float32"
    batch: int = 32
    image: int = 32
    classes: int = 100
    width: int = 64
    depth: int = 12
    dim: int = 192
    attention: str = "einsum"
    norm: str = "auto"
    repeats: int = 5
    seconds: float = 2.0
    peers: tuple[str, ...] = PEERS
    compile_mode: str = "default"
    seeds: tuple[int, ...] = (2, 4)
    steps: int = 8
    epochs: int = 40
    examples: int = 5000
    tokens: tuple[int, ...] = (256, 576, 1024, 2304, 4096)
    matmul: int = 2048

    def __post_init__(self) -> None:
        least = {"repeats": 2}  # or there is no spread
        for name, value in asdict(self).items():
            if isinstance(value, int):
                check_integer(name, value, least.get(name, 1))
        for count in self.seeds:
            check_integer("seeds", count, 1)
        squares = all(round(count**0.5) ** 2 == count for count in self.tokens)
        rising = len(self.tokens) > 1 and all(a < b for a, b in pairwise(self.tokens))
        expect(squares and rising and min(self.tokens) > 0, "tokens", "two or more squares, rising", self.tokens)
        check_positive(seconds=self.seconds)
        if self.dim % 3 or self.image % 4:
            found = f"{self.dim} and {self.image}"
            raise ValueError(f"dim and image: expected multiples of 3 heads and of patches of 4, found {found}")
        if self.batch > self.examples:
            raise ValueError(f"batch: expected at most examples, {self.examples}, found {self.batch}")

    def describe(self) -> dict[str, Any]:
        """JSON-able."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def label(self, model: str, batch: int | None = None) -> str:
        """What is measured, in words."""
        sizes = {"resnet18": f"width {self.width}, ", "vit_tiny": f"depth {self.depth}, dim {self.dim}, "}
        kernel = f", attention by {self.attention}" if model.startswith("vit") and self.attention != "einsum" else ""
        kernel += f", norm {self.norm}" if self.norm != "auto" else ""
        return f"{model} ({sizes.get(model, '')}{self.image} px{kernel}), batch {batch or self.batch}, {self.precision}"


SMOKE_SIZES = {"batch": 4, "image": 8, "classes": 10, "width": 4, "depth": 1, "dim": 12, "examples": 64, "matmul": 64}
SMOKE_ROUNDS = {"repeats": 2, "seconds": 0.002, "peers": ("eager",), "seeds": (2,), "steps": 2, "tokens": (4, 16)}
SMOKE_ROUNDS |= {"epochs": 2}
"""With these a suite takes seconds; the figures mean nothing."""

ACCELERATOR_SIZES = {"precision": "bfloat16", "batch": 1024, "examples": 50000, "matmul": 8192}
ACCELERATOR_ROUNDS = {"repeats": 7, "seconds": 1.0, "seeds": (2, 4, 8), "steps": 48}


def default_settings(device: str, *, smoke: bool = False) -> Settings:
    """Defaults for a kind of device, ``"cpu"`` or another; `smoke` asks for tiny sizes."""
    changes: dict[str, Any] = {}
    if smoke:
        changes = SMOKE_SIZES | SMOKE_ROUNDS
    elif device != "cpu":
        changes = ACCELERATOR_SIZES | ACCELERATOR_ROUNDS
    return replace(Settings(), **changes)
