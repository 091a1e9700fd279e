"""ViG against ViT of equal width over numbers of patches, and gated linear attention over sizes of chunks.

Multiplications and additions by the formulas of docs/vig.md stand beside the operations that the compiler counts.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import fsg_jax as fsg
from experiments import devices
from experiments.bench.jax_steps import program_memory
from experiments.bench.measurements import Bench, Row
from experiments.bench.settings import Settings
from experiments.bench.timing import Side, interleave, time_row

TOKENS, CHUNKS = "tokens", "chunks"
PATCH = 16
NAMES = {"ViT": "vit_tiny", "ViG": "vig_tiny"}
MODES = ("forward", "forward and backward")


def compare_lengths(bench: Bench) -> None:
    """A row a number of patches, mode and model; then the exponents of their times, and where the models cross."""
    settings = bench.settings
    for tokens in settings.tokens:
        for mode in MODES:
            case = _case(settings, tokens, mode)
            if bench.missing(TOKENS, case, NAMES):
                sides = {name: _model_side(settings, model, tokens, mode) for name, model in NAMES.items()}
                times = interleave(sides, settings.repeats, settings.seconds)
                for name in bench.missing(TOKENS, case, NAMES):
                    bench.add(TOKENS, case, name, **time_row(times[name]), **sides[name].about)
    for mode in MODES:
        rows = {name: [_row(bench, settings, tokens, mode, name) for tokens in settings.tokens] for name in NAMES}
        seconds = {name: np.array([row["seconds"] for row in found]) for name, found in rows.items()}
        case, about = f"fit, {mode}", {"crossing": crossing(settings.tokens, seconds["ViT"] / seconds["ViG"])}
        for name in bench.missing(TOKENS, case, NAMES):
            bench.add(TOKENS, case, name, **exponents(settings.tokens, seconds[name]), **about)


def _case(settings: Settings, tokens: int, mode: str) -> str:
    sizes = f"depth {settings.depth}, dim {settings.dim}, batch {settings.batch}, {settings.precision}"
    return f"{tokens} patches, {mode} ({sizes})"


def _row(bench: Bench, settings: Settings, tokens: int, mode: str, name: str) -> Row:
    return next(row for row in bench.of(TOKENS, _case(settings, tokens, mode)) if row["side"] == name)


def exponents(tokens: Any, seconds: Any) -> Row:
    """The exponents of ``seconds ~ tokens^e``, by least squares of the logarithms, and between the last two lengths."""
    x, y = np.log(tokens), np.log(seconds)
    return {"exponent": float(np.polyfit(x, y, 1)[0]), "last_exponent": float((y[-1] - y[-2]) / (x[-1] - x[-2]))}


def crossing(tokens: Any, ratios: Any) -> float | None:
    """From which number of patches on the ratio is above 1, interpolated between logarithms; None: at no length.

    0: it is so at all lengths.
    """
    above = np.asarray(ratios) > 1
    if not above[-1]:
        return None
    first = len(above) - int(np.argmin(np.append(above[::-1], False)))
    if first == 0:
        return 0.0
    pair = slice(first - 1, first + 1)
    return float(np.exp(np.interp(0.0, np.log(ratios[pair]), np.log(tokens[pair]))))


def _model_side(settings: Settings, name: str, tokens: int, mode: str) -> Side:
    side, dtype = round(tokens**0.5), jnp.dtype(settings.precision)
    sizes: dict[str, Any] = {"patch_size": PATCH, "depth": settings.depth, "dim": settings.dim, "dtype": dtype}
    model: Any = fsg.create_model(name, num_classes=settings.classes, **sizes, **devices.model_options(name))
    shape = (settings.batch, side * PATCH, side * PATCH, 3)
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    variables = jax.jit(model.init)(jax.random.key(0), x)
    call = jax.jit(model.apply if mode == MODES[0] else jax.grad(partial(_loss, model)))
    count: Any = vig_products if name.startswith("vig") else vit_products
    products = count(settings.dim, model.num_heads, settings.depth, tokens, settings.classes) * settings.batch
    return _compiled(call, variables, x, products=products * (1 if mode == MODES[0] else 3))


def _loss(model: nn.Module, variables: Any, x: jax.Array) -> jax.Array:
    logits: Any = model.apply(variables, x)
    return jnp.mean(logits**2)


def _compiled(call: Any, *arguments: Any, **about: Any) -> Side:
    start = time.perf_counter()
    compiled = call.lower(*arguments).compile()
    about |= {"compile_seconds": time.perf_counter() - start, **program_memory(compiled)}
    flops = (compiled.cost_analysis() or {}).get("flops", 0.0)
    return Side(partial(compiled, *arguments), about=about | {"flops": float(flops)})


def vit_products(dim: int, heads: int, depth: int, tokens: int, classes: int) -> int:
    """Products of one image in a ViT with a class token and an MLP of four times the width."""
    n = tokens + 1
    return depth * (12 * n * dim**2 + 2 * n**2 * dim) + 3 * PATCH**2 * tokens * dim + dim * classes


def vig_products(dim: int, heads: int, depth: int, tokens: int, classes: int) -> int:
    """Products of one image in a ViG; the recurrence once for both directions, as the specification counts it.

    A chunked attention computes more, each direction by itself and all pairs of a chunk at every halving. The published
    counts lack the down-projection, ``hidden * dim`` of the ``3 * hidden * dim`` here.
    """
    hidden = -(-(8 * dim // 3) // 256) * 256
    mixer = 4 * dim**2 + (9 + 16 + 16) * dim + 2 * (dim // 2 // heads) * (dim // heads) * heads
    stem = 4 * tokens * (PATCH // 2 + 1) ** 2 * 3 * (dim // 2) + tokens * 9 * (dim // 2) * dim
    return depth * tokens * (mixer + 3 * hidden * dim) + stem + dim * classes


def compare_chunks(bench: Bench) -> None:
    """A row a size of chunks, of the attention alone, forward and backward; the recurrence is the reference."""
    settings, tokens = bench.settings, max(bench.settings.tokens)
    heads, dtype = 3, jnp.dtype(settings.precision)
    case = f"{tokens} tokens, {heads} heads, batch {settings.batch}, {settings.precision}"
    sizes = {"recurrent": 1, **{f"chunk {c}": c for c in (4, 8, 16, 32, 64, 128) if c <= tokens}}
    if not bench.missing(CHUNKS, case, sizes):
        return
    keys = jax.random.split(jax.random.key(0), 4)
    shape = (settings.batch, tokens, heads)
    q, k, v, z = (jax.random.normal(key, (*shape, d)) for key, d in zip(keys, (32, 32, 64, 32), strict=True))
    arguments = (*(x.astype(dtype) for x in (q, k, v)), jax.nn.log_sigmoid(z) / 16)
    sides, outputs = {}, {}
    for name, size in sizes.items():
        attend = partial(fsg.gated_linear_attention, form=name.split()[0].replace("chunk", "chunked"), chunk=size)
        outputs[name] = np.asarray(jax.jit(attend)(*arguments), np.float64)
        sides[name] = _compiled(jax.jit(jax.grad(partial(_square, attend), (0, 1, 2, 3))), *arguments)
    times = interleave(sides, settings.repeats, settings.seconds)
    for name in bench.missing(CHUNKS, case, sizes):
        difference = float(np.abs(outputs[name] - outputs["recurrent"]).max())
        row = time_row(times[name]) | sides[name].about | {"largest_difference": difference}
        bench.add(CHUNKS, case, name, **row)


def _square(attend: Callable[..., Any], *arguments: jax.Array) -> jax.Array:
    return jnp.sum(attend(*arguments).astype(jnp.float32) ** 2)
