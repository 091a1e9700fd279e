"""Where the time of a step of a convolutional network goes: its layers one by one, in JAX and PyTorch.

With the number of times that a routed step and the reference's two passes need each, this says what part of the
difference between the two frameworks is which layers'.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from math import prod
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import fsg_jax as fsg
from experiments.bench.jax_steps import make_model
from experiments.bench.measurements import Bench
from experiments.bench.settings import Settings
from experiments.bench.timing import Side, interleave, time_row

SUITE = "layers"
OPERATIONS = ("forward", "input gradient", "weight gradient")
STEPS = ("plain step", "sequential step", "two full passes")
ACTIVATIONS = {"resnet": "relu", "efficientnet": "silu"}
"""What follows a BatchNorm, by the first letters of the network's name; a shortcut in between is left out."""
LINEAR = ("project_bn", "downsample_bn")
"""Names of those that nothing follows."""


@dataclass(frozen=True)
class Layer:
    """A convolution, or BatchNorm with the activation after it, of a network.

    Attributes:
      module: unbound, as the network made it.
      shape: of its input, (batch, height, width, channels).
      activation: of `flax.linen`; empty for none, as after a convolution.
      image: whether the input is the image, whose gradient nobody asks for.
      count: how many there are in the network.
      after_gate: how many of them come after the first gate, so that the gate pass goes through them and back.
    """

    module: nn.Conv | nn.BatchNorm
    shape: tuple[int, ...]
    activation: str
    image: bool
    count: int
    after_gate: int

    @property
    def kind(self) -> str:
        """One of `KINDS`."""
        if isinstance(self.module, nn.BatchNorm):
            return "BatchNorm and activation"
        depthwise = self.module.feature_group_count > 1
        return "depthwise convolution" if depthwise else "1x1 convolution" if self.kernel == 1 else "convolution"

    @property
    def kernel(self) -> int:
        """Height and width of the kernel, 1 without one."""
        return int(np.max(self.module.kernel_size)) if isinstance(self.module, nn.Conv) else 1

    @property
    def stride(self) -> int:
        """Of a convolution; 1 without one."""
        strides = self.module.strides if isinstance(self.module, nn.Conv) else None
        return int(np.max(strides or 1))

    def label(self, precision: str) -> str:
        """In words."""
        batch, size, _, channels = self.shape
        if isinstance(self.module, nn.BatchNorm):
            what = f"BatchNorm{' and ' * bool(self.activation)}{self.activation}, {channels} channels"
        else:
            depthwise = ", depthwise" * (self.module.feature_group_count > 1)
            what = f"{self.kernel}x{self.kernel}{depthwise}, {channels} to {self.module.features} channels"
        stride = f", stride {self.stride}" if self.stride > 1 else ""
        return f"{what}, {size} px{stride}, batch {batch}, {precision}"

    def flops(self) -> float | None:
        """Of one operation of a convolution, padding counted."""
        if isinstance(self.module, nn.BatchNorm):
            return None
        products = prod(self.shape) * self.kernel**2 * self.module.features / self.module.feature_group_count
        return 2.0 * products / self.stride**2


KINDS = ("convolution", "1x1 convolution", "depthwise convolution", "BatchNorm and activation")


