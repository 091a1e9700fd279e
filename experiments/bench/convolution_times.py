"""Where the time of a ResNet step goes: every convolution by itself, forward and both gradients, XLA and PyTorch.

With the number of times that a routed step and the reference's two passes need each, this says what part of the
difference between them is the convolutions'.
"""

import importlib
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.bench.measurements import Bench
from experiments.bench.settings import Settings
from experiments.bench.timing import Side, interleave, time_row

SUITE = "convolutions"
OPERATIONS = ("forward", "input gradient", "weight gradient")
STEPS = ("plain step", "sequential step", "two full passes")


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

    def label(self, settings: Settings) -> str:
        """In words."""
        shape = f"{self.kernel}x{self.kernel}, {self.inputs} to {self.outputs} channels, {self.size} px"
        stride = f", stride {self.stride}" if self.stride > 1 else ""
        return f"{shape}{stride}, batch {settings.batch}, {settings.precision}"

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


def time_convolutions(bench: Bench) -> None:
    """One row a convolution and side, and their sums over a step."""
    settings = bench.settings
    if not any(model.startswith("resnet") for model in settings.models):
        return
    makers = {"XLA": xla_operations} | ({"PyTorch": torch_operations} if find_spec("torch") else {})
    convs = resnet18_convs(settings.width, settings.image)
    for conv in convs:
        missing = bench.missing(SUITE, conv.label(settings), makers)
        sides = {f"{side} {name}": op for side in missing for name, op in makers[side](settings, conv).items()}
        times = interleave(sides, settings.repeats, settings.seconds / 10)
        for side in missing:
            each = {name: time_row(times[f"{side} {name}"])["seconds"] for name in OPERATIONS}
            rates = {f"{name} flops_per_second": conv.flops(settings.batch) / t for name, t in each.items()}
            bench.add(SUITE, conv.label(settings), side, **each, **rates, count=conv.occurrences)
    case = f"all convolutions of resnet18 (width {settings.width}), batch {settings.batch}, {settings.precision}"
    for side in bench.missing(SUITE, case, makers):
        rows = {row["case"]: row for row in bench.of(SUITE) if row["side"] == side}
        plain, gate_pass = 0.0, 0.0
        for conv in convs:
            forward, inputs, weights = (rows[conv.label(settings)][name] for name in OPERATIONS)
            back = 0.0 if conv.inputs == 3 else inputs  # nobody asks for the gradient of the images
            plain += conv.occurrences * (forward + back + weights)
            gate_pass += conv.after_gate * (forward + inputs)
        bench.add(SUITE, case, side, **dict(zip(STEPS, (plain, plain + gate_pass, 2 * plain), strict=True)))


def xla_operations(settings: Settings, conv: Conv) -> dict[str, Side]:
    """The three operations in JAX, by name."""
    dtype, pad = jnp.dtype(settings.precision), conv.kernel // 2
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (settings.batch, conv.size, conv.size, conv.inputs), dtype)
    w = jax.random.normal(keys[1], (conv.kernel, conv.kernel, conv.inputs, conv.outputs), dtype)
    layout, strides, padding = ("NHWC", "HWIO", "NHWC"), [conv.stride] * 2, [(pad, pad)] * 2

    def forward(x: jax.Array, w: jax.Array, g: jax.Array | None = None) -> jax.Array:
        return jax.lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=layout)

    def gradient(argument: int, x: jax.Array, w: jax.Array, g: jax.Array) -> jax.Array:
        return jax.vjp(forward, x, w)[1](g)[argument]  # the compiler drops the other one

    g = jax.random.normal(keys[2], jax.eval_shape(forward, x, w).shape, dtype)
    calls: list[Callable[..., jax.Array]] = [forward, partial(gradient, 0), partial(gradient, 1)]
    return {name: Side(partial(jax.jit(call), x, w, g)) for name, call in zip(OPERATIONS, calls, strict=True)}


def torch_operations(settings: Settings, conv: Conv) -> dict[str, Side]:
    """The three operations in PyTorch, on its GPU if it has one, by name."""
    torch: Any = importlib.import_module("torch")
    gpu, pad = torch.cuda.is_available(), conv.kernel // 2
    made = {"device": "cuda" if gpu else "cpu", "dtype": getattr(torch, settings.precision)}
    nhwc = {"memory_format": torch.channels_last}
    x = torch.randn(settings.batch, conv.inputs, conv.size, conv.size, **made).contiguous(**nhwc)
    w = torch.randn(conv.outputs, conv.inputs, conv.kernel, conv.kernel, **made).contiguous(**nhwc)
    forward = partial(torch.nn.functional.conv2d, x, w, stride=conv.stride, padding=pad)
    geometry = ([conv.stride] * 2, [pad] * 2, [1, 1], False, [0, 0], 1)
    backward = partial(torch.ops.aten.convolution_backward, torch.randn_like(forward()), x, w, None, *geometry)
    calls = (forward, partial(backward, [True, False, False]), partial(backward, [False, True, False]))
    wait = (lambda _: torch.cuda.synchronize()) if gpu else (lambda _: None)
    return {name: Side(call, wait) for name, call in zip(OPERATIONS, calls, strict=True)}
