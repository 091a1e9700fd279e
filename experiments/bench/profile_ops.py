"""Where the time of a ResNet step goes: every convolution by itself, forward and both gradients, XLA and PyTorch.

With the number of times that a routed step and the reference's two passes need each, this says what part of the
difference between them is the convolutions'.
"""

import importlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.bench.installed import is_installed
from experiments.bench.record import Bench
from experiments.bench.settings import Settings
from experiments.bench.timing import interleave

SUITE = "convolutions"
XLA, TORCH = "XLA", "PyTorch"
OPERATIONS = ("forward", "input gradient", "weight gradient")


class Conv(NamedTuple):
    """A convolution of ResNet-18 and how often it occurs.

    Attributes:
      size: height and width of its input.
      inputs, outputs: channels.
      kernel, stride: sizes.
      occurrences: in the network.
      after_gate: how many of them come after the first gate, so that the gate pass goes through them and back.
    """

    size: int
    inputs: int
    outputs: int
    kernel: int
    stride: int
    occurrences: int
    after_gate: int

    @property
    def name(self) -> str:
        """In words."""
        shape = f"{self.kernel}x{self.kernel}, {self.inputs} to {self.outputs} channels"
        return f"{shape}, {self.size} px" + (f", stride {self.stride}" if self.stride > 1 else "")

    def flops(self, batch: int) -> float:
        """Of one operation, padding counted."""
        return 2.0 * batch * (self.size // self.stride * self.kernel) ** 2 * self.inputs * self.outputs


def resnet18_convs(width: int, size: int) -> list[Conv]:
    """All convolutions of ResNet-18 with the CIFAR stem and a gate after each stage."""
    convs = [Conv(size, 3, width, 3, 1, 1, 0), Conv(size, width, width, 3, 1, 4, 0)]
    for stage in range(1, 4):
        inputs, outputs, before = width * 2 ** (stage - 1), width * 2**stage, size // 2 ** (stage - 1)
        convs += [
            Conv(before, inputs, outputs, 3, 2, 1, 1),
            Conv(before, inputs, outputs, 1, 2, 1, 1),
            Conv(before // 2, outputs, outputs, 3, 1, 3, 3),
        ]
    return convs


class Op:
    """A side of a comparison: one operation, whose result `wait` waits for."""

    def __init__(self, name: str, call: Callable[[], Any], wait: Callable[[Any], Any]) -> None:
        self.name, self._call, self._wait = name, call, wait

    def run(self, steps: int) -> None:
        """Calls it `steps` times."""
        for _ in range(steps):
            result = self._call()
        self._wait(result)


def run(bench: Bench) -> None:
    """One row a convolution and side, and their sums over a step."""
    settings = bench.settings
    if not any(model.startswith("resnet") for model in settings.models):
        return
    sides = [XLA, TORCH] if is_installed("torch") else [XLA]
    convs = resnet18_convs(settings.width, settings.image)
    for conv in convs:
        if missing := bench.missing(SUITE, _case(settings, conv), sides):
            _measure(bench, conv, missing)
    _sum(bench, convs, sides)


def _case(settings: Settings, conv: Conv) -> str:
    return f"{conv.name}, batch {settings.batch}, {settings.precision}"


def _measure(bench: Bench, conv: Conv, sides: Sequence[str]) -> None:
    settings, seconds = bench.settings, bench.settings.seconds / 10
    operations = [op for side in sides for op in (_xla if side == XLA else _torch)(settings, conv)]
    timings = interleave(operations, settings.repeats, seconds)
    for side in sides:
        each = {name: timings[f"{side} {name}"].spread.median for name in OPERATIONS}
        rates = {f"{name} flops_per_second": conv.flops(settings.batch) / t for name, t in each.items()}
        bench.add(SUITE, _case(settings, conv), side, **each, **rates, count=conv.occurrences)


def _xla(settings: Settings, conv: Conv) -> list[Op]:
    pad, dtype = conv.kernel // 2, jnp.dtype(settings.precision)
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (settings.batch, conv.size, conv.size, conv.inputs), dtype)
    w = jax.random.normal(keys[1], (conv.kernel, conv.kernel, conv.inputs, conv.outputs), dtype)

    def forward(x: jax.Array, w: jax.Array) -> jax.Array:
        layout = ("NHWC", "HWIO", "NHWC")
        strides, padding = (conv.stride, conv.stride), ((pad, pad), (pad, pad))
        return jax.lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=layout)

    g = jax.random.normal(keys[2], jax.eval_shape(forward, x, w).shape, dtype)
    calls = (
        jax.jit(lambda x, w, g: forward(x, w)),
        jax.jit(lambda x, w, g: jax.vjp(lambda x: forward(x, w), x)[1](g)),
        jax.jit(lambda x, w, g: jax.vjp(lambda w: forward(x, w), w)[1](g)),
    )
    return [
        Op(f"{XLA} {name}", lambda call=call: call(x, w, g), jax.block_until_ready)  # type: ignore[misc]
        for name, call in zip(OPERATIONS, calls, strict=True)
    ]


def _torch(settings: Settings, conv: Conv) -> list[Op]:
    torch = importlib.import_module("torch")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    made = {"device": device, "dtype": getattr(torch, settings.precision)}
    nhwc, pad = {"memory_format": torch.channels_last}, conv.kernel // 2
    x = torch.randn(settings.batch, conv.inputs, conv.size, conv.size, **made).contiguous(**nhwc)
    w = torch.randn(conv.outputs, conv.inputs, conv.kernel, conv.kernel, **made).contiguous(**nhwc)

    def forward() -> Any:
        return torch.nn.functional.conv2d(x, w, stride=conv.stride, padding=pad)

    g = torch.randn_like(forward())

    def backward(which: list[bool]) -> Any:
        strides, padding = [conv.stride] * 2, [pad] * 2
        return torch.ops.aten.convolution_backward(g, x, w, None, strides, padding, [1, 1], False, [0, 0], 1, which)

    calls = (forward, lambda: backward([True, False, False]), lambda: backward([False, True, False]))
    wait = (lambda _: torch.cuda.synchronize()) if device.type == "cuda" else (lambda _: None)
    return [Op(f"{TORCH} {name}", call, wait) for name, call in zip(OPERATIONS, calls, strict=True)]


def _sum(bench: Bench, convs: Sequence[Conv], sides: Sequence[str]) -> None:
    settings = bench.settings
    case = f"all convolutions of resnet18 (width {settings.width}), batch {settings.batch}, {settings.precision}"
    for side in bench.missing(SUITE, case, sides):
        rows = {row["case"]: row for row in bench.of(SUITE) if row["side"] == side}
        totals = {"plain step": 0.0, "sequential step": 0.0, "two full passes": 0.0}
        for conv in convs:
            forward, inputs, weights = (rows[_case(settings, conv)][name] for name in OPERATIONS)
            back = 0.0 if conv.inputs == 3 else inputs  # nobody asks for the gradient of the images
            totals["plain step"] += conv.occurrences * (forward + back + weights)
            totals["two full passes"] += 2 * conv.occurrences * (forward + back + weights)
            totals["sequential step"] += conv.occurrences * (forward + back + weights)
            totals["sequential step"] += conv.after_gate * (forward + inputs)
        bench.add(SUITE, case, side, **totals)