def layers_of(settings: Settings, name: str) -> list[Layer]:
    """The convolutions and BatchNorms of a network with a gate after each stage, equal ones as one, as they come."""
    found: dict[str, Layer] = {}
    gated = False
    shape = (settings.batch, settings.image, settings.image, 3)
    activation = next(value for key, value in ACTIVATIONS.items() if name.startswith(key))

    def record(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        nonlocal gated
        module = context.module
        gated |= isinstance(module, fsg.Gate)
        if context.method_name == "__call__" and isinstance(module, nn.Conv | nn.BatchNorm):
            follows = "" if isinstance(module, nn.Conv) or module.name in LINEAR else activation
            layer = Layer(module.clone(parent=None, name=None), args[0].shape, follows, args[0].shape == shape, 0, 0)
            key = layer.label(settings.precision)
            layer = found.get(key, layer)
            found[key] = replace(layer, count=layer.count + 1, after_gate=layer.after_gate + gated)
        return call(*args, **kwargs)

    model = make_model(settings, name, gated=True)
    with nn.intercept_methods(record):
        jax.eval_shape(partial(model.init, train=True), jax.random.key(0), jnp.zeros(shape))
    return list(found.values())


def time_layers(bench: Bench) -> None:
    """For every network one row a layer and side, and their sums over a step."""
    settings = bench.settings
    makers = {"JAX": jax_operations} | ({"PyTorch": torch_operations} if find_spec("torch") else {})
    for name in settings.models:
        if name.startswith(tuple(ACTIVATIONS)):
            layers = {layer.label(settings.precision): layer for layer in layers_of(settings, name)}
            for label, layer in layers.items():
                _time_layer(bench, label, layer, makers)
            for kind in KINDS:
                chosen = {label: layer for label, layer in layers.items() if layer.kind == kind}
                case = f"every {kind} of {settings.label(name)}"
                for side in bench.missing(SUITE, case, makers if chosen else ()):
                    bench.add(SUITE, case, side, **_sum(bench, side, chosen))


def _time_layer(bench: Bench, label: str, layer: Layer, makers: dict[str, Any]) -> None:
    """Adds the rows of a layer that are missing, whatever network has it."""
    settings = bench.settings
    missing = bench.missing(SUITE, label, makers)
    sides = {f"{side} {name}": op for side in missing for name, op in makers[side](settings, layer).items()}
    times = interleave(sides, settings.repeats, settings.seconds / 10)
    for side in missing:
        each = {name: time_row(times[f"{side} {name}"])["seconds"] for name in OPERATIONS if f"{side} {name}" in times}
        if side == "JAX" and isinstance(layer.module, nn.BatchNorm):  # what was timed is both together
            each["input gradient"] -= each["forward"]
        flops = layer.flops()
        rates = {f"{name} flops_per_second": flops / t for name, t in each.items()} if flops else {}
        bench.add(SUITE, label, side, **each, **rates)


def _sum(bench: Bench, side: str, layers: dict[str, Layer]) -> dict[str, float]:
    """How many layers there are, and seconds of a step of each kind in them."""
    rows = {row["case"]: row for row in bench.of(SUITE) if row["side"] == side}
    plain, gate_pass = 0.0, 0.0
    for label, layer in layers.items():
        forward, inputs, weights = (rows[label].get(name, 0.0) for name in OPERATIONS)
        plain += layer.count * (forward + weights + (0.0 if layer.image else inputs))
        gate_pass += layer.after_gate * (forward + inputs)
    steps = dict(zip(STEPS, (plain, plain + gate_pass, 2 * plain), strict=True))
    return {"count": sum(layer.count for layer in layers.values()), **steps}


def jax_operations(settings: Settings, layer: Layer) -> dict[str, Side]:
    """Forward and gradients in JAX, by name.

    The gradient of a convolution does not need its forward pass, which the compiler drops. That of BatchNorm, with
    those of scale and bias, does: it is one function with the forward pass.
    """
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], layer.shape, jnp.dtype(settings.precision))
    variables = layer.module.init(keys[1], x)
    params, rest = variables["params"], {"batch_stats": variables.get("batch_stats", {})}
    activate = getattr(nn, layer.activation) if layer.activation else lambda y: y

    def forward(x: jax.Array, params: Any, g: jax.Array | None = None) -> jax.Array:
        y, _ = layer.module.apply({"params": params, **rest}, x, mutable=["batch_stats"])
        return activate(y)

    def gradient(argument: int, x: jax.Array, params: Any, g: jax.Array) -> Any:
        return jax.vjp(forward, x, params)[1](g)[argument]  # the compiler drops the other one

    def both(x: jax.Array, params: Any, g: jax.Array) -> Any:
        y, pull_back = jax.vjp(forward, x, params)
        return y, pull_back(g)

    g = jax.random.normal(keys[2], jax.eval_shape(forward, x, params).shape, x.dtype)
    calls: list[Callable[..., Any]] = [forward, both]
    if isinstance(layer.module, nn.Conv):
        calls[1:] = [partial(gradient, 0), partial(gradient, 1)]
    return {name: Side(partial(jax.jit(call), x, params, g)) for name, call in zip(OPERATIONS, calls, strict=False)}


def torch_operations(settings: Settings, layer: Layer) -> dict[str, Side]:
    """The same in PyTorch, not compiled, on its GPU if it has one."""
    torch: Any = importlib.import_module("torch")
    gpu = torch.cuda.is_available()
    made = {"device": "cuda" if gpu else "cpu", "dtype": getattr(torch, settings.precision)}
    nhwc = {"memory_format": torch.channels_last}
    batch, size, _, channels = layer.shape
    x = torch.randn(batch, channels, size, size, **made).contiguous(**nhwc)
    calls: list[Callable[[], Any]]
    if isinstance(layer.module, nn.Conv):
        groups, features, pad = layer.module.feature_group_count, layer.module.features, layer.kernel // 2
        w = torch.randn(features, channels // groups, layer.kernel, layer.kernel, **made).contiguous(**nhwc)
        forward = partial(torch.nn.functional.conv2d, x, w, stride=layer.stride, padding=pad, groups=groups)
        geometry = ([layer.stride] * 2, [pad] * 2, [1, 1], False, [0, 0], groups)
        backward = partial(torch.ops.aten.convolution_backward, torch.randn_like(forward()), x, w, None, *geometry)
        calls = [forward, partial(backward, [True, False, False]), partial(backward, [False, True, False])]
    else:
        norm = torch.nn.BatchNorm2d(channels, device=made["device"])
        activate = getattr(torch.nn.functional, layer.activation) if layer.activation else lambda y: y
        x.requires_grad_(True)
        y = activate(norm(x))
        every = [x, *norm.parameters()]
        calls = [
            lambda: activate(norm(x)),
            partial(torch.autograd.grad, y, every, torch.randn_like(y), retain_graph=True),
        ]
    wait = (lambda _: torch.cuda.synchronize()) if gpu else (lambda _: None)
    return {name: Side(call, wait) for name, call in zip(OPERATIONS, calls, strict=False)}
